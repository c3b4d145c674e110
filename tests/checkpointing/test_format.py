"""A checkpoint that this version wrote, kept in the repository: later versions must read it."""

import hashlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax.checkpointing import checkpoints, restore
from rin_jax.runtime import sharding
from rin_jax.training.state import create_state
from tests import tiny

KEPT = Path(__file__).parent / "format_2"
CHANGES = {
    "model__num_blocks": 1, "model__latent_dim": 8, "model__interface_dim": 8,
    "model__num_latents": 4, "model__dropout": 0.0, "model__drop_path": 0.0,
}  # fmt: skip


def mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def values(like):
    """Values that follow from the paths alone, by no code that may change."""

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        numbers = np.random.Generator(np.random.PCG64(seed)).integers(-99, 99, leaf.shape)
        return numbers.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, like)


def write(workdir: Path) -> None:
    """Makes the fixture: python -c "import tests.test_fixture as t; t.write(t.KEPT)"."""
    experiment = tiny.experiment(**CHANGES)
    parts = values(checkpoints.state_parts(create_state(experiment, mesh(), 0)))
    placed = jax.tree.map(lambda x: jax.device_put(x, sharding.replicated(mesh())), parts)
    facts = {
        "config": experiment.config.to_dict(), "emas": list(experiment.averages),
        "images_read": 112,
        "window": {"count": 1, "skipped": 0, "in_a_row": 0, "sums": {
            "loss": 0.5, "grad_norm": 1.0, "update_norm": 2.0, "param_norm": 3.0}},
    }  # fmt: skip
    with checkpoints.Checkpoints(checkpoints.folder(str(workdir))) as saver:
        saver.save(7, placed, facts, loss=0.5)


@pytest.fixture
def workdir(tmp_path):
    return str(shutil.copytree(KEPT, tmp_path / "run"))


def test_a_run_goes_on_from_it(workdir):
    experiment = tiny.experiment(**CHANGES)
    found = restore.find_run(experiment, workdir)
    state, facts = restore.restore_state(experiment, mesh(), workdir, *found)
    parts = jax.device_get(checkpoints.state_parts(state))
    jax.tree.map(np.testing.assert_array_equal, parts, values(parts))
    assert int(state.step) == 7
    assert facts["images_read"] == 112
    assert facts["window"]["sums"]["param_norm"] == 3.0


@pytest.mark.parametrize("name", ["decay_0.9", "power_0.1"])
def test_its_averages_are_read(workdir, name):
    experiment = tiny.experiment(**CHANGES)
    step, _, params = restore.load_ema(experiment, mesh(), workdir, name)
    assert step == 7
    expected = values({f"ema_{name}": params})[f"ema_{name}"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected)
