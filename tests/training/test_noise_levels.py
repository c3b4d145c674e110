"""The loss by noise level: its bins. What a step makes of them: test_step.py."""

import numpy as np
import pytest

from rin_jax.training import noise_levels


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
