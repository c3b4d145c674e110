"""A run whose workdir is in a bucket is the run in a folder, whatever happens to it."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from rin_jax import ConfigError
from rin_jax.jobs import train as train_lib
from rin_jax.runtime import workdir_lock
from tests import tiny, torture, xla
from tests.conftest import ROOT
from tests.storage import Fault

RUN = "gs://bucket/run"
CHILD = """
    import sys
    from rin_jax.jobs import train
    from tests import tiny
    train.train(tiny.config(data__data_dir=sys.argv[2], train__sample_every_steps=2), sys.argv[1])
"""


def config_of(data_dir):
    """Samples, and so saves, only where there is a log line."""
    return tiny.config(data__data_dir=data_dir, train__sample_every_steps=2)


@pytest.fixture(scope="module", autouse=True)
def one(one_device):
    """One device."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """What a run in a folder leaves that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train_lib.train(config_of(data_dir), str(workdir))
    return torture.contents(workdir)


@pytest.fixture
def killed(storage, data_dir):
    """A run in a bucket that was killed while it saved the checkpoint of step 6."""
    storage.faults.append(Fault("slow", "POST .*checkpoints/6/params", seconds=30.0))
    environment = os.environ | {"XLA_FLAGS": xla.FAST}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), RUN, data_dir],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while "slow" not in storage.happened:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    storage.faults.clear()


def contents(storage, folder) -> dict:
    for name in storage.names("bucket", "run/"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.get("bucket", name).data)
    return torture.contents(folder / "run")


@pytest.mark.slow
def test_a_run_in_a_bucket_survives_kills_damage_and_second_starts(
    storage, killed, undisturbed, data_dir, tmp_path, monkeypatch, capsys
):
    config = config_of(data_dir)
    assert storage.names("bucket", "run/checkpoints/6/")
    assert storage.names("bucket", "run/lock.json")
    path = next(n for n in storage.names("bucket", "run/checkpoints/4/params/") if "_0/d/" in n)
    data = bytearray(storage.get("bucket", path).data)
    data[len(data) // 2] ^= 1
    storage.put("bucket", path, data)
    monkeypatch.setattr(workdir_lock, "EXPIRY", 1.5)
    monkeypatch.setattr(workdir_lock, "RENEWAL", 0.3)
    with (
        workdir_lock.hold(RUN),
        pytest.raises(ConfigError, match="another run writes to gs://bucket/run"),
    ):
        train_lib.train(config, RUN)
    train_lib.train(config, RUN)
    out = capsys.readouterr().out
    assert "damaged checkpoints are now in gs://bucket/run/damaged" in out
    assert "resumed from checkpoint 2 in gs://bucket/run" in out
    damaged = storage.names("bucket", "run/damaged/")
    assert any(name.startswith("run/damaged/4-0/params/") for name in damaged)
    assert not any("damaged/6" in name for name in damaged)  # a save that was not finished is none
    assert contents(storage, tmp_path) == undisturbed
    assert not storage.names("bucket", "run/lock.json")

    requests = len(storage.requests)
    train_lib.train(config, RUN)
    assert "is trained to step 6" in capsys.readouterr().out
    assert not [x for _, x in storage.requests[requests:] if not x.startswith("GET")]
