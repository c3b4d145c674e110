"""Running averages: weights, starts, and power averages made afterwards from stored ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.training import ema


def weights_of(decays, lengths):
    return ema.Ema(decays, lengths, None).weights()


def follow(history, averages, start=0.0):
    """Averages after each of the values in `history`, all started from `start`."""
    emas = {name: {"w": jnp.float32(start)} for name in averages}
    states = []
    for t, value in enumerate(history, start=1):
        emas = ema.update(emas, {"w": jnp.float32(value)}, averages, jnp.int32(t))
        states.append({name: float(tree["w"]) for name, tree in emas.items()})
    return states


def test_a_constant_decay_is_the_weighted_mean_of_its_history():
    history = np.random.default_rng(0).normal(size=6)
    last = follow(history[1:], weights_of((0.7,), ()), history[0])[-1]
    weights = 0.3 * 0.7 ** np.arange(4, -1, -1)
    expected = 0.7**5 * history[0] + weights @ history[1:]
    assert last["decay_0.7"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_a_power_average_has_its_profile_and_forgets_its_start(length):
    """Weights k^(gamma+1) - (k-1)^(gamma+1) over t^(gamma+1), whatever it started from."""
    steps = 400
    averages = weights_of((), (length,))
    history = np.random.default_rng(1).normal(size=steps)
    last = follow(history, averages, start=1e6)[-1][ema.power_name(length)]
    k = np.arange(1, steps + 1)
    power = ema.exponent(length) + 1
    weights = (k / steps) ** power - ((k - 1) / steps) ** power
    assert last == pytest.approx(weights @ history, abs=2e-5)
    mean = weights @ (k - 0.5)  # its standard deviation is the length, as a share of the training
    deviation = np.sqrt(weights @ (k - 0.5) ** 2 - mean**2) / steps
    assert deviation == pytest.approx(length, rel=2e-3)


def test_the_weight_keeps_its_digits_late_in_training():
    (weight,) = weights_of((), (0.05,)).values()
    power = ema.exponent(0.05) + 1
    for t in (10, 10**4, 10**6):
        exact = -np.expm1(power * np.log1p(-1 / np.float64(t)))
        assert float(weight(jnp.int32(t))) == pytest.approx(exact, rel=1e-5)
    assert float(weight(jnp.int32(1))) == 1.0


def test_an_average_of_what_does_not_change_does_not_change():
    averages = weights_of((0.9999,), (0.05, 0.1))
    value = float(np.float32(np.pi))
    assert all(set(state.values()) == {value} for state in follow([value] * 50, averages, value))


def test_inner_products_of_profiles():
    tau = (np.arange(200_000) + 0.5) / 200_000 * 50

    def profile(t, gamma):
        return np.where(tau < t, (gamma + 1) * (tau / t) ** gamma / t, 0.0)

    for a, b in (((30, 7.0), (50, 17.0)), ((50, 1.8), (20, 7.0)), ((50, 7.0), (50, 7.0))):
        numeric = np.sum(profile(*a) * profile(*b)) * 50 / 200_000
        assert ema.inner_product(*map(np.float64, a + b)) == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_stored_average_is_its_own_reconstruction(length):
    stored = [(step, sigma) for step in range(100, 1001, 100) for sigma in (0.05, 0.1)]
    found, error = ema.coefficients(stored, 1000, length)
    expected = [float(entry == (1000, length)) for entry in stored]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert error < 1e-6


def test_more_snapshots_reconstruct_better():
    def error(count):
        steps = np.linspace(0, 2000, count + 1)[1:]
        stored = [(int(step), sigma) for step in steps for sigma in (0.05, 0.1)]
        return ema.coefficients(stored, 2000, 0.15)[1]

    errors = [error(count) for count in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < errors[0]


@pytest.mark.parametrize("length", [0.07, 0.13])
def test_a_reconstruction_agrees_with_the_average_that_was_tracked(length):
    """On a random walk, which parameters resemble: the error is that of the profile."""
    steps, every = 1600, 100
    averages = weights_of((), (0.05, 0.1, length))
    history = np.cumsum(np.random.default_rng(2).normal(size=steps)) / np.sqrt(steps)
    states = follow(history, averages)
    stored = [(t, sigma) for t in range(every, steps + 1, every) for sigma in (0.05, 0.1)]
    found, error = ema.coefficients(stored, steps, length)
    values = [states[t - 1][ema.power_name(sigma)] for t, sigma in stored]
    made = found @ values
    tracked = states[-1][ema.power_name(length)]
    spread = np.std(history)
    assert abs(made - tracked) < 0.01 * spread
    assert error < 0.02
    other = states[-1][ema.power_name(0.05)]
    assert abs(other - tracked) > 0.05 * spread  # the neighbour would not do


@pytest.mark.parametrize(
    ("decays", "lengths", "message"),
    [
        ((1.0,), (), r"ema.decays has 1.0; a decay is in \[0, 1\)"),
        ((), (0.3,), r"ema.power_lengths has 0.3; .*\(0, 0.288\]"),
        ((), (0.0,), "ema.power_lengths has 0.0"),
        ((0.9, 0.9), (), "an average is given twice"),
        ((), (), "both empty"),
    ],
)
def test_mistakes_are_named(decays, lengths, message):
    with pytest.raises(ValueError, match=message):
        weights_of(decays, lengths)
