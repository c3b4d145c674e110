"""One run a workdir: a second refuses, and what a dead one left is in nobody's way."""

import json
import os
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

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
    import sys, time
    from rin_jax.runtime import workdir_lock
    with workdir_lock.hold(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""


def holder(workdir) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(workdir)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_refuses_and_a_dead_one_is_replaced_at_once(tmp_path):
    process = holder(tmp_path)
    config = tiny.config(data__split="train[:16]")
    try:
        before = (tmp_path / "lease.json").read_text()
        with pytest.raises(ConfigError, match=rf"another run writes to .*: process {process.pid} "):
            train_lib.train(config, str(tmp_path))
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"lease.json"}  # not even the configuration
        assert json.loads(before)["id"] == json.loads((tmp_path / "lease.json").read_text())["id"]
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    with workdir_lock.hold(str(tmp_path)):
        assert time.monotonic() - began < 5
    assert not (tmp_path / "lease.json").exists()


def elsewhere(tmp_path, renewals=0):
    """A lease of another machine."""
    held = {"id": "other", "pid": 1, "host": "there", "boot": "b", "space": "s", "began": "1"}
    workdir_lock._write(workdir_lock.epath.Path(tmp_path) / "lease.json", held, renewals)


def test_a_holder_elsewhere_that_renews_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "EXPIRY", 10.0)
    elsewhere(tmp_path)
    renewal = threading.Timer(1.5, elsewhere, [tmp_path, 1])
    renewal.start()
    with (
        pytest.raises(workdir_lock.HeldError, match="process 1 on there"),
        workdir_lock.hold(str(tmp_path)),
    ):
        pytest.fail("held twice")
    assert json.loads((tmp_path / "lease.json").read_text())["id"] == "other"


def test_a_holder_elsewhere_that_is_silent_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "EXPIRY", 1.5)
    elsewhere(tmp_path)
    with workdir_lock.hold(str(tmp_path)):
        own = json.loads((tmp_path / "lease.json").read_text())
        assert own["pid"] == os.getpid()


def test_a_number_that_another_process_got_since_is_no_holder(tmp_path):
    with workdir_lock.hold(str(tmp_path)):
        own = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps({**own, "began": "1"}))
    with workdir_lock.hold(str(tmp_path)):
        pass


def test_a_damaged_file_is_no_lease(tmp_path):
    (tmp_path / "lease.json").write_text("{")
    with workdir_lock.hold(str(tmp_path)):
        pass


def test_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "RENEWAL", 0.1)
    with workdir_lock.hold(str(tmp_path)):
        time.sleep(0.6)
        assert json.loads((tmp_path / "lease.json").read_text())["renewals"] >= 2
    assert list(tmp_path.iterdir()) == []


def test_of_two_at_the_same_moment_one_stays(tmp_path):
    outcomes = []

    def run():
        try:
            with workdir_lock.hold(str(tmp_path)):
                outcomes.append("held")
                time.sleep(1.0)
        except workdir_lock.HeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


TAKEN = HOLDER.replace("import lease", "import lease; lease.RENEWAL = 0.2")


def test_a_run_whose_lease_was_taken_ends(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TAKEN), str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    elsewhere(tmp_path)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "error: process 1 on there took over" in errors


def test_it_ends_though_nobody_reads_its_errors(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TAKEN), str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        process.stderr.close()
        elsewhere(tmp_path)
        try:
            assert process.wait(20) == 2
        finally:
            process.kill()
