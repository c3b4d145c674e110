"""Averages of another length, made after training, against those that a training tracked."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.jobs import train as train_lib
from rin_jax.jobs.reconstruct import reconstruct
from rin_jax.runtime import sharding
from rin_jax.sampling.weights import abstract_params, load_ema
from tests import tiny

STEPS, EVERY, LENGTH = 48, 3, 0.15
STORED = "power_0.05", "power_0.1"


def config(data_dir, **changes):
    return tiny.config(
        data__data_dir=data_dir, train__num_steps=STEPS, train__sample_every_steps=STEPS,
        train__log_every_steps=STEPS, checkpoint__every_steps=STEPS, optimizer__warmup_steps=2,
        model__num_blocks=1, sampler__num_steps=1, **changes,
    )  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, data_dir, one_device):
    """A run that stored snapshots of power averages, LENGTH among them, and its configuration."""
    workdir = str(tmp_path_factory.mktemp("stored"))
    lengths = (0.05, 0.1, LENGTH)
    run = config(
        data_dir, ema__decays=(), ema__power_lengths=lengths, ema__snapshot_every_steps=EVERY
    )
    train_lib.train(run, workdir)
    return workdir, run


def flat(params) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(params))])


def tracked(run, workdir, name) -> np.ndarray:
    """An average that the training tracked: the run's own come before those made afterwards."""
    _, found, params = load_ema(train_lib.make_experiment(run), mesh(), workdir, name)
    assert found == name
    return flat(params)


def made(run, workdir, name) -> np.ndarray:
    """An average that was made afterwards."""
    found, _ = checkpoints.find(Path(workdir, "reconstructed", name))
    shapes = abstract_params(train_lib.make_experiment(run).rin, mesh())
    return flat(checkpoints.load(found[0], {f"ema_{name}": shapes}))


def mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def without_others(path, find=checkpoints.find):
    """The checkpoints in a folder, as if they had no averages but those STORED."""
    found, damaged = find(path)
    return [
        dataclasses.replace(saved, metadata={**saved.metadata, "emas": list(STORED)})
        for saved in found
    ], damaged


@pytest.mark.slow
def test_a_length_that_was_also_tracked(stored, monkeypatch, capsys):
    """Made from the snapshots of the two others alone."""
    workdir, run = stored
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "find", without_others)
        reconstruct(run, workdir, LENGTH)
    wanted, near = tracked(run, workdir, "power_0.15"), tracked(run, workdir, "power_0.1")
    off = np.linalg.norm(made(run, workdir, "power_0.15") - wanted) / np.linalg.norm(near - wanted)
    assert 0 < off < 0.1, off  # of the way to the nearest average that was stored

    printed = capsys.readouterr().out
    assert printed.count(" power_0.05 ") == printed.count(" power_0.1 ") == STEPS // EVERY
    assert printed.count(" power_0.15 ") == 0
    assert "relative error of the profile" in printed
    table = Path(workdir, "reconstructed", "power_0.15", f"{STEPS}.txt").read_text()
    assert table in printed


def test_a_stored_length_comes_out_as_it_went_in(stored, monkeypatch):
    workdir, run = stored
    find = checkpoints.find
    monkeypatch.setattr(checkpoints, "find", lambda path: (find(path)[0][:3], {}))  # the newest
    reconstruct(run, workdir, 0.1)
    reconstruct(run, workdir, 0.1)  # again
    given = tracked(run, workdir, "power_0.1")
    np.testing.assert_allclose(made(run, workdir, "power_0.1"), given, atol=1e-6)


def test_a_damaged_snapshot_is_named(stored, tmp_path):
    workdir, run = stored
    copy = str(shutil.copytree(workdir, tmp_path / "run"))
    for path in Path(copy, "snapshots", str(EVERY), "ema_power_0.05").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"snapshots/{EVERY} is damaged"):
        reconstruct(run, copy, 0.12)


def test_mistakes_come_before_any_work(stored, data_dir, tmp_path):
    workdir, run = stored
    with pytest.raises(ConfigError, match=r"--length is 0.4; .*\(0, 0.288\]"):
        reconstruct(run, workdir, 0.4)
    with pytest.raises(ConfigError, match=r"no snapshots in .*ema.snapshot_every_steps"):
        reconstruct(run, str(tmp_path), 0.1)
    with pytest.raises(ConfigError, match=r"ema.snapshot_every_steps is 5, but there is no power"):
        train_lib.make_experiment(
            config(data_dir, ema__power_lengths=(), ema__snapshot_every_steps=5)
        )
