"""A run that is told to end: what it does between steps, in quiet phases, and when it is stuck."""

import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rin_jax.runtime import preemption, processes
from rin_jax.runtime.preemption import Preempted, Watch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def exits(monkeypatch):
    """The notes of ends of this process, which are only recorded, and an event of the first."""
    notes = []
    ended = threading.Event()

    def record(note):
        notes.append(note)
        ended.set()

    monkeypatch.setattr(preemption, "_exit", record)
    return notes, ended


def told(watch, reason="SIGTERM"):
    thread = threading.Thread(target=watch.told, args=(reason,), daemon=True)
    thread.start()
    return thread


def test_between_steps_the_run_stops_where_it_is(exits):
    watch = Watch()
    watch.end_quiet()
    assert not watch.stops_at(4)
    told(watch).join()
    assert watch.stops_at(5)
    assert not watch.stops_at(6)  # its answer was 5
    assert exits[0] == []


def test_in_the_start_up_the_process_ends_at_once(exits):
    watch = Watch()
    told(watch)
    assert exits[1].wait(60)
    assert exits[0] == [""]


def test_in_a_quiet_phase_the_process_waits_for_the_save_and_ends(exits):
    watch, saved, order = Watch(), threading.Event(), []
    watch.end_quiet()

    def wait():
        saved.wait()
        order.append("saved")

    with watch.quiet(10, wait):
        told(watch)
        assert not exits[1].wait(0.3)
        saved.set()
        assert exits[1].wait(60)
        monkey = watch._quiet
        watch._told = False  # so that this test goes on
    assert monkey is not None
    assert order == ["saved"]
    assert exits[0] == [""]


def test_a_library_leaves_signals_alone():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    Watch().end_quiet()
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


def test_the_main_thread_does_not_go_on_while_the_other_leaves(exits):
    """The end of a quiet phase, after the notice in it, waits for the end of the process."""
    watch, saved, passed = Watch(), threading.Event(), threading.Event()

    def phase():
        with watch.quiet(10, saved.wait):
            told(watch)
            time.sleep(0.2)
        passed.set()

    watch.end_quiet()
    threading.Thread(target=phase, daemon=True).start()
    assert not passed.wait(1.0)
    saved.set()
    assert exits[1].wait(60)
    assert not passed.is_set()


def test_a_phase_that_would_begin_after_the_notice_does_not(exits):
    watch, waited = Watch(), []
    watch.end_quiet()
    told(watch).join()
    with pytest.raises(Preempted) as error, watch.quiet(7, lambda: waited.append(True)):
        pytest.fail("began")
    assert error.value.code == 75
    assert waited == [True]


def test_what_is_stuck_ends_in_time(exits, monkeypatch):
    monkeypatch.setattr(preemption, "SECONDS", 0.3)
    watch = Watch()
    watch.end_quiet()
    told(watch)
    assert exits[1].wait(60)
    assert exits[0] == ["not finished after 0.3 s; "]


def test_processes_agree_on_the_furthest_step(exits, monkeypatch):
    answers = []

    def gather(question, value):
        answers.append((question, value))
        return [value, "9"]

    monkeypatch.setattr(processes, "gather", gather)
    watch = Watch()
    watch.end_quiet()
    told(watch).join()
    assert [step for step in range(7, 12) if watch.stops_at(step)] == [9]
    assert answers == [("stop at", "7")]  # once


def test_a_process_in_a_quiet_phase_goes_on_to_the_step_of_another(exits, monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda question, value: [value, "11"])
    watch = Watch()
    watch.end_quiet()
    with watch.quiet(10, lambda: None):
        told(watch).join()
    assert not watch.stops_at(10)
    assert watch.stops_at(11)
    assert exits[0] == []


class Metadata(http.server.BaseHTTPRequestHandler):
    """Google's metadata server, of which only two keys are there."""

    values = {}  # noqa: RUF012

    def do_GET(self):
        path, _, query = self.path.partition("?")
        assert self.headers["Metadata-Flavor"] == "Google"
        key = path.removeprefix("/computeMetadata/v1/instance/")
        if query and self.values[key] in ("FALSE", "NONE"):
            time.sleep(0.1)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.values[key].encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_the_clouds_notice(exits, monkeypatch, key, value):
    Metadata.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        watch = Watch()
        watch.end_quiet()
        preemption.listen_to_cloud(watch)
        time.sleep(0.5)
        assert not watch.stops_at(3)
        Metadata.values = Metadata.values | {key: value}
        deadline = time.monotonic() + 60
        while not watch.stops_at(3) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watch.stops_at(3)
        server.shutdown()


def test_elsewhere_no_cloud_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(preemption, "PRODUCT", tmp_path / "none")
    before = threading.active_count()
    preemption.listen_to_cloud(Watch())
    assert threading.active_count() == before


# The main thread is inside a call that no signal interrupts, as a compilation is.
DEAF = """
    import contextlib, ctypes, threading
    from rin_jax.runtime import preemption
    with preemption.watching() as watch, {phase}:
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(lock)
        print("deaf", flush=True)
        libc.pthread_mutex_lock(lock)
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mutex")


def heard() -> None:
    """Signals have their ordinary effect, though whoever runs the tests may ignore them."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def deaf(phase="contextlib.nullcontext()", trap=":") -> subprocess.Popen:
    """A process that has come to that call, started by a shell after the command `trap`."""
    code = textwrap.dedent(DEAF).format(phase=phase)
    process = subprocess.Popen(
        ["sh", "-c", f'{trap}; exec "$@"', "sh", sys.executable, "-c", code],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heard,
    )  # fmt: skip
    assert process.stdout.readline() == "deaf\n"
    return process


@linux
@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGTERM, "preempted"), (signal.SIGHUP, "preempted"), (signal.SIGINT, "interrupted")],
)
def test_a_signal_is_heard_inside_a_call_that_does_not_return(number, word):
    process = deaf()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.startswith(f"{word}: {number.name}")
    assert "Run the same command again to resume." in errors
    assert "Traceback" not in errors


@linux
def test_a_second_sigint_ends_the_process_at_once():
    """Though the first one waits for a save that does not end."""
    process = deaf("watch.quiet(10, threading.Event().wait)")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("interrupted: SIGINT; a second one ends")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


@linux
def test_signals_that_are_ignored_at_the_start_stay_so():
    """As under nohup, and in the background of a script, which is itself interrupted."""
    process = deaf(trap="trap '' HUP INT")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.startswith("preempted: SIGTERM")
