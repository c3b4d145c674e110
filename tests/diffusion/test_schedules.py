"""Noise schedules and their logarithmic signal-to-noise ratio."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion.schedules import FOREIGN_BETWEEN, SCHEDULES, logsnr, make_schedule

CASES = {
    "offset_cosine": {},
    "cosine": {"start": 0.2, "end": 1.0, "tau": 0.9},
    "sigmoid": {"start": -3.0, "end": 2.0, "tau": 0.9},
    "linear": {},
    "logarithmic": {"start": 1.0, "end": 100.0, "reverse": False},
}
# These end where they are told to, not at 1 and 0.
GRIDS = {
    "logsnr": {"start": 12.0, "end": -9.0},
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
}


@pytest.mark.parametrize("name", CASES)
def test_power_falls_from_one_to_nothing(name):
    schedule = make_schedule(name, **CASES[name])
    gamma = np.asarray(schedule(jnp.linspace(0, 1, 101)))
    assert gamma.dtype == np.float32
    assert (np.diff(gamma) < 0).all()
    floor = {"offset_cosine": 6.1e-9}.get(name, 1e-9)
    assert gamma[-1] == pytest.approx(floor, rel=0.05)
    if name == "offset_cosine":
        assert 0.9e-7 < 1 - gamma[0] < 2e-7
    else:
        assert 1 - gamma[0] < 0.9e-7  # one rounding


def test_log_snr_falls_in_equal_steps():
    gamma = make_schedule("logsnr", **GRIDS["logsnr"])(jnp.linspace(0, 1, 22))
    np.testing.assert_allclose(logsnr(gamma)[2:], np.arange(12, -10, -1)[2:], atol=2e-3)
    expected = 1 / (1 + np.exp(-np.arange(12.0, -10, -1)))
    np.testing.assert_allclose(gamma, expected, rtol=1e-6)


def test_noise_of_edm_is_its_formula():
    """Equation 5 of the paper, with t = 1 - i / (N - 1)."""
    n = 18
    i = np.arange(n)
    sigma = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    gamma = np.float64(make_schedule("edm", **GRIDS["edm"])(jnp.float32(1 - i / (n - 1))))
    np.testing.assert_allclose(gamma, 1 / (1 + sigma**2), rtol=1e-5)
    np.testing.assert_allclose(1 - gamma, sigma**2 / (1 + sigma**2), atol=1.2e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_defaults_are_enough(name):
    gamma = np.asarray(make_schedule(name, **SCHEDULES[name].defaults)(jnp.linspace(0, 1, 11)))
    assert (np.diff(gamma) < 0).all()
    assert gamma[0] > 0.99
    assert gamma[-1] < 2e-4


@pytest.mark.parametrize("name", CASES | GRIDS)
def test_shape_is_kept_and_elements_do_not_mix(name):
    schedule = make_schedule(name, **(CASES | GRIDS)[name])
    t = jnp.linspace(0, 1, 6)
    assert schedule(t.reshape(2, 3)).shape == (2, 3)
    assert schedule(t[2]).shape == ()
    np.testing.assert_allclose(schedule(t.reshape(2, 3))[1, 2], schedule(t[5]), rtol=1e-6)


def test_formulas_in_float64():
    t = np.linspace(0, 1, 21)
    expected = {
        "offset_cosine": np.cos((t + 2e-4) / (1 + 2.5e-4) * np.pi / 2) ** 2,
        "linear": 1 - t,
        "logarithmic": 1 - np.log(1 + 99 * t) / np.log(100),
    }
    u = 0.2 + 0.8 * t
    expected["cosine"] = np.abs(np.cos(np.pi / 2 * u)) ** 1.8 / np.cos(np.pi / 2 * 0.2) ** 1.8
    f = 1 / (1 + np.exp((-3 + 5 * t) / 0.9))
    expected["sigmoid"] = (f - f[-1]) / (f[0] - f[-1])
    for name, gamma in expected.items():
        ours = make_schedule(name, **CASES[name])(jnp.float32(t))
        np.testing.assert_allclose(ours, np.clip(gamma, 1e-9, 1), atol=2e-6, err_msg=name)


def test_reversed_logarithm_is_the_mirror_image():
    t = jnp.linspace(0, 1, 11)
    forward = make_schedule("logarithmic", **CASES["logarithmic"])(t)
    backward = make_schedule("logarithmic", **(CASES["logarithmic"] | {"reverse": True}))(t)
    np.testing.assert_allclose(backward, 1 - forward[::-1], atol=1e-6)
    assert (forward[1:-1] < backward[1:-1] - 0.1).all()


def test_logsnr_is_the_logarithm_of_the_ratio():
    gamma = jnp.float32([1e-6, 1e-3, 0.25, 0.5, 0.9, 0.999])
    value = logsnr(gamma)
    np.testing.assert_allclose(np.exp(value), gamma / (1 - gamma), rtol=1e-4)
    np.testing.assert_allclose(logsnr(1 - gamma)[2:5], -value[2:5], atol=1e-5)
    assert np.isfinite(logsnr(jnp.float32([0.0, 1.0]))).all()
    assert (np.diff(logsnr(jnp.float32([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0]))) > 0).all()


FORMS = [
    *(CASES | GRIDS).items(),
    ("cosine", {"start": 0.0, "end": 1.0, "tau": 1.0}),
    ("offset_cosine", {"small": 1e-3, "stretch": 2e-3}),
    ("logarithmic", {"start": 1.0, "end": 10.0, "reverse": True}),
]


@pytest.mark.parametrize(("name", "parameters"), FORMS)
def test_the_formula_for_programs_without_jax_is_the_function(name, parameters):
    assert {form for form, _ in FORMS} == set(SCHEDULES)
    family = SCHEDULES[name]
    t = np.linspace(0, 1, 101, dtype=np.float32)
    names = {name: getattr(math, name) for name in ("cos", "exp", "log", "pi")}
    names |= {p: declared.default for p, declared in family.parameters.items()} | parameters
    exec(FOREIGN_BETWEEN, names)
    gamma = [eval(family.formula, names, {"t": float(u)}) for u in t]
    np.testing.assert_allclose(gamma, make_schedule(name, **parameters)(t), rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("sigmod", {}, ["'sigmod'", "Did you mean 'sigmoid'?", "offset_cosine"]),
        ("zzz", {}, ["'zzz'", "offset_cosine, cosine, sigmoid, linear, logarithmic"]),
        ("sigmoid", {"start": -3.0, "end": 3.0}, ["'sigmoid'", "'tau'", "['end', 'start']"]),
        ("linear", {"tau": 1.0}, ["'linear'", "[]", "['tau']"]),
        ("cosine", CASES["cosine"] | {"taw": 1.0}, ["'cosine'", "'taw'"]),
    ],
)
def test_errors_say_what_there_is(name, parameters, words):
    with pytest.raises(ValueError, match="choose one of|takes") as caught:
        make_schedule(name, **parameters)
    for word in words:
        assert word in str(caught.value)
    assert name != "zzz" or "mean" not in str(caught.value)
