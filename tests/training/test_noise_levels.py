"""The loss by noise level: its bins, and what the step makes of them."""

import jax
import numpy as np
import pytest

from rin_jax.runtime import sharding
from rin_jax.training import noise_levels
from rin_jax.training.state import create_state
from rin_jax.training.step import compile_train_step
from tests import tiny


def test_errors_fall_into_the_bin_of_their_log_snr():
    logsnr = np.random.default_rng(0).uniform(-9, 9, 1000).astype(np.float32)
    errors = np.random.default_rng(1).uniform(size=1000).astype(np.float32)
    gamma = 1 / (1 + np.exp(-logsnr))
    found = noise_levels.figures(np.asarray(noise_levels.by_level(errors, gamma)))
    edges = [-np.inf, *noise_levels.EDGES, np.inf]
    for name, low, high in zip(noise_levels.NAMES, edges[:-1], edges[1:], strict=True):
        inside = (low <= logsnr) & (logsnr < high)
        assert found[f"{noise_levels.PREFIX}{name}"] == pytest.approx(
            errors[inside].mean(), rel=1e-2
        )
        for bound in {low, high} - {-np.inf, np.inf}:
            assert f"_{bound:.0f}" in name


def test_both_ends_of_a_schedule_have_a_bin_and_an_empty_one_no_figure():
    levels = noise_levels.by_level(np.float32([1, 2, 4]), np.float32([0, 1, 1]))
    found = noise_levels.figures(np.asarray(levels))
    assert found == {f"{noise_levels.PREFIX}{name}": x
                     for name, x in (("0_below_-6", 1.0), ("7_above_6", 3.0))}  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_levels_of_a_step_make_up_its_loss(accumulation):
    still = {"model__dropout": 0.0, "model__drop_path": 0.0}
    experiment = tiny.experiment(**still, train__accumulation_steps=accumulation)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    state = create_state(experiment, mesh, 0)
    _, metrics = compile_train_step(experiment, mesh)(state, tiny.batches(1)[0])
    sums, counts = np.asarray(metrics["levels"]) * accumulation
    assert counts.sum() == 16
    assert (counts > 0).sum() > 3
    np.testing.assert_allclose(sums.sum() / 16, metrics["loss"], rtol=1e-5)
