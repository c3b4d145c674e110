"""One device and eight give the same training, however the eight are arranged."""

import functools

import jax
import numpy as np
import pytest

from rin_jax.experiment import make_experiment
from rin_jax.runtime import sharding
from rin_jax.training.state import abstract_state, create_state
from rin_jax.training.step import compile_train_step
from tests.test_configs import load
from tests.training.test_step import difference

STEPS, BATCH = 10, 16
MESHES = [
    ("digits", (8, 1, 1)), ("digits", (1, 8, 1)), ("imagenet64", (2, 2, 2)),
]  # fmt: skip


def experiment(name: str):
    """The tiny form of a configuration, of images of four tokens or sixteen."""
    config = load(name).get_config("tiny")
    config.train.batch_size, config.train.num_steps = BATCH, 2 * STEPS
    config.optimizer.warmup_steps = 2
    config.data.image_size = 16 if name == "imagenet64" else 8
    config.data.num_classes, config.model.dtype = 10, "float32"
    return make_experiment(config)


@functools.cache
def fresh(name: str):
    """The state before the first step, on the host."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return jax.device_get(create_state(experiment(name), mesh, 0))


def train(name: str, mesh):
    """(losses, parameters) of STEPS steps on random images."""
    run = experiment(name)
    step = compile_train_step(run, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(run, mesh))
    state = jax.device_put(fresh(name), places)  # created on several: tests/jobs/test_pod.py
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        images = rng.integers(0, 256, (BATCH, *run.rin.example_shape), dtype=np.uint8)
        labels = rng.integers(0, 10, BATCH, dtype=np.int32)
        batch = sharding.global_batch({"image": images, "label": labels}, mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state.params)


@functools.cache
def on_one_device(name: str):
    return train(name, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), MESHES)
def test_a_mesh_trains_like_one_device(name, sizes, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)  # the tiny forms have no larger arrays
    losses, params = train(name, sharding.make_mesh(*sizes))
    expected_losses, expected_params = on_one_device(name)
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-5)
    assert difference(params, expected_params) < 1e-5


def test_losses_move(monkeypatch):
    """The comparison above would see a step that does nothing."""
    losses, _ = on_one_device("digits")
    assert len(set(losses.round(4))) == STEPS
