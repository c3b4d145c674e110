"""Ctrl-C in the command itself: nothing is lost, nothing hangs, and there is no traceback."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import xla
from tests.test_main import ROOT

PREEMPTED = 75


@pytest.fixture(autouse=True)
def heard():
    """A command hears SIGINT, even where these tests ignore it: in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def started(workdir, *arguments: str) -> Iterator[subprocess.Popen]:
    """python -m rin_jax.main of a tiny experiment."""
    environment = os.environ | {"XLA_FLAGS": xla.FAST}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rin_jax.main", "--config=configs/digits.py:tiny",
         f"--workdir={workdir}", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()


def processor_seconds(pid: int) -> float:
    """What a process has used: how far it is, however busy the machine is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("mode", "seconds"),
    [("train", 0.4), ("train", 1.2), ("train", 2.5), ("export", 2.0), ("sample", 2.5)],
)
def test_a_start_that_is_interrupted(tmp_path, mode, seconds):
    """Before the run listens, SIGINT has the effect that it has on any command."""
    target = ["--to=to"] if mode == "export" else []
    with started(tmp_path / "run", f"--mode={mode}", *target) as process:
        while process.poll() is None and processor_seconds(process.pid) < seconds:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if process.returncode != 2:  # there is no checkpoint to sample from
        assert process.returncode in (PREEMPTED, -signal.SIGINT), errors
    assert "Traceback" not in errors


def test_a_run_that_is_interrupted_saves_its_step(tmp_path):
    rare = ("train.num_steps", "train.sample_every_steps", "checkpoint.every_steps",
            "ema.snapshot_every_steps")  # fmt: skip
    with started(tmp_path, *(f"--config.{field}=100000" for field in rare)) as process:
        for line in process.stdout:
            if found := re.search(r"  step +(\d+)/", line):
                break
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, errors
    assert errors.startswith("interrupted: SIGINT")
    assert "Traceback" not in errors + out
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert int(saved.name) >= int(found[1])
    assert (tmp_path / "lock.json").read_text() == ""


def test_an_error_ends_the_command_although_a_thread_waits():
    """As Orbax leaves some where it fails to save to a bucket."""
    code = (
        "import sys, threading; from rin_jax import main\n"
        "def fail(*_):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    raise RuntimeError('the bucket is gone')\n"
        "main.run = fail; sys.argv[1:] = ['--config=configs/digits.py:tiny', '--mode=plan']\n"
        "main.start()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.endswith("RuntimeError: the bucket is gone\n")
