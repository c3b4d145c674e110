"""Samplers and guidance against denoisers known in closed form."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion.guidance import classifier_free
from rin_jax.diffusion.process import add_noise
from rin_jax.diffusion.samplers import UPDATES, Sampler, example_noise
from rin_jax.diffusion.schedules import make_schedule
from tests.diffusion.toys import TYPES, gaussian, oracle, process, ramp

COSINE = make_schedule("cosine", start=0.0, end=1.0, tau=1.0)
WIDE = 100.0  # an input_scale at which nothing is clipped


def _sampler(**changes) -> Sampler:
    plain = Sampler(process("x0", WIDE), ramp, "ddim", 3, 0.0, 0.0)
    return dataclasses.replace(plain, **changes)


def _normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def _forbidden(i):
    raise AssertionError("ddim asked for fresh noise")


# An oracle.


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("kind", TYPES)
def test_ddim_lands_on_the_image_an_oracle_knows(kind, num_steps):
    images = jnp.tanh(_normal(2, 3, 3, 1))
    sampler = _sampler(process=process(kind, 0.5), num_steps=num_steps)
    for seed in (1, 2):
        noise = _normal(*images.shape, seed=seed)
        out = sampler.sample(oracle(kind, 0.5 * images), noise, None, _forbidden)
        np.testing.assert_allclose(out, images, atol=1e-5)
    out = sampler.sample(oracle(kind, 0.5 * images + 0.1), noise, None, _forbidden)
    assert np.abs(out - images).max() > 0.1


@pytest.mark.parametrize("kind", TYPES)
def test_ddim_stays_on_the_line_of_one_image_and_one_noise(kind):
    x0, eps = jnp.tanh(_normal(2, 5)), _normal(2, 5, seed=1)
    sampler = _sampler(process=process(kind), num_steps=5)
    for t, t_next in zip(*sampler.times(), strict=True):
        xt = add_noise(x0, eps, jnp.full(2, ramp(t)))
        x_next, _, x0_hat = sampler.step(oracle(kind, x0), xt, None, None, t, t_next, None)
        expected = add_noise(x0, eps, jnp.full(2, ramp(t_next)))
        np.testing.assert_allclose(x_next, expected, atol=1e-5)
        np.testing.assert_allclose(x0_hat, x0, atol=1e-5)
        assert np.abs(x_next - xt).max() > 1e-2


# Gaussian data.


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_ddim_maps_noise_to_gaussian_data(kind):
    mean, std, noise = 0.3, 0.4, _normal(4, 50)
    exact = mean + std * noise  # the probability flow keeps the standardised value

    def error(num_steps):
        sampler = _sampler(process=process(kind, WIDE), schedule=COSINE, num_steps=num_steps)
        sample = jax.jit(lambda x: sampler.sample(gaussian(kind, mean, std), x, None, _forbidden))
        return float(jnp.abs(sample(noise) * WIDE - exact).max())

    errors = [error(n) for n in (16, 32, 64, 128)]
    assert errors[-1] < 0.03
    for coarse, fine in itertools.pairwise(errors):
        assert 0.4 < fine / coarse < 0.6  # a first-order method


def _one_step(name, mean, std, gamma, gamma_next):
    """Mean and variance of x_next from xt distributed as at gamma, and the number of pixels."""
    count = 200_000
    rng = np.random.default_rng(0)
    spread = np.sqrt(gamma * std**2 + 1 - gamma)
    xt = jnp.float32(np.sqrt(gamma) * mean + spread * rng.normal(size=(1, count)))
    sampler = _sampler(schedule=lambda t: t, name=name)
    fresh = jnp.float32(rng.normal(size=(1, count)))
    x_next, _, _ = sampler.step(
        gaussian("x0", mean, std), xt, None, None, jnp.float32(gamma), jnp.float32(gamma_next),
        fresh,
    )  # fmt: skip
    return float(x_next.mean()), float(x_next.var()), count


@pytest.mark.parametrize(("gamma", "gamma_next"), [(0.1, 0.3), (0.3, 0.8), (0.7, 0.99)])
@pytest.mark.parametrize(("name", "std", "wrong"), [
    ("ddpm_large", 1.0, "ddpm_small"),  # exact for data of unit variance,
    ("ddpm_small", 0.0, "ddpm_large"),  # exact for a single point, in steps of any length
])  # fmt: skip
def test_ddpm_steps_keep_the_distribution(name, std, wrong, gamma, gamma_next):
    mean = 0.5
    variance = gamma_next * std**2 + 1 - gamma_next
    got_mean, got_variance, count = _one_step(name, mean, std, gamma, gamma_next)
    assert abs(got_mean - np.sqrt(gamma_next) * mean) < 5 * np.sqrt(variance / count)
    assert abs(got_variance / variance - 1) < 5 * np.sqrt(2 / count)
    assert abs(_one_step(wrong, mean, std, gamma, gamma_next)[1] / variance - 1) > 0.01


@pytest.mark.parametrize("name", UPDATES)
def test_samples_have_the_mean_and_variance_of_the_data(name):
    mean, std, count = 0.3, 0.25, 40_000
    sampler = _sampler(schedule=COSINE, name=name, num_steps=200)
    key = jax.random.key(1)

    @jax.jit
    def sample(noise):
        return sampler.sample(
            gaussian("x0", mean, std),
            noise,
            None,
            lambda i: jax.random.normal(jax.random.fold_in(key, i), noise.shape),
        )

    out = np.asarray(sample(_normal(1, count))) * WIDE
    assert abs(out.mean() - mean) < 0.01
    assert abs(out.std() / std - 1) < 0.04


# The result.


def test_the_estimate_is_clipped_and_unscaled():
    def far(xt, gamma, cond, latents):
        return jnp.where(xt > 0, 5.0, 0.1), latents

    noise = _normal(2, 8)
    for name in UPDATES:
        sampler = _sampler(process=process("x0", 0.5), name=name, num_steps=1)
        out = sampler.sample(far, noise, None, lambda i: _normal(2, 8, seed=1))
        np.testing.assert_allclose(out, np.where(noise > 0, 1.0, 0.2), rtol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_network_sees_its_own_input(normalize):
    def echo(xt, gamma, cond, latents):
        return jnp.zeros_like(xt), {"xt": xt, "gamma": gamma, "cond": cond}

    sampler = _sampler(process=process("x0", 1.0, normalize))
    xt = 3 * _normal(2, 50) + 1
    old = {"xt": xt, "gamma": jnp.zeros(2), "cond": jnp.zeros(2)}
    t = jnp.float32(0.25)
    x_next, seen, _ = sampler.step(echo, xt, old, jnp.float32([4, 5]), t, t, None)
    expected = xt / xt.std(1, keepdims=True) if normalize else xt
    np.testing.assert_allclose(seen["xt"], expected, rtol=1e-5)
    np.testing.assert_allclose(seen["gamma"], [ramp(0.25)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(seen["cond"], [4, 5])
    np.testing.assert_allclose(x_next, xt, rtol=1e-5)  # x0 = 0, the same gamma, the raw xt


# What steps hand on.


def _counter(xt, gamma, cond, latents):
    """Predicts how often it was called before; the latents count."""
    count = jnp.zeros(xt.shape[:1]) if latents is None else latents["count"]
    return jnp.broadcast_to(count[:, None], xt.shape), {"count": count + 1}


@pytest.mark.parametrize("name", UPDATES)
def test_latents_are_carried(name):
    for num_steps in (1, 2, 5):
        sampler = _sampler(name=name, num_steps=num_steps)
        out = sampler.sample(_counter, _normal(2, 3), None, lambda i: jnp.zeros((2, 3)))
        np.testing.assert_allclose(out * WIDE, num_steps - 1, atol=1e-5)


def test_latents_decay_to_an_exponential_mean():
    def constant(xt, gamma, cond, latents):
        before = jnp.zeros(xt.shape) if latents is None else latents
        return before, jnp.full(xt.shape, 8.0)

    for decay, expected in ((0.0, 8.0), (0.25, 8 * (1 - 0.25**3)), (0.5, 7.0)):
        sampler = _sampler(num_steps=4, latent_decay=decay)
        out = sampler.sample(constant, _normal(2, 3), None, _forbidden)
        np.testing.assert_allclose(out * WIDE, expected, rtol=1e-5)


def test_times():
    t, t_next = _sampler(num_steps=4).times()
    np.testing.assert_allclose(t, [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(t_next, [0.75, 0.5, 0.25, 0])
    further, ahead = _sampler(num_steps=4, time_difference=1.5).times()
    np.testing.assert_array_equal(further, t)
    np.testing.assert_allclose(ahead, [0.375, 0.125, 0, 0])
    noise, denoise_fn = _normal(2, 20), gaussian("x0", 0.3, 0.4)
    plain = _sampler(num_steps=4).sample(denoise_fn, noise, None, _forbidden)
    shifted = _sampler(num_steps=4, time_difference=1.5).sample(denoise_fn, noise, None, _forbidden)
    assert np.abs(plain - shifted).max() * WIDE > 1e-2


@pytest.mark.parametrize("name", UPDATES)
def test_only_ddpm_uses_fresh_noise(name):
    sampler, noise = _sampler(name=name, num_steps=4), _normal(2, 20)

    def sample(seed):
        fresh = _normal(4, 2, 20, seed=seed)
        return sampler.sample(gaussian("x0", 0.3, 0.4), noise, None, lambda i: fresh[i])

    np.testing.assert_array_equal(sample(1), sample(1))
    assert (np.abs(sample(1) - sample(2)).max() * WIDE > 0.1) == (name != "ddim")


def test_an_examples_noise_is_its_own():
    keys = jax.random.split(jax.random.key(0), 16)
    first, fresh = example_noise(keys, (30, 30))
    draws = jnp.stack([first, fresh(0), fresh(1), fresh(7)])
    assert abs(float(draws.mean())) < 5 / np.sqrt(draws.size)
    assert abs(float(draws.std()) - 1) < 5 / np.sqrt(2 * draws.size)
    flat = np.asarray(draws).reshape(64, 900)  # all of them independent of each other
    assert np.abs(np.corrcoef(flat) - np.eye(64)).max() < 6 / np.sqrt(900)
    for members in ([0], [0, 1, 2], [9, 3]):
        some, some_fresh = example_noise(keys[jnp.array(members)], (30, 30))
        np.testing.assert_array_equal(some, first[jnp.array(members)])
        np.testing.assert_array_equal(some_fresh(7), fresh(7)[jnp.array(members)])


def test_a_sample_is_the_same_in_any_batch():
    keys = jax.random.split(jax.random.key(0), 16)
    sampler = _sampler(name="ddpm_small", num_steps=3)

    def sample(keys):
        noise, noise_fn = example_noise(keys, (4, 4))
        return sampler.sample(gaussian("x0", 0.3, 0.4), noise, None, noise_fn) * WIDE

    whole = sample(keys)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    np.testing.assert_allclose(sample(keys[:1]), whole[:1], atol=1e-5)
    np.testing.assert_allclose(sample(keys[4:7]), whole[4:7], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "euler"}, ["name is 'euler'", "ddim, ddpm_large, ddpm_small"]),
        ({"num_steps": 0}, ["num_steps is 0"]),
        ({"time_difference": -0.5}, ["time_difference is -0.5"]),
        ({"latent_decay": 1.0}, ["latent_decay is 1.0"]),
        ({"latent_decay": -0.1}, ["latent_decay is -0.1"]),
    ],
)
def test_errors_name_field_and_value(changes, words):
    with pytest.raises(ValueError, match="sampler") as caught:
        _sampler(**changes)
    for word in words:
        assert word in str(caught.value)


# Guidance.


def _conditional(xt, gamma, cond, latents):
    """Depends on every argument, example by example."""
    shift = cond["label"][:, None] + gamma[:, None]
    shift = shift if latents is None else shift + latents["z"][:, None]
    return jnp.sin(xt) * shift, {"z": 10 * cond["label"] + xt[:, 0]}


def test_no_guidance_is_no_wrapper():
    assert classifier_free(_conditional, None, 0.0) is _conditional
    with pytest.raises(ValueError, match=r"guidance_scale is -0\.5"):
        classifier_free(_conditional, None, -0.5)


@pytest.mark.parametrize("previous", [None, {"z": jnp.float32([0.5, -1.0, 2.0])}])
def test_guidance_is_two_passes_in_one_batch(previous):
    sizes = []

    def spy(xt, gamma, cond, latents):
        sizes.append(xt.shape[0])
        return _conditional(xt, gamma, cond, latents)

    xt, gamma = _normal(3, 4), jnp.float32([0.1, 0.5, 0.9])
    cond, null = {"label": jnp.float32([1, 2, 3])}, {"label": jnp.float32([-1, -1, -1])}
    guided, latents = classifier_free(spy, null, 1.5)(xt, gamma, cond, previous)
    assert sizes == [6]
    with_cond, expected = _conditional(xt, gamma, cond, previous)
    without, other = _conditional(xt, gamma, null, previous)
    np.testing.assert_allclose(guided, 2.5 * with_cond - 1.5 * without, rtol=1e-5)
    np.testing.assert_allclose(latents["z"], expected["z"], rtol=1e-6)
    assert np.abs(latents["z"] - other["z"]).min() > 1


def test_guidance_inside_a_sampler():
    cond, null = {"label": jnp.float32([1, 2])}, {"label": jnp.zeros(2)}
    sampler, noise = _sampler(num_steps=3), _normal(2, 4)

    def separate(xt, gamma, cond, latents):
        with_cond, carried = _conditional(xt, gamma, cond, latents)
        return 3 * with_cond - 2 * _conditional(xt, gamma, null, latents)[0], carried

    batched = classifier_free(_conditional, null, 2.0)
    out = [sampler.sample(f, noise, cond, _forbidden) for f in (batched, separate, _conditional)]
    np.testing.assert_allclose(out[0], out[1], rtol=1e-4)
    assert np.abs(out[0] - out[2]).max() * WIDE > 0.1
