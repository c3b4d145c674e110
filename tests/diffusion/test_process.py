"""Conversions between eps, x0 and v; noise; scaling of input and output."""

import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion import process as process_lib
from tests.diffusion.toys import TYPES, process, target

GAMMA = jnp.float32([0.01, 0.1, 0.5, 0.9, 0.99])


def _pair(seed=0, limit=1.0):
    """x0 within its limits and eps, one example for each of GAMMA."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-limit, limit, (5, 4, 3, 2)).astype(np.float32)
    return jnp.asarray(x0), jnp.float32(rng.normal(size=x0.shape))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_a_true_prediction_gives_x0_and_eps(kind, limit):
    x0, eps = _pair(limit=limit)
    xt = process_lib.add_noise(x0, eps, GAMMA)
    prediction = target(kind, x0, eps, GAMMA)
    for convert in (process(kind, limit).to_x0_eps, process(kind, limit).to_clipped_x0_eps):
        x0_hat, eps_hat = convert(prediction, xt, GAMMA)
        np.testing.assert_allclose(x0_hat, x0, atol=1e-5)
        np.testing.assert_allclose(eps_hat, eps, atol=1e-5)
        assert np.abs(convert(prediction + 0.1, xt, GAMMA)[0] - x0).max() > 1e-2


@pytest.mark.parametrize("kind", TYPES)
def test_any_prediction_is_consistent_with_xt(kind):
    prediction, xt = (3 * x for x in _pair(1))
    x0, eps = process(kind, 0.5).to_x0_eps(prediction, xt, GAMMA)
    np.testing.assert_allclose(process_lib.add_noise(x0, eps, GAMMA), xt, atol=1e-4)
    clipped, eps = process(kind, 0.5).to_clipped_x0_eps(prediction, xt, GAMMA)
    np.testing.assert_allclose(process_lib.add_noise(clipped, eps, GAMMA), xt, atol=1e-4)
    np.testing.assert_array_equal(clipped, np.clip(x0, -0.5, 0.5))
    assert np.abs(clipped).max() == 0.5
    assert (np.abs(x0).max() > 0.5) == (kind != "x0")


def test_noise_and_velocity_rotate_image_and_noise():
    x0, eps = _pair()
    xt = process_lib.add_noise(x0, eps, GAMMA)
    v = process_lib.velocity(x0, eps, GAMMA)
    np.testing.assert_allclose(xt**2 + v**2, x0**2 + eps**2, rtol=1e-4, atol=1e-5)
    angle = np.arctan2(v, xt) - np.arctan2(eps, x0)  # v + arc from (x0, eps): minus acos(sqrt g)
    expected = -np.arccos(np.sqrt(GAMMA))[:, None, None, None]
    np.testing.assert_allclose(np.cos(angle - expected), 1, atol=1e-5)
    np.testing.assert_array_equal(process_lib.add_noise(x0, eps, jnp.ones(5)), x0)
    np.testing.assert_array_equal(process_lib.add_noise(x0, eps, jnp.zeros(5)), eps)


def test_noise_keeps_unit_variance():
    rng = np.random.default_rng(0)
    x0 = rng.choice([-1.0, 1.0], (5, 100, 100)).astype(np.float32)
    xt = process_lib.add_noise(x0, jnp.float32(rng.normal(size=x0.shape)), GAMMA)
    # The square of a standard normal has variance 2: 5 sigma of a mean of 10^4.
    np.testing.assert_allclose(jnp.mean(xt**2, (1, 2)), 1, atol=5 * np.sqrt(2 / 1e4))


def test_eps_is_finite_without_noise():
    x0, _ = _pair()
    assert np.isfinite(process_lib.eps_from_x0(x0, 0.9 * x0, jnp.ones(5))).all()
    assert not process_lib.eps_from_x0(x0, x0, jnp.ones(5)).any()


def test_network_input_has_unit_deviation_and_keeps_its_mean():
    rng = np.random.default_rng(0)
    scale, shift = np.float32([0.1, 1.0, 7.0]), np.float32([0.05, -2.0, 3.0])
    xt = rng.normal(size=(3, 6, 5, 2)).astype(np.float32)
    xt = jnp.asarray(xt * scale[:, None, None, None] + shift[:, None, None, None])
    out = np.asarray(process(normalize_input=True).network_input(xt), np.float64)
    axes = (1, 2, 3)
    np.testing.assert_allclose(out.std(axes), 1, atol=1e-5)
    np.testing.assert_allclose(out.mean(axes), xt.mean(axes) / xt.std(axes), rtol=1e-4)
    assert np.abs(out.mean(axes)).min() > 0.1
    assert process(normalize_input=False).network_input(xt) is xt


def test_unscale_undoes_the_scale():
    x0, _ = _pair()
    for scale in (0.3, 1.0, 2.0):
        proc = process(input_scale=scale)
        np.testing.assert_allclose(proc.unscale(x0 * scale), x0, rtol=1e-6)
        assert np.abs(proc.unscale(proc.clip(100 * x0))).max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "x"}, ["prediction_type is 'x'", "eps, x0, v"]),
        ({"input_scale": 0.0}, ["input_scale is 0.0"]),
        ({"input_scale": -1.0}, ["input_scale is -1.0"]),
        ({"input_scale": float("nan")}, ["input_scale is nan"]),
    ],
)
def test_errors_name_field_and_value(changes, words):
    with pytest.raises(ValueError, match="diffusion") as caught:
        process(**changes)
    for word in words:
        assert word in str(caught.value)
