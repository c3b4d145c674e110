"""One run a workdir: a second refuses, and what a dead one left is in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rin_jax import ConfigError
from rin_jax.jobs import train as train_lib
from rin_jax.runtime import workdir_lock
from tests import tiny
from tests.storage import Fault

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
    import sys, time
    from rin_jax.runtime import workdir_lock
    workdir_lock.RENEWAL = 0.2
    with workdir_lock.hold(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""
OTHER = {"id": "other", "pid": 1, "host": "there"}
RUN = "gs://bucket/run"


def holder(workdir) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(workdir)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


@pytest.fixture
def bucket(storage, monkeypatch):
    """bucket(): holds the lock of a run in a bucket."""
    patience = {"max_retries": 1, "initial_delay": "0.05s", "max_delay": "0.05s"}
    monkeypatch.setattr(workdir_lock, "PATIENCE", {"gcs_request_retries": patience})
    monkeypatch.setattr(workdir_lock, "RENEWAL", 0.1)

    def hold(name="own"):
        return workdir_lock._hold_by_renewals(RUN, {"id": name, "pid": os.getpid(), "host": "here"})

    return hold


def held(storage) -> dict:
    return json.loads(storage.get("bucket", "run/lock.json").data)


def wait_for(event) -> None:
    """Until `event` is true; a minute, as the machine may be busy."""
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_refuses_and_a_dead_one_is_in_nobodys_way(tmp_path):
    process = holder(tmp_path)
    config = tiny.config(data__split="train[:16]")
    try:
        before = (tmp_path / "lock.json").read_text()
        message = (
            rf"another run writes to .*: process {process.pid} on {os.uname().nodename}\. Stop"
        )
        with pytest.raises(ConfigError, match=message):
            train_lib.train(config, str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"lock.json"}  # no configuration
        assert (tmp_path / "lock.json").read_text() == before
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "lock.json").read_text() == before  # nobody tidied up
    began = time.monotonic()
    with workdir_lock.hold(str(tmp_path)):
        assert time.monotonic() - began < workdir_lock.NFS_EXPIRY / 4
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    with workdir_lock.hold(str(tmp_path)):
        pass


def test_of_several_at_the_same_moment_one_stays(tmp_path):
    outcomes, begin, end = [], threading.Barrier(4), threading.Barrier(4)

    def run():
        begin.wait()
        try:
            with workdir_lock.hold(str(tmp_path)):
                outcomes.append("held")
                end.wait(60)
        except ConfigError:
            outcomes.append("refused")
            end.wait(60)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 3]


@pytest.mark.parametrize(
    ("seconds", "expiry", "refuses"), [(0.5, 60.0, False), (600.0, 1.0, True)]
)
def test_the_lock_of_another_machine_may_be_one_that_the_server_still_drops(
    tmp_path, monkeypatch, seconds, expiry, refuses
):
    monkeypatch.setattr(workdir_lock, "NFS_EXPIRY", expiry)
    with (tmp_path / "lock.json").open("a+") as file:
        file.write(json.dumps(OTHER))
        file.flush()
        workdir_lock.fcntl.flock(file, workdir_lock.fcntl.LOCK_EX)
        timer = threading.Timer(
            seconds, workdir_lock.fcntl.flock, [file, workdir_lock.fcntl.LOCK_UN]
        )
        timer.start()
        if refuses:
            with (
                pytest.raises(ConfigError, match="process 1 on there"),
                workdir_lock.hold(str(tmp_path)),
            ):
                pytest.fail("held twice")
        else:
            with workdir_lock.hold(str(tmp_path)):
                pass
        timer.cancel()


def test_a_bucket_is_held_by_renewals_of_one_request_each(storage, bucket):
    began = time.monotonic()
    with bucket():
        wait_for(lambda: held(storage)["renewals"] >= 3)
        renewals, seconds = held(storage)["renewals"], time.monotonic() - began
        assert renewals <= seconds / workdir_lock.RENEWAL + 1
        assert len(storage.requests) in (renewals + 2, renewals + 3)  # a look and a first write
    assert storage.names("bucket") == []


@pytest.mark.parametrize("kind", ["error", "limit", "denied", "cut", "lost", "half"])
def test_in_a_bucket_renewals_survive_what_goes_wrong(storage, bucket, kind):
    with bucket():
        storage.faults.append(Fault(kind))
        wait_for(lambda: kind in storage.happened)
        time.sleep(0.3)
        storage.faults.clear()
        before = held(storage)["renewals"]
        wait_for(lambda: held(storage)["renewals"] >= before + 2)
        assert held(storage)["id"] == "own"
        storage.faults.append(Fault(kind, "^DELETE", count=1))
    assert storage.names("bucket") == ([] if kind != "denied" else ["run/lock.json"])


def test_a_bucket_that_may_not_be_written_to_is_an_oserror(storage, bucket):
    storage.faults.append(Fault("denied"))
    with pytest.raises(OSError, match="PERMISSION_DENIED"), bucket():
        pytest.fail("held")


def test_an_address_with_a_scheme_is_a_bucket(storage):
    with workdir_lock.hold(RUN):
        assert held(storage)["pid"] == os.getpid()


def test_in_a_bucket_a_holder_that_renews_is_respected_and_one_that_is_silent_replaced(
    storage, bucket, monkeypatch
):
    process = holder(RUN)
    try:
        with pytest.raises(ConfigError, match=f"process {process.pid} on "), bucket():
            pytest.fail("held twice")
    finally:
        process.kill()
        process.communicate()
    monkeypatch.setattr(workdir_lock, "EXPIRY", 1.5)
    with bucket():
        assert held(storage)["id"] == "own"


def test_in_a_bucket_of_several_at_the_same_moment_one_stays(bucket):
    outcomes, begin, end = [], threading.Barrier(4), threading.Barrier(4)

    def run(name):
        begin.wait()
        try:
            with bucket(name):
                outcomes.append("held")
                end.wait(60)
        except ConfigError:
            outcomes.append("refused")
            end.wait(60)

    threads = [threading.Thread(target=run, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 3]


@pytest.mark.parametrize("read", [True, False])
def test_in_a_bucket_a_run_whose_lock_was_taken_ends(storage, read):
    """Though nobody reads its errors."""
    with holder(RUN) as process:
        if not read:
            process.stderr.close()
        storage.put("bucket", "run/lock.json", json.dumps(OTHER).encode())
        try:
            assert process.wait(60) == 2
            if read:
                assert "error: process 1 on there took over" in process.stderr.read()
        finally:
            process.kill()
