"""One device and eight give the same training, however the eight are arranged."""

import jax
import numpy as np
import pytest

from rin_jax.runtime import sharding
from rin_jax.training.state import abstract_state, create_state
from rin_jax.training.step import compile_train_step
from tests import tiny
from tests.training.test_step import difference

STEPS = 5


@pytest.fixture(scope="module")
def fresh():
    """The state before the first step, on the host."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return jax.device_get(create_state(tiny.experiment(), mesh, 0))


def train(fresh, mesh):
    """(losses, parameters) of STEPS steps on random images."""
    run = tiny.experiment()
    step = compile_train_step(run, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, mesh))
    state = jax.device_put(fresh, places)  # created on several: tests/jobs/test_pod.py
    losses = []
    for batch in tiny.batches(STEPS):
        state, metrics = step(state, sharding.global_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device(fresh):
    return train(fresh, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_mesh_trains_like_one_device(sizes, fresh, on_one_device, monkeypatch):
    """Dropout and dropped paths too."""
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)  # TINY has no larger arrays
    losses, params = train(fresh, sharding.make_mesh(*sizes))
    expected_losses, expected_params = on_one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-5)
    assert difference(params, expected_params) < 1e-5


def test_losses_move(on_one_device):
    """The comparison above would see a step that does nothing."""
    losses, _ = on_one_device
    assert len(set(losses.round(4))) == STEPS
