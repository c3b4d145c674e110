"""Processes on JAX's own service: who comes, who differs, who dies, and what the others say."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import jax
import pytest

from tests.runtime.pod import HEARTBEAT, Pod

ABORTED = -signal.SIGABRT if jax.__version_info__ >= (0, 8) else 1
RESUME = "Run the same command again to resume."


def listening(pids: list[int]) -> set[int]:
    """The ports on which any of these processes listens."""
    links = {os.readlink(link) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows
            if row[3] == "0A" and f"socket:[{row[9]}]" in links}  # fmt: skip


def test_a_good_end_is_silent_and_answers_come_by_index(tmp_path):
    codes, _, errors = Pod(tmp_path, "gather", "gather", "gather").ends()
    assert (codes, errors) == ([0] * 3, [""] * 3)


@pytest.mark.slow
def test_each_of_four_processes_that_is_killed_or_silent_is_named_by_the_others(tmp_path):
    """Four pods, of each of which another process is killed; in a fifth, one goes silent."""
    pods = [Pod(tmp_path / str(index), *["sleep"] * 4) for index in range(5)]
    victims = [0, 1, 2, 3, 1]
    for pod in pods:
        assert listening(pod.joined().pids) == {int(pod.address.rpartition(":")[2])}
    killed = []
    for victim, pod in zip(victims, pods, strict=True):
        killed.append(time.monotonic())
        os.kill(pod.pids[victim], signal.SIGSTOP if pod is pods[4] else signal.SIGKILL)
    for victim, pod, when in zip(victims, pods, killed, strict=True):
        survivors = [index for index in range(4) if index != victim]
        pod.wait_for_end(*survivors)
        if pod is pods[4]:
            os.kill(pod.pids[victim], signal.SIGKILL)
        codes, times, errors = pod.ends()
        for index in survivors:
            assert codes[index] == ABORTED
            assert times[index] - when < 3 * HEARTBEAT + 14
            dead = rf"task:?\s*{victim}\b|^(/job.*task:)?{victim}$"
            # the end of process 0, which the same news ends, may be quicker than the news
            named = dead if victim and index == 0 else rf"leader \(usually slice 0 task 0\)|{dead}"
            assert re.search(named, errors[index], re.MULTILINE), errors[index]


def test_an_error_that_follows_a_silence_names_the_silent_process(tmp_path):
    others = {index: {"heartbeat": 30} for index in range(3)}  # JAX itself is slower
    pod = Pod(tmp_path, "sleep", "sleep", "disk", others=others).joined()
    os.kill(pod.pids[1], signal.SIGSTOP)
    pod.wait_for_end(0, 2)
    os.kill(pod.pids[1], signal.SIGKILL)
    codes, _, errors = pod.ends()
    assert (codes[0], codes[2]) == (1, 1)
    assert re.match(r"error: process 1 \(.*\) gave no sign of life; process 2 \(", errors[0])
    assert "OSError: disk" in errors[0]
    assert "error: process 1 (" in errors[2]


@pytest.mark.parametrize(
    ("what", "failing", "code"), [("mistake", 0, 2), ("number", 1, 3), ("disk", 2, 1)]
)
def test_an_error_in_one_ends_all_at_once_with_its_message(tmp_path, what, failing, code):
    commands = ["sleep"] * 3
    commands[failing] = what
    codes, times, errors = Pod(tmp_path, *commands).ends()
    assert codes == [code] * 3
    assert max(times) - min(times) < 3.0  # process 0 stays for the others to hear of it
    for index, error in enumerate(errors):
        if index == failing:
            assert error.startswith("Traceback") if code == 1 else error == f"error: {what}\n"
        else:
            text = f"OSError: {what}" if code == 1 else what
            assert re.match(rf"error: process {failing} \(.*\): {text}\n", error)
            assert (RESUME in error) == (code == 1)  # it would fail again


def test_a_process_that_fails_while_it_ends_prints_one_message(tmp_path):
    """Process 0 waits until the others have heard; meanwhile its own work fails too."""
    codes, _, errors = Pod(tmp_path, "late", "mistake").ends()
    assert codes == [2, 2]
    assert errors[0].count("error: ") == 1
    assert "connection reset" not in errors[0]


@pytest.mark.parametrize("deaf", [0, 1])
def test_a_process_ends_though_nobody_reads_its_errors(tmp_path, deaf):
    pod = Pod(tmp_path, "sleep", "mistake", others={deaf: {"deaf": True}})
    assert pod.ends()[0] == [2, 2]


@pytest.mark.parametrize(
    ("told", "number", "words"),
    [
        ([0], signal.SIGTERM, r"preempted: process (\d) \(.*\): SIGTERM\n"),
        ([0, 1, 2], signal.SIGTERM, r"preempted: process (\d) \(.*\): SIGTERM\n"),
        ([1], signal.SIGINT, r"interrupted: process (\d) \(.*\): SIGINT; a second one ends"),
    ],
)
def test_a_signal_to_any_ends_all(tmp_path, told, number, words):
    pod = Pod(tmp_path, "sleep", "sleep", "sleep").joined()
    for index in told:
        os.kill(pod.pids[index], number)
    codes, _, errors = pod.ends()
    assert codes == [75] * 3
    for error in errors:
        first = re.match(words, error)
        assert int(first[1]) in told
        assert RESUME in error


def test_what_processes_were_started_with_is_compared_field_by_field(tmp_path):
    alike = {"model.depth": "2", "seed": "0", "code": "a"}
    others = {
        0: {"facts": alike},
        1: {"facts": alike | {"model.depth": "3"}},
        2: {"facts": {"model.depth": "2", "seed": "0"}, "count": 4},
    }
    codes, _, errors = Pod(tmp_path, "sleep", "sleep", "sleep", others=others).ends()
    assert codes == [2] * 3
    host = socket.gethostname()
    for error in errors:
        assert error.startswith("error: the processes differ (start):\n")
        assert f"model.depth: 2 in processes 0, 2 ({host}), 3 in process 1 ({host})" in error
        assert f"code: a in processes 0, 1 ({host}), nothing in process 2 ({host})" in error
        assert "number of processes: 3 in processes 0, 1" in error
        assert "seed" not in error


def test_facts_that_differ_on_the_way(tmp_path):
    codes, _, errors = Pod(tmp_path, "differ", "differ").ends()
    assert codes == [2, 2]
    for error in errors:
        assert "the processes differ (resuming)" in error
        assert "newest checkpoint: 0 in process 0" in error
        assert "10 in process 1" in error
        assert "seed" not in error


def test_processes_that_never_come_are_named(tmp_path):
    others = {index: {"count": 4} for index in range(2)}
    codes, _, errors = Pod(tmp_path, "sleep", "sleep", timeout=2.0, others=others).ends()
    assert codes == [ABORTED] * 2
    assert "error: not all 4 processes joined within 2 s" in errors[0]
    assert "--join_timeout" in errors[0]
    for error in errors:
        assert "# of tasks that reached the barrier: 2/4" in error
        assert {"2", "3"} <= set(re.findall(r"^(?:/job:.*task:)?(\d)$", error, re.MULTILINE)), error


def test_strangers_on_the_port_do_no_harm(tmp_path):
    """One says nothing, one speaks HTTP, one sends what gRPC would never send."""
    pod = Pod(tmp_path, "gather", "gather", others={1: {"delay": 2.0}})
    host, port = pod.address.split(":")
    strangers = []
    for words in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
    ):
        while True:
            try:
                strangers.append(socket.create_connection((host, int(port))))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        strangers[-1].sendall(words)
    pod.joined()
    for stranger in strangers:
        stranger.close()
    assert pod.ends()[0] == [0, 0]
