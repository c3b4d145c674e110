"""Processes without JAX: who comes, who differs, who dies, and what the others say of it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rin_jax.runtime import process_hub
from rin_jax.runtime.meeting import Group
from rin_jax.runtime.process_hub import Place, ProcessError

ROOT = Path(__file__).resolve().parents[2]
# One process: joins, says so, then does what its command says.
MEMBER = """
import sys, time
from rin_jax.runtime import meeting, process_hub as hub
index, count, coordinator, command = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
hub.PULSE, hub.SILENCE, hub.GRACE = 0.2, 2.0, 2.0
group = meeting.Group(hub.Place(coordinator, count, index), {"seed": "0"}, 30.0)
print("in", flush=True)
if command == "fail":
    time.sleep(0.5)  # until all have said that they are in
    group.fail(2, "no such data set", "error: no such data set\\n")
if command == "late":
    time.sleep(1.0)  # less than SILENCE
    group.fail(1, "connection reset", "connection reset\\n")
if command == "differ":
    group.agree("resuming", newest_checkpoint=10 * index)
if command == "sleep":
    time.sleep(60)
group.agree("the way", here=1)
group.finish()
print("done", flush=True)
"""


@pytest.fixture
def coordinator() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1] + 1}"


def start(coordinator: str, *commands: str) -> list[subprocess.Popen]:
    """A process for each command, all joined."""
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(index), str(len(commands)), coordinator, command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, command in enumerate(commands)
    ]
    for member in members:
        assert member.stdout.readline() == "in\n", member.communicate()
    return members


def ends(members: list[subprocess.Popen], within: float) -> list[tuple[int, str]]:
    """(exit code, errors) of each, which must come in time."""
    deadline = time.monotonic() + within
    outputs = [member.communicate(timeout=deadline - time.monotonic()) for member in members]
    return [(member.returncode, err) for member, (_, err) in zip(members, outputs, strict=True)]


def join_all(coordinator: str, places: list[tuple[int, int]], facts, timeout=2.0) -> list[str]:
    """Errors of processes with the given (index, count), each a thread here."""
    errors = []

    def join(index, count, own):
        try:
            Group(Place(coordinator, count, index), own, timeout)
        except ProcessError as error:
            errors.append(str(error))

    threads = [
        threading.Thread(target=join, args=(*place, own))
        for place, own in zip(places, facts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return errors


def test_all_end_together(coordinator):
    members = start(coordinator, "", "", "")
    assert ends(members, 10) == [(0, "")] * 3


@pytest.mark.parametrize("dead", [0, 2])
def test_a_killed_process_is_named(coordinator, dead):
    members = start(coordinator, "sleep", "sleep", "sleep", "sleep")
    members[dead].kill()
    for index, (code, error) in enumerate(ends(members, 10)):
        if index != dead:
            assert code == process_hub.LOST
            assert f"error: process {dead} (" in error
            assert "died" in error
            assert "Run the same command again to resume." in error


def test_a_silent_process_is_named(coordinator):
    members = start(coordinator, "sleep", "sleep", "sleep")
    members[1].send_signal(signal.SIGSTOP)
    for code, error in ends([members[0], members[2]], 10):
        assert code == process_hub.LOST
        assert "error: process 1 (" in error
        assert "gave no sign of life for 2 s" in error
    members[1].kill()
    members[1].communicate()


def test_an_error_that_follows_a_silence_names_the_silent_process(coordinator):
    members = start(coordinator, "sleep", "sleep", "late")
    members[1].send_signal(signal.SIGSTOP)
    ((code, error),) = ends([members[0]], 10)
    assert code == 1
    assert "error: process 1 (" in error
    assert "gave no sign of life; process 2 (" in error
    assert "connection reset" in error
    members[1].kill()
    ends(members[1:], 10)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_ends_all_with_its_message(coordinator, failing):
    commands = ["sleep"] * 3
    commands[failing] = "fail"
    for index, (code, error) in enumerate(ends(start(coordinator, *commands), 10)):
        assert code == 2
        if index == failing:
            assert error == "error: no such data set\n"
        else:
            assert f"error: process {failing} (" in error
            assert "no such data set" in error
            assert "resume" not in error  # it would fail again


def test_a_process_that_fails_while_it_ends_prints_one_message(coordinator):
    """Process 0 waits until the others have heard; meanwhile its own work fails too."""
    code, error = ends(start(coordinator, "late", "fail"), 10)[0]
    assert code == 2
    assert "error: process 1 (" in error
    assert "connection reset" not in error


def test_a_process_ends_though_nobody_reads_its_errors(coordinator):
    members = start(coordinator, "late", "fail")
    members[0].stderr.close()
    assert members[0].wait(10) == 2
    members[1].communicate(timeout=10)


def test_facts_that_differ_on_the_way(coordinator):
    for code, error in ends(start(coordinator, "differ", "differ"), 10):
        assert code == 2
        assert "resuming" in error
        assert "newest checkpoint: 0 in process 0" in error
        assert "10 in process 1" in error


def test_processes_that_never_come(coordinator):
    errors = join_all(coordinator, [(0, 4), (1, 4)], [{}, {}], timeout=1.0)
    assert len(errors) == 2
    for error in errors:
        assert "processes 2, 3 of 4 did not join within 1 s" in error
        assert "--join_timeout" in error


def test_process_0_never_comes(coordinator):
    (error,) = join_all(coordinator, [(1, 2)], [{}], timeout=1.0)
    assert "process 0 did not answer at 127.0.0.1:" in error


def test_different_configurations_are_named_field_by_field(coordinator):
    facts = [
        {"model.depth": "2", "seed": "0", "code": "a"},
        {"model.depth": "3", "seed": "0", "code": "a"},
        {"model.depth": "2", "seed": "0"},
    ]
    errors = join_all(coordinator, [(0, 3), (1, 3), (2, 3)], facts)
    assert len(errors) == 3
    host = socket.gethostname()
    for error in errors:
        assert f"model.depth: 2 in processes 0, 2 ({host}), 3 in process 1 ({host})" in error
        assert "code: a in processes 0, 1" in error
        assert "nothing in process 2" in error
        assert "seed" not in error


def test_two_processes_with_one_index(coordinator):
    errors = join_all(coordinator, [(0, 3), (1, 3), (1, 3)], [{}] * 3)
    assert len(errors) == 3
    assert all("two processes have the index 1" in error for error in errors)


def test_a_process_may_die_and_come_again_before_all_are_there(coordinator):
    host, port = Place(coordinator, 3, 0).meeting
    waiting = threading.Thread(target=join_all, args=(coordinator, [(0, 3)], [{}], 3.0))
    waiting.start()
    time.sleep(0.5)
    with socket.create_connection((host, port)) as first:
        first.sendall(b'{"index": 1, "count": 3, "host": "h", "facts": {}}\n')
        time.sleep(0.3)
    errors = join_all(coordinator, [(1, 3)], [{}], timeout=3.0)
    waiting.join()
    assert "process 2 of 3 did not join" in errors[0]


def test_other_numbers_of_processes(coordinator):
    errors = join_all(coordinator, [(0, 2), (1, 3)], [{}] * 2)
    assert len(errors) == 2
    for error in errors:
        assert "is one of 3 processes, process 0 one of 2" in error


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ProcessError, match=f"cannot listen on port {port}"):
            Group(Place(f"127.0.0.1:{port + 1}", 2, 0), {}, 1.0)


def test_a_stranger_does_no_harm(coordinator):
    def knock():
        time.sleep(0.5)
        with socket.create_connection(Place(coordinator, 2, 0).meeting) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")

    threading.Thread(target=knock).start()
    errors = join_all(coordinator, [(0, 2)], [{}], timeout=1.5)
    assert "process 1 of 2 did not join" in errors[0]
