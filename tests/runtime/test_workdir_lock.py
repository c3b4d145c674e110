"""One run a workdir: a second refuses, and what a dead one left is in nobody's way."""

import contextlib
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
from etils import epath

from rin_jax import ConfigError
from rin_jax.jobs import train as train_lib
from rin_jax.runtime import workdir_lock
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
    import sys, time
    from etils import epath
    from rin_jax.runtime import workdir_lock
    workdir_lock.RENEWAL = 0.2
    own = {"id": "first", "pid": 1, "host": "here"}
    renewed = workdir_lock._hold_by_renewals(epath.Path(sys.argv[1]) / "lock.json", own)
    with renewed if "renewals" in sys.argv else workdir_lock.hold(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""
OTHER = {"id": "other", "pid": 1, "host": "there"}


def holder(workdir, *how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(workdir), *how],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """bucket(): holds the lock file of a folder as if it was in a bucket."""
    monkeypatch.setattr(workdir_lock, "SETTLING", 0.3)

    def hold(name="own"):
        own = {"id": name, "pid": os.getpid(), "host": "here"}
        return workdir_lock._hold_by_renewals(epath.Path(tmp_path) / "lock.json", own)

    return hold


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
        assert time.monotonic() - began < 1.0
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    with workdir_lock.hold(str(tmp_path)):
        pass


def test_of_several_at_the_same_moment_one_stays(tmp_path):
    outcomes, begin = [], threading.Barrier(4)

    def run():
        begin.wait()
        try:
            with workdir_lock.hold(str(tmp_path)):
                outcomes.append("held")
                time.sleep(0.5)
        except ConfigError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 3]


@pytest.mark.parametrize(("seconds", "refuses"), [(0.5, False), (60.0, True)])
def test_the_lock_of_another_machine_may_be_one_that_the_server_still_drops(
    tmp_path, monkeypatch, seconds, refuses
):
    monkeypatch.setattr(workdir_lock, "NFS_EXPIRY", 1.5)
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


def test_a_bucket_is_held_by_renewals(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(workdir_lock, "RENEWAL", 0.1)
    with bucket():
        time.sleep(0.6)
        assert json.loads((tmp_path / "lock.json").read_text())["renewals"] >= 2
    assert list(tmp_path.iterdir()) == []


def test_an_address_with_a_scheme_is_a_bucket(monkeypatch):
    asked = []

    @contextlib.contextmanager
    def record(path, own):
        asked.append(str(path))
        yield

    monkeypatch.setattr(workdir_lock, "_hold_by_renewals", record)
    with workdir_lock.hold("gs://bucket/run"):
        assert asked == ["gs://bucket/run/lock.json"]


def test_in_a_bucket_a_holder_that_renews_is_respected_and_one_that_is_silent_replaced(
    tmp_path, bucket, monkeypatch
):
    process = holder(tmp_path, "renewals")
    try:
        with pytest.raises(ConfigError, match="process 1 on here"), bucket():
            pytest.fail("held twice")
    finally:
        process.kill()
        process.communicate()
    monkeypatch.setattr(workdir_lock, "EXPIRY", 1.5)
    with bucket():
        assert json.loads((tmp_path / "lock.json").read_text())["id"] == "own"


def test_in_a_bucket_of_two_at_the_same_moment_one_stays(bucket, monkeypatch):
    monkeypatch.setattr(workdir_lock, "RENEWAL", 0.1)
    outcomes, refused = [], threading.Event()

    def run(name):
        try:
            with bucket(name):
                outcomes.append("held")
                refused.wait(10)
        except ConfigError:
            outcomes.append("refused")
            refused.set()

    threads = [threading.Thread(target=run, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


@pytest.mark.parametrize("read", [True, False])
def test_in_a_bucket_a_run_whose_lock_was_taken_ends(tmp_path, read):
    """Though nobody reads its errors."""
    with holder(tmp_path, "renewals") as process:
        if not read:
            process.stderr.close()
        (tmp_path / "lock.json").write_text(json.dumps(OTHER))
        try:
            assert process.wait(20) == 2
            if read:
                assert "error: process 1 on there took over" in process.stderr.read()
        finally:
            process.kill()
