"""A checkpoint that this version wrote, kept in the repository: later versions must read it."""

import hashlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax.checkpointing import checkpoints
from rin_jax.runtime import sharding
from rin_jax.sampling.weights import load_ema
from rin_jax.training import resume
from rin_jax.training.state import create_state, items_of, metadata_of
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
    """Makes the fixture: python -c "from tests.checkpointing.test_format import *; write(KEPT)"."""
    experiment = tiny.experiment(**CHANGES)
    state = create_state(experiment, mesh(), 0)
    items = values(items_of(state))
    placed = jax.tree.map(lambda x: jax.device_put(x, sharding.replicated(mesh())), items)
    with checkpoints.Checkpoints(checkpoints.folder(str(workdir))) as saver:
        saver.save(7, placed, metadata_of(state, experiment, 112), loss=0.5)


@pytest.fixture
def workdir(tmp_path):
    return str(shutil.copytree(KEPT, tmp_path / "run"))


def test_a_run_goes_on_from_it(workdir):
    experiment = tiny.experiment(**CHANGES)
    found = resume.find_run(experiment, workdir)
    state, metadata = resume.restore_state(experiment, mesh(), workdir, *found)
    items = jax.device_get(items_of(state))
    jax.tree.map(np.testing.assert_array_equal, items, values(items))
    assert int(state.step) == 7
    assert metadata["images_read"] == 112
    assert "time_scale" not in metadata["config"]["model"]  # older than that field


@pytest.mark.parametrize("name", ["decay_0.9", "power_0.1"])
def test_its_averages_are_read(workdir, name):
    experiment = tiny.experiment(**CHANGES)
    step, _, params = load_ema(experiment, mesh(), workdir, name)
    assert step == 7
    expected = values({f"ema_{name}": params})[f"ema_{name}"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected)
