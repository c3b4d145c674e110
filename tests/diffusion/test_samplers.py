"""Samplers and guidance against denoisers known in closed form."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion.process import add_noise
from rin_jax.diffusion.samplers import Given, Sampler, example_noise
from rin_jax.diffusion.schedules import make_schedule
from rin_jax.diffusion.update_rules import RULES
from tests.diffusion.toys import TYPES, gaussian, oracle, process, ramp

COSINE = make_schedule("cosine", start=0.0, end=1.0, tau=1.0)
WIDE = 100.0  # an input_scale at which nothing is clipped
ORDERS = {"ddim": 1, "heun": 2, "dpmpp_2m": 2}
DETERMINISTIC = tuple(ORDERS)
GRIDS = {
    "cosine": COSINE,
    "sigmoid": make_schedule("sigmoid", start=-3.0, end=3.0, tau=0.9),
    "logsnr": make_schedule("logsnr", start=9.0, end=-7.0),
    "edm": make_schedule("edm", sigma_min=0.002, sigma_max=80.0, rho=7.0),
}
STOCHASTIC = [("ddpm_large", 0.0), ("ddpm_small", 0.0), ("ddim", 0.5), ("ddim", 1.0),
              ("dpmpp_2m", 0.5), ("dpmpp_2m", 1.0)]  # fmt: skip


def _sampler(**changes) -> Sampler:
    plain = Sampler(process("x0", WIDE), ramp, "ddim", 3, 0.0, 0.0, "carry", 0, 0.0)
    return dataclasses.replace(plain, **changes)


def _normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def _forbidden(i):
    raise AssertionError("a deterministic rule asked for fresh noise")


# An oracle.


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("kind", TYPES)
def test_a_sample_lands_on_the_image_an_oracle_knows(kind, num_steps, name):
    images = jnp.tanh(_normal(2, 3, 3, 1))
    sampler = _sampler(process=process(kind, 0.5), name=name, num_steps=num_steps)
    for seed in (1, 2):
        noise = _normal(*images.shape, seed=seed)
        out = sampler.sample(oracle(kind, 0.5 * images), noise, None, _forbidden)
        np.testing.assert_allclose(out, images, atol=1e-5)
    out = sampler.sample(oracle(kind, 0.5 * images + 0.1), noise, None, _forbidden)
    assert np.abs(out - images).max() > 0.1


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("kind", TYPES)
def test_a_step_stays_on_the_line_of_one_image_and_one_noise(kind, name):
    x0, eps = jnp.tanh(_normal(2, 5)), _normal(2, 5, seed=1)
    sampler = _sampler(process=process(kind), name=name, num_steps=5)
    for t, t_next in zip(*sampler.times(), strict=True):
        xt = add_noise(x0, eps, jnp.full(2, ramp(t)))
        x_next, _, x0_hat = sampler.step(
            oracle(kind, x0), xt, None, None, t, t_next, None, before=(t + 0.1, x0)
        )
        expected = add_noise(x0, eps, jnp.full(2, ramp(t_next)))
        np.testing.assert_allclose(x_next, expected, atol=1e-5)
        np.testing.assert_allclose(x0_hat, x0, atol=1e-5)
        assert np.abs(x_next - xt).max() > 1e-2


# Gaussian data.


def _flow_errors(sampler, kind, numbers, mean=0.3, std=0.4) -> list[float]:
    """Largest distances from the exact probability flow of N(mean, std^2) over part of the grid.

    The part begins and ends at the same noise for every number of steps, away from t = 0, where a
    sample ends with an estimate of x0 instead of a step. The flow keeps the standardised value.
    """
    value, denoise_fn = _normal(4, 50), gaussian(kind, mean, std)

    def exact(t):
        g = sampler.schedule(t)
        return jnp.sqrt(g) * mean + jnp.sqrt(g * std**2 + 1 - g) * value

    step = jax.jit(
        lambda x, x0, *times: sampler.step(
            denoise_fn, x, None, None, times[1], times[2], None, before=(times[0], x0)
        )
    )

    def error(steps):
        t = np.linspace(0.9, 0.2, steps + 1, dtype=np.float32)
        x = exact(t[0])
        x0 = jnp.zeros_like(x)
        for before, now, after in zip((t[0], *t[:-1]), t[:-1], t[1:], strict=False):
            x, _, x0 = step(x, x0, before, now, after)
        return float(jnp.abs(x - exact(t[-1])).max())

    return [error(steps) for steps in numbers]


@pytest.mark.parametrize("kind", ["x0", "v"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_order_of_convergence_is_that_of_the_rule(name, grid, kind):
    """The error falls like a power of the step size; nothing is clipped at this input_scale."""
    sampler = _sampler(process=process(kind, WIDE), schedule=GRIDS[grid], name=name)
    errors = _flow_errors(sampler, kind, (24, 48, 96))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.abs(orders - ORDERS[name]).max() < 0.25, (errors, orders)
    assert errors[0] < 0.1


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sample_is_the_value_of_its_noise_under_the_flow(name):
    mean, std, noise = 0.3, 0.4, _normal(4, 50)

    def error(num_steps):
        sampler = _sampler(schedule=COSINE, name=name, num_steps=num_steps)
        sample = jax.jit(lambda x: sampler.sample(gaussian("x0", mean, std), x, None, _forbidden))
        return float(jnp.abs(sample(noise) * WIDE - (mean + std * noise)).max())

    errors = [error(n) for n in (16, 32, 64, 128)]
    assert errors[-1] < (0.03 if name == "ddim" else 0.003)
    for coarse, fine in itertools.pairwise(errors):
        assert fine / coarse < 0.7


def test_the_first_step_of_2m_is_ddim_and_later_ones_are_not():
    xt, old, t = _normal(2, 5), _normal(2, 5, seed=1), jnp.float32(0.6)

    def step(name, before):
        return _sampler(name=name).step(
            gaussian("x0", 0.3, 0.4), xt, None, None, t, t - 0.1, None, before
        )[0]

    np.testing.assert_allclose(step("dpmpp_2m", (t, old)), step("ddim", None), rtol=1e-6)
    assert np.abs(step("dpmpp_2m", (t + 0.1, old)) - step("ddim", None)).max() > 1e-3


def test_ddim_with_all_its_noise_is_ddpm_with_the_small_variance():
    xt, fresh, t = _normal(2, 50), _normal(2, 50, seed=1), jnp.float32(0.6)

    def step(t_next, **changes):
        denoise_fn = gaussian("x0", 0.3, 0.4)
        return _sampler(**changes).step(denoise_fn, xt, None, None, t, t_next, fresh)[0]

    for t_next in (t - 0.01, t - 0.1, t - 0.55):
        expected = step(t_next, name="ddpm_small")
        np.testing.assert_allclose(step(t_next, eta=1.0), expected, atol=1e-5)
        assert np.abs(step(t_next, eta=0.5) - expected).max() > 1e-2


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


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in DETERMINISTIC), *STOCHASTIC])
def test_samples_have_the_mean_and_variance_of_the_data(name, eta):
    """Within five standard deviations of the estimates of mean and variance."""
    mean, std, count = 0.3, 0.25, 20_000
    sampler = _sampler(schedule=COSINE, name=name, eta=eta, num_steps=400)
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
    assert abs(out.mean() - mean) < 5 * std / np.sqrt(count)
    assert abs(out.var() / std**2 - 1) < 5 * np.sqrt(2 / count)


# The result.


def test_the_estimate_is_clipped_and_unscaled():
    def far(xt, gamma, cond, latents):
        return jnp.where(xt > 0, 5.0, 0.1), latents

    noise = _normal(2, 8)
    for name in RULES:
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


@pytest.mark.parametrize("name", RULES)
def test_latents_are_carried(name):
    for num_steps in (1, 2, 5):
        sampler = _sampler(name=name, num_steps=num_steps)
        out = sampler.sample(_counter, _normal(2, 3), None, lambda i: jnp.zeros((2, 3)))
        np.testing.assert_allclose(out * WIDE, sampler.num_evaluations - 1, atol=1e-5)


@pytest.mark.parametrize("refresh", [0, 2])
@pytest.mark.parametrize("name", RULES)
def test_latents_are_refreshed_and_reset(name, refresh):
    for latents in ("carry", "reset"):
        sampler = _sampler(name=name, num_steps=3, refresh=refresh, latents=latents)
        assert sampler.num_evaluations == 3 * (1 + refresh) + 2 * (name == "heun")
        out = sampler.sample(_counter, _normal(2, 3), None, lambda i: jnp.zeros((2, 3)))
        expected = refresh if latents == "reset" else sampler.num_evaluations - 1
        np.testing.assert_allclose(out * WIDE, expected, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_refresh_does_not_move_the_image(name):
    """A denoiser without memory makes the same image however often its latents are refreshed."""
    noise, fresh = _normal(2, 20), _normal(4, 2, 20, seed=1)

    def sample(refresh):
        sampler = _sampler(name=name, num_steps=4, refresh=refresh)
        denoise_fn = gaussian("x0", 0.3, 0.4)
        return sampler.sample(denoise_fn, noise, None, lambda i: fresh[i])

    np.testing.assert_allclose(sample(0), sample(3), rtol=1e-6)


def test_the_second_evaluation_of_heun_continues_the_first():
    """At the step's end, where DDIM would be, from the first one's latents."""

    def echo(xt, gamma, cond, latents):
        return 0.1 * xt, {"xt": xt, "gamma": gamma, "before": latents["gamma"]}

    t, t_next, xt = jnp.float32(0.5), jnp.float32(0.3), _normal(2, 4)
    old = {"xt": xt, "gamma": jnp.full(2, 7.0), "before": jnp.zeros(2)}
    sampler = _sampler(process=process("x0", WIDE))
    x_euler, first, x0 = sampler.step(echo, xt, old, None, t, t_next, None)
    heun = dataclasses.replace(sampler, name="heun")
    _, second, x0_heun = heun.step(echo, xt, old, None, t, t_next, None)
    np.testing.assert_allclose(second["xt"], x_euler, rtol=1e-5)
    np.testing.assert_allclose(second["gamma"], ramp(t_next), rtol=1e-6)
    np.testing.assert_allclose(second["before"], first["gamma"], rtol=1e-6)
    np.testing.assert_array_equal(x0_heun, x0)
    _, last, _ = heun.step(echo, xt, old, None, t, jnp.float32(0), None)
    np.testing.assert_array_equal(last["before"], 7.0)  # a step to t = 0 has one evaluation


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


@pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
def test_fresh_noise_is_used(name, eta):
    sampler, noise = _sampler(name=name, eta=eta, num_steps=4), _normal(2, 20)

    def sample(seed):
        fresh = _normal(4, 2, 20, seed=seed)
        return sampler.sample(gaussian("x0", 0.3, 0.4), noise, None, lambda i: fresh[i])

    np.testing.assert_array_equal(sample(1), sample(1))
    assert np.abs(sample(1) - sample(2)).max() * WIDE > 0.1


# The program.


@pytest.mark.parametrize("name", RULES)
def test_program_and_memory_do_not_grow_with_the_steps(name):
    def lowered(num_steps):
        sampler = _sampler(name=name, num_steps=num_steps, refresh=1)
        keys = jax.random.split(jax.random.key(0), 64)

        def sample(keys):
            noise, noise_fn = example_noise(keys, (32, 32))
            return sampler.sample(gaussian("x0", 0.3, 0.4), noise, None, noise_fn)

        return jax.jit(sample).lower(keys)

    few, many = lowered(5), lowered(500)
    assert len(few.as_text().splitlines()) == len(many.as_text().splitlines())
    memory = [program.compile().memory_analysis().temp_size_in_bytes for program in (few, many)]
    assert memory[1] - memory[0] < 64 * 32 * 32 * 4  # less than one batch of images more


def test_watching_sees_each_step_and_changes_nothing():
    sampler, noise, denoise_fn = _sampler(num_steps=4), _normal(2, 20), gaussian("x0", 0.3, 0.4)
    plain = sampler.sample(denoise_fn, noise, None, _forbidden)
    out, x0 = sampler.watched(denoise_fn, noise, None, _forbidden, lambda x0, latents: x0)
    np.testing.assert_array_equal(out, plain)
    assert x0.shape == (4, 2, 20)
    np.testing.assert_allclose(x0[-1] / WIDE, plain, rtol=1e-6)
    xt = noise
    for i, (t, t_next) in enumerate(zip(*sampler.times(), strict=True)):
        xt, _, expected = sampler.step(denoise_fn, xt, None, None, t, t_next, None)
        np.testing.assert_allclose(x0[i], expected, rtol=1e-4)


def test_more_steps_than_the_grid_allows():
    for schedule in GRIDS.values():
        _sampler(schedule=schedule, num_steps=1000).check_grid()
    short = _sampler(schedule=lambda t: jnp.floor(100 * (1 - t)) / 100, num_steps=40)
    short.check_grid()  # a hundred values of gamma
    with pytest.raises(ValueError, match=r"num_steps is 400, more than its grid allows") as caught:
        dataclasses.replace(short, num_steps=400).check_grid()
    most = int(str(caught.value).partition("set it to ")[2].split()[0])
    dataclasses.replace(short, num_steps=most).check_grid()
    assert 40 < most <= 101
    with pytest.raises(ValueError, match=r"num_steps is 1000000, more than its grid allows"):
        _sampler(schedule=COSINE, num_steps=1_000_000).check_grid()


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
        ({"name": "euler"}, ["name is 'euler'", "ddim, heun, dpmpp_2m, ddpm_large, ddpm_small"]),
        ({"eta": 1.5}, ["eta is 1.5", "[0, 1]"]),
        ({"name": "heun", "eta": 0.5}, ["eta is 0.5", "'heun'", "ddim or dpmpp_2m"]),
        (
            {"name": "heun", "time_difference": 1.0},
            ["time_difference is 1.0", "to ddim or ddpm_large or ddpm_small"],
        ),
        ({"latents": "keep"}, ["latents is 'keep'", "carry, reset"]),
        ({"latents": "reset", "latent_decay": 0.5}, ["latent_decay is 0.5", "'reset'"]),
        ({"refresh": -1}, ["refresh is -1"]),
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


# Given examples.


def _from_given(sampler, denoise_fn, given, seed=1):
    """Samples that start from examples, and the estimates of each step."""
    noise, fresh = _normal(*given.x0.shape, seed=seed), _normal(9, *given.x0.shape, seed=seed + 1)
    return sampler.watched(denoise_fn, noise, None, lambda i: fresh[i], lambda x0, _: x0, given)


@pytest.mark.parametrize("name", RULES)
def test_what_is_kept_is_as_given_and_the_rest_is_a_sample(name):
    """Of pixels that are independent the free ones are those of a sample that keeps nothing."""
    x0, free = jnp.tanh(_normal(2, 6)), jnp.arange(6) < 3
    sampler, denoise_fn = _sampler(name=name, num_steps=5), gaussian("x0", 0.3, 0.4)
    out, estimates = _from_given(sampler, denoise_fn, Given(x0, free, 0))
    np.testing.assert_allclose(out[:, 3:] * WIDE, x0[:, 3:], rtol=1e-6)
    np.testing.assert_allclose(estimates[:, :, 3:], jnp.broadcast_to(x0[:, 3:], (5, 2, 3)))
    fresh = _normal(9, 2, 6, seed=2)
    plain = sampler.sample(denoise_fn, _normal(2, 6, seed=1), None, lambda i: fresh[i])
    np.testing.assert_allclose(out[:, :3], plain[:, :3], rtol=1e-5)


def test_each_evaluation_sees_what_is_kept_at_its_noise_level():
    """sqrt(gamma) x0 with noise of variance 1 - gamma, which is fresh at each step."""
    x0 = jnp.full((1, 40_000), 0.5)

    def watching(xt, gamma, cond, latents):
        before = jnp.zeros_like(xt) if latents is None else latents[0]
        return jnp.zeros_like(xt), (xt, before)

    sampler, given = _sampler(num_steps=4), Given(x0, jnp.bool_(False), 0)
    noise, fresh = _normal(*x0.shape, seed=1), _normal(4, *x0.shape, seed=2)
    _, (seen, before) = sampler.watched(
        watching, noise, None, lambda i: fresh[i], lambda x0, latents: latents, given
    )
    gamma = ramp(sampler.times()[0])[:, None]
    rest = (seen[:, 0] - jnp.sqrt(gamma) * x0) / jnp.sqrt(1 - gamma)
    assert np.abs(rest.mean(1)).max() < 5 / np.sqrt(x0.size)
    assert np.abs(rest.var(1) - 1).max() < 5 * np.sqrt(2 / x0.size)
    assert np.abs(np.corrcoef(rest) - np.eye(4)).max() < 5 / np.sqrt(x0.size)
    np.testing.assert_array_equal(before[1:], seen[:-1])


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmpp_2m", 1.0)])
def test_what_is_made_fits_what_is_kept(name, eta):
    """Two pixels of variance 1 and correlation 0.9, of which the first is kept."""
    covariance, count = jnp.array([[1.0, 0.9], [0.9, 1.0]]), 20_000

    def posterior_mean(xt, gamma, cond, latents):
        g = gamma[0]
        gain = jnp.sqrt(g) * covariance @ jnp.linalg.inv(g * covariance + (1 - g) * jnp.eye(2))
        return xt @ gain, latents

    x0, key = _normal(count, 2), jax.random.key(1)
    sampler = _sampler(schedule=COSINE, name=name, eta=eta, num_steps=100)

    @jax.jit
    def second_pixels(free):
        def fresh(i):
            return jax.random.normal(jax.random.fold_in(key, i), x0.shape)

        noise, given = _normal(count, 2, seed=1), Given(x0, free, 0)
        return sampler.watched(posterior_mean, noise, None, fresh, lambda *_: None, given)[0][:, 1]

    made = second_pixels(jnp.array([False, True]))
    # less than 0.9, because there is no resampling, and least without fresh noise
    assert (0.7 if eta else 0.5) < np.corrcoef(x0[:, 0], made)[0, 1] < 0.9
    assert abs(np.corrcoef(x0[:, 0], second_pixels(jnp.array([True, True])))[0, 1]) < 0.05


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_late_start_stays_close(name):
    """At the noise of the first step that is left; from 0 nothing of the example is left."""
    x0, mean, std = jnp.full((1, 20_000), 0.9), 0.3, 0.4
    sampler = _sampler(name=name, schedule=COSINE, num_steps=64)
    for first in (0, 16, 48):
        given = Given(x0, jnp.bool_(True), first)
        out, estimates = _from_given(sampler, gaussian("x0", mean, std), given)
        assert len(estimates) == 64 - first
        gamma = float(COSINE(sampler.times()[0][first])) if first else 0.0
        # the flow keeps the value of xt under its distribution, standardised
        spread = np.sqrt(gamma * std**2 + 1 - gamma)
        expected = mean + std * np.sqrt(gamma) * (0.9 - mean) / spread
        assert abs(out.mean() * WIDE - expected) < 0.02
