"""The loss with lambdas for the network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion import schedules
from rin_jax.diffusion.objective import Draws, Objective
from rin_jax.diffusion.process import PREDICTION_TYPES, add_noise, velocity
from tests.diffusion.toys import TYPES, column, process, ramp, target

KEY = jax.random.key(0)
SHAPE = (4, 3, 3, 2)
COND = jnp.float32([1, 2, 3, 4])


def _objective(
    kind="eps", loss_type="eps", rate=0.9, scale=0.5, normalize=False, drop=0.0, bias=None,
    times=None,
):  # fmt: skip
    return Objective(process(kind, scale, normalize), ramp, loss_type, rate, drop, bias, times)


def _images():
    return jnp.float32(np.random.default_rng(1).uniform(-1, 1, SHAPE))


def _draws(self_cond=(1, 0, 1, 0), keep=((1, 1), (1, 0), (0, 1), (0, 0))) -> Draws:
    rng = np.random.default_rng(0)
    return Draws(
        t=jnp.float32(rng.uniform(size=4)),
        eps=jnp.float32(rng.normal(size=SHAPE)),
        self_cond=jnp.float32(self_cond),
        keep_cond=jnp.array(keep, bool),
    )


def _hide(cond, keep):
    return jnp.where(keep, cond, -1.0)


def _loss(objective, denoise_fn, draws=None, first_pass=None):
    passes = first_pass or denoise_fn, denoise_fn
    return objective.errors(*passes, _hide, _images(), COND, draws or _draws()).mean()


def _always(prediction):
    return lambda xt, gamma, cond, latents: (prediction, jnp.ones((xt.shape[0], 2)))


class _Spy:
    """A network that records its arguments."""

    def __init__(self):
        self.calls = []

    def __call__(self, xt, gamma, cond, latents):
        self.calls.append({"xt": xt, "gamma": gamma, "cond": cond, "latents": latents})
        return jnp.zeros_like(xt), {"z": 1 + jnp.arange(8.0).reshape(4, 2), "y": jnp.ones(4)}


# Values.


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("loss_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_an_oracle_has_no_loss(kind, loss_type, scale):
    objective, draws = _objective(kind, loss_type, scale=scale), _draws()
    truth = target(kind, _images() * scale, draws.eps, ramp(draws.t))
    assert _loss(objective, _always(truth)) < 1e-9
    assert _loss(objective, _always(truth + 0.1)) > 1e-4
    normalized = _objective(kind, loss_type, scale=scale, normalize=True)
    assert _loss(normalized, _always(truth)) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("loss_type", ["eps", "v"])
@pytest.mark.parametrize("kind", TYPES)
def test_loss_of_predicting_zero(kind, loss_type, scale):
    draws, x0 = _draws(), _images() * scale
    g, h = column(ramp(draws.t), x0)
    v = velocity(x0, draws.eps, ramp(draws.t))
    expected = {
        ("eps", "eps"): draws.eps**2,
        ("v", "v"): v**2,
        ("eps", "v"): draws.eps**2 / g,
        ("x0", "v"): x0**2 / h,
        ("x0", "eps"): x0**2 * g / h,
        ("v", "eps"): v**2 * g,
    }[kind, loss_type]
    loss = _loss(_objective(kind, loss_type, scale=scale), _always(jnp.zeros(SHAPE)))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_x0_loss_is_in_the_units_of_images(scale):
    zeros = jnp.zeros(SHAPE)
    draws, images = _draws(), _images()
    g, _ = column(ramp(draws.t), images)
    loss = _loss(_objective("x0", "x0", scale=scale), _always(zeros))
    np.testing.assert_allclose(loss, (images**2).mean(), rtol=1e-5)
    xt = add_noise(images * scale, draws.eps, ramp(draws.t))
    for kind, estimate in (("eps", xt / jnp.sqrt(g)), ("v", xt * jnp.sqrt(g))):
        clipped = jnp.clip(estimate / scale, -1, 1)
        loss = _loss(_objective(kind, "x0", scale=scale), _always(zeros))
        np.testing.assert_allclose(loss, ((images - clipped) ** 2).mean(), rtol=1e-4)
    far = _loss(_objective("eps", "x0", scale=scale), _always(zeros - 100))
    np.testing.assert_allclose(far, ((images - 1) ** 2).mean(), rtol=1e-5)


def test_the_batch_loss_is_the_mean_of_its_parts():
    def denoise_fn(xt, gamma, cond, latents):
        shift = gamma if latents is None else gamma + latents + cond
        return jnp.tanh(xt) * shift[:, None, None, None], cond + gamma

    objective, draws = _objective(), _draws()
    parts = []
    for part in (slice(0, 2), slice(2, 4)):
        some = Draws(draws.t[part], draws.eps[part], draws.self_cond[part], draws.keep_cond[part])
        passes = denoise_fn, denoise_fn
        parts.append(objective.errors(*passes, _hide, _images()[part], COND[part], some).mean())
    np.testing.assert_allclose(_loss(objective, denoise_fn), sum(parts) / 2, rtol=1e-6)
    assert abs(parts[0] - parts[1]) > 1e-2


# The two passes.


@pytest.mark.parametrize("normalize", [False, True])
def test_what_each_pass_sees(normalize):
    first_spy, second_spy, draws = _Spy(), _Spy(), _draws()
    _loss(_objective(normalize=normalize, scale=0.3), second_spy, first_pass=first_spy)
    (first,), (second,) = first_spy.calls, second_spy.calls
    xt = add_noise(_images() * 0.3, draws.eps, ramp(draws.t))
    if normalize:
        xt = xt / xt.std((1, 2, 3), keepdims=True)
    for call in (first, second):
        np.testing.assert_allclose(call["xt"], xt, rtol=1e-5)
        np.testing.assert_allclose(call["gamma"], ramp(draws.t))
    assert first["latents"] is None
    np.testing.assert_array_equal(second["latents"]["z"], [[1, 2], [0, 0], [5, 6], [0, 0]])
    np.testing.assert_array_equal(second["latents"]["y"], [1, 0, 1, 0])
    np.testing.assert_array_equal(first["cond"], [1, 2, -1, -1])
    np.testing.assert_array_equal(second["cond"], [1, -1, 3, -1])


def test_no_self_conditioning_is_one_pass():
    spy, other = _Spy(), _Spy()
    _loss(_objective(rate=0.0), spy, first_pass=other)
    (call,) = spy.calls
    assert not other.calls
    assert call["latents"] is None
    np.testing.assert_array_equal(call["cond"], [1, -1, 3, -1])


def test_no_gradient_flows_through_the_first_pass():
    def loss(params, self_cond=(1, 1, 1, 1)):
        def denoise_fn(xt, gamma, cond, latents):
            if latents is None:
                return xt, params["first"] * xt
            return params["second"] * xt + latents, xt

        return _loss(_objective(), denoise_fn, _draws(self_cond))

    params = {"first": 0.5, "second": 0.25}
    gradient = jax.grad(loss)(params)
    assert gradient["first"] == 0
    assert abs(gradient["second"]) > 0.1
    changed = params | {"first": 0.6}
    assert abs(loss(changed) - loss(params)) > 1e-2  # its latents do enter the loss,
    assert loss(changed, (0, 0, 0, 0)) == loss(params, (0, 0, 0, 0))  # unless masked

    def shared(p):
        return loss({"first": p, "second": p})

    def frozen(p):  # the same function of p as second parameter, first held at its value
        return loss({"first": 0.5, "second": p})

    assert jax.grad(shared)(0.5) == pytest.approx(float(jax.grad(frozen)(0.5)), rel=1e-6)


# Draws.


def test_draws():
    batch = 20_000
    objective = _objective(rate=0.9, drop=0.2)
    draws = objective.draw(KEY, (batch, 3))
    assert (draws.t.shape, draws.eps.shape) == ((batch,), (batch, 3))
    assert (draws.self_cond.shape, draws.keep_cond.shape) == ((batch,), (batch, 2))
    assert (draws.self_cond.dtype, draws.keep_cond.dtype) == (jnp.float32, jnp.bool_)

    t = np.sort(draws.t)
    assert t[0] >= 0
    assert t[-1] < 1
    assert np.abs(t - np.linspace(0, 1, batch)).max() < 2 / np.sqrt(batch)  # Kolmogorov-Smirnov
    assert abs(float(draws.eps.mean())) < 5 / np.sqrt(3 * batch)
    assert abs(float(draws.eps.std()) - 1) < 5 / np.sqrt(6 * batch)

    assert set(np.unique(draws.self_cond)) == {0.0, 1.0}
    assert abs(float(draws.self_cond.mean()) - 0.9) < 5 * np.sqrt(0.09 / batch)
    keep = np.asarray(draws.keep_cond)
    for share, expected in ((keep[:, 0], 0.8), (keep[:, 1], 0.8), (keep.all(1), 0.64)):
        assert abs(share.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / batch)
    columns = [draws.t, draws.eps[:, 0], draws.eps[:, 1], draws.self_cond, keep[:, 0], keep[:, 1]]
    flat = [draws.t, draws.eps.ravel(), draws.self_cond, keep.ravel()]  # as a shared key fills them
    for independent in (columns, flat):
        correlation = np.corrcoef([np.asarray(c[:batch], np.float64) for c in independent])
        assert np.abs(correlation - np.eye(len(independent))).max() < 5 / np.sqrt(batch)


def test_draws_depend_on_the_key_alone():
    objective = _objective(drop=0.5)
    first, again = (objective.draw(KEY, SHAPE) for _ in range(2))
    other = objective.draw(jax.random.key(1), SHAPE)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first.eps - other.eps).max() > 0.1
    assert np.abs(first.t - other.t).max() > 1e-3


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_the_sigmoid_weight_is_that_of_the_noises_loss(bias):
    """SiD2 gives it in either form: e^b sigmoid(l - b) of x0's error, sigmoid(b - l) of eps'."""
    draws, images, zeros = _draws(), _images(), jnp.zeros(SHAPE)
    falling = functools.partial(schedules.uniform_logsnr, start=3.0, end=-4.0)
    objective = dataclasses.replace(_objective("x0", "x0", scale=1.0, bias=bias), schedule=falling)
    passes = (_always(zeros),) * 2
    found = objective.errors(*passes, _hide, images, COND, draws)
    levels = 3.0 - 7.0 * draws.t
    xt = add_noise(images, draws.eps, jax.nn.sigmoid(levels))
    eps_hat = xt / jnp.sqrt(1 - column(jax.nn.sigmoid(levels), xt)[0])  # where x0 is 0
    of_eps = jnp.square(draws.eps - eps_hat).mean((1, 2, 3))
    np.testing.assert_allclose(found, 7.0 * jax.nn.sigmoid(bias - levels) * of_eps, rtol=1e-4)


def test_the_sigmoid_weight_does_not_depend_on_the_schedule():
    """An integral over log-SNR is the same by any schedule that runs over the same levels."""
    t = (jnp.arange(200_000) + 0.5) / 200_000
    even = functools.partial(schedules.uniform_logsnr, start=3.0, end=-4.0)

    def total(schedule):
        objective = dataclasses.replace(_objective("x0", "x0", bias=-1.0), schedule=schedule)
        return (objective.weight(t) * schedule(t)).mean()

    np.testing.assert_allclose(total(lambda u: even(u**2)), total(even), rtol=1e-4)


def test_logit_normal_times():
    t = _objective(times=(-0.5, 0.7)).draw(KEY, (20_000, 1)).t
    logits = jnp.log(t) - jnp.log1p(-t)
    np.testing.assert_allclose(logits.mean(), -0.5, atol=0.02)
    np.testing.assert_allclose(logits.std(), 0.7, atol=0.02)
    np.testing.assert_allclose(jnp.median(t), jax.nn.sigmoid(-0.5), atol=0.01)
    inside = ((logits > -0.5 - 0.7) & (logits < -0.5 + 0.7)).mean()
    np.testing.assert_allclose(inside, 0.6827, atol=0.01)  # of a normal distribution


def test_the_ends_of_the_rates():
    never = _objective(rate=0.0, drop=1.0).draw(KEY, (64, 1))
    always = _objective(rate=1.0, drop=0.0).draw(KEY, (64, 1))
    assert not never.self_cond.any()
    assert not never.keep_cond.any()
    assert always.self_cond.all()
    assert always.keep_cond.all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_type": "x"}, ["loss_type is 'x'", "eps, x0, v"]),
        ({"self_cond_rate": 1.1}, ["self_cond_rate is 1.1"]),
        ({"cond_dropout": -0.1}, ["cond_dropout is -0.1"]),
        ({"sigmoid_bias": 1.0}, ["sigmoid_bias is 1.0", "loss_type 'eps'", "set loss_type 'x0'"]),
        ({"logit_normal_times": (0.0,)}, ["logit_normal_times is (0.0,)", "(0.0, 1.0)"]),
        ({"logit_normal_times": (0.0, 0.0)}, ["logit_normal_times is (0.0, 0.0)"]),
    ],
)
def test_errors_name_field_and_value(changes, words):
    with pytest.raises(ValueError, match="diffusion") as caught:
        dataclasses.replace(_objective(), **changes)
    for word in words:
        assert word in str(caught.value)
