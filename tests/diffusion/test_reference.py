"""Schedules, conversions, transitions, sampling and loss against the reference's tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion import process, schedules, update_rules
from rin_jax.diffusion.guidance import EVERYWHERE, Guidance
from rin_jax.diffusion.objective import Draws, Objective
from rin_jax.diffusion.process import Process
from rin_jax.diffusion.samplers import Sampler
from rin_jax.network.conditioning import NO_LABEL
from tests import reference
from tests.reference import error, labels_of, load, under

pytestmark = reference.needed


def schedule(spec: str):
    """The reference's schedule string as ours."""
    family, _, rest = spec.partition("@")
    if family == "simple_linear":
        return schedules.make_schedule("linear")
    if family.startswith("cosine") and not rest:
        return schedules.make_schedule("offset_cosine")
    first, second, third = rest.split(",")
    if family == "log":
        return schedules.make_schedule(
            "logarithmic", start=float(first), end=float(second), reverse=third[0].lower() == "t"
        )
    return schedules.make_schedule(family, start=float(first), end=float(second), tau=float(third))


def test_schedules():
    arrays, meta = load("schedules")
    for spec in meta["schedules"]:
        gamma, expected = schedule(spec)(arrays["t"]), arrays[f"gamma/{spec}"]
        assert np.isfinite(gamma).all(), spec
        if f"gamma/{spec}" not in meta["nonfinite"]:
            assert error(gamma, expected) < 3e-6, spec
    for spec, name in (
        ("cosine@0,0.5,1", "cosine"), ("sigmoid@-3,3,1.0", "sigmoid"), ("log@1,100,f", "log")
    ):  # fmt: skip
        assert error(schedule(spec)(arrays["t"]), arrays[f"default/{name}_schedule"]) < 3e-6


def test_cosine_with_a_fractional_power_is_right_where_the_reference_is_not():
    t = np.linspace(0, 1, 11)
    expected = np.clip(np.cos(np.pi / 2 * t) ** 1.8, 1e-9, 1)
    gamma = schedules.make_schedule("cosine", start=0.0, end=1.0, tau=0.9)(np.float32(t))
    assert error(gamma, expected) < 1e-6


def test_add_noise():
    arrays, _ = load("diffusion")
    for spec in ("cosine", "sigmoid@-3,3,0.9", "simple_linear"):
        gamma = schedule(spec)(arrays["t"])
        assert error(gamma, arrays[f"add_noise/{spec}/gamma"].ravel()) < 3e-6
        xt = process.add_noise(arrays["x0"], arrays["noise"], gamma)
        assert error(xt, arrays[f"add_noise/{spec}/xt"]) < 3e-6


@pytest.mark.parametrize("ours", ["eps", "x0", "v"])
@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_conversions(ours, limit):
    arrays, _ = load("diffusion")
    gamma, xt, out = arrays["gamma"].ravel(), arrays["xt"], arrays["denoise_out"]
    proc = Process(prediction_type=ours, input_scale=limit, normalize_input=False)
    theirs = {"x0": "x"}.get(ours, ours)
    clip = {1.0: "[-1,1]", 0.5: "[-0.5,0.5]"}[limit]
    x0, eps = proc.to_x0_eps(out, xt, gamma)
    expected = under(arrays, f"x0_eps/{theirs}/clip{clip}/truncate0/")
    assert error(proc.clip(x0), expected["data_pred"]) < 5e-6
    assert error(eps, expected["noise_pred"]) < 5e-6
    x0, eps = proc.to_clipped_x0_eps(out, xt, gamma)
    expected = under(arrays, f"x0_eps/{theirs}/clip{clip}/truncate1/")
    assert error(x0, expected["data_pred"]) < 5e-6
    assert error(eps, expected["noise_pred"]) < 5e-6


def test_conversions_without_clip():
    arrays, _ = load("diffusion")
    gamma, xt, out = arrays["gamma"].ravel(), arrays["xt"], arrays["denoise_out"]
    for ours in ("eps", "v", "x0"):
        proc = Process(prediction_type=ours, input_scale=1e6, normalize_input=False)
        theirs = {"x0": "x"}.get(ours, ours)
        for truncate, convert in ((0, proc.to_x0_eps), (1, proc.to_clipped_x0_eps)):
            x0, eps = convert(out, xt, gamma)
            expected = under(arrays, f"x0_eps/{theirs}/clip[]/truncate{truncate}/")
            assert error(x0, expected["data_pred"]) < 5e-6
            assert error(eps, expected["noise_pred"]) < 5e-6


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("ddim", "ddim"), ("ddpm", "ddpm_large"), ("ddpm@large", "ddpm_large"),
     ("ddpm@small", "ddpm_small")],
)  # fmt: skip
def test_transitions(theirs, ours):
    arrays, _ = load("diffusion")
    step = update_rules.RULES[ours].update(
        arrays["xt"],
        arrays["transition/data_pred"],
        arrays["transition/noise_pred"],
        arrays["gamma"].ravel(),
        arrays["gamma_prev"].ravel(),
        arrays["transition/fresh_noise"],
        0.0,
    )
    assert error(step, arrays[f"transition/{theirs}"]) < 5e-6


def _generate(name):
    """(sampler, denoise_fn, arrays, labels) of a generation file, from its own meta."""
    arrays, meta = load(name)
    rin, params = reference.network(f"arch_{meta['arch']}")
    low, high = (float(v) for v in meta["x0_clip"].split(","))
    assert low == -high
    proc = Process(
        prediction_type={"x": "x0"}.get(meta["pred_type"], meta["pred_type"]),
        input_scale=high,
        normalize_input=False,
    )
    rule, _, variance = meta["sampler"].partition("@")
    sampler = Sampler(
        process=proc,
        schedule=schedule(meta["schedule"]),
        name=rule if rule == "ddim" else f"ddpm_{variance or 'large'}",
        num_steps=meta["iterations"],
        eta=0.0,
        time_difference=meta["td"],
        latents="carry",
        refresh=0,
        latent_decay=meta["self_cond_decay"],
    )
    labels = labels_of(arrays["in/labels"])
    guided = Guidance(meta["guidance"], EVERYWHERE, "shared")
    denoise_fn = guided.classifier_free(
        reference.denoiser(rin, params), np.full_like(labels, NO_LABEL)
    )
    return sampler, denoise_fn, arrays, labels


GENERATED = reference.names("generate_*")


def test_there_are_generations():
    assert len(GENERATED) >= 3


@pytest.mark.parametrize("name", GENERATED)
def test_generate_in_one_scan(name):
    sampler, denoise_fn, arrays, labels = _generate(name)
    fresh = jnp.asarray(arrays.get("in/fresh_noise", np.zeros((sampler.num_steps, 1))))
    images = jax.jit(lambda noise: sampler.sample(denoise_fn, noise, labels, lambda i: fresh[i]))(
        arrays["in/init_noise"]
    )
    tolerance = 5e-4 if sampler.name == "ddim" else 5e-3
    assert error(images * sampler.process.input_scale, arrays["out/result"]) < tolerance
    assert error(images / 2 + 0.5, arrays["out/images01"]) < tolerance


@pytest.mark.parametrize("name", GENERATED)
def test_generate_step_by_step(name):
    sampler, denoise_fn, arrays, labels = _generate(name)
    steps = under(arrays, "step/")
    t, t_next = sampler.times()
    assert error(sampler.schedule(t), steps["gamma"]) < 3e-6
    assert error(sampler.schedule(t_next), steps["gamma_prev"]) < 3e-6
    latents = np.zeros_like(steps["latent"][0])
    for i in range(sampler.num_steps):
        xt = steps["samples_in"][i]
        gamma = np.full(xt.shape[:1], steps["gamma"][i])
        _, new = denoise_fn(xt, gamma, labels, latents)
        fresh = arrays["in/fresh_noise"][i] if "in/fresh_noise" in arrays else None
        _, new, x0 = sampler.step(denoise_fn, xt, latents, labels, t[i], t_next[i], fresh)
        assert error(new, steps["latent"][i]) < 2e-4, i
        assert error(x0, steps["data_pred"][i]) < 2e-4, i
        latents = steps["latent"][i]


LOSS_CASES = [
    "eps", "eps_halfbatch", "x_loss_x", "x_loss_eps", "v_loss_eps", "eps_loss_x", "eps_scaled",
    "eps_cond_dropout", "eps_no_self_cond", "eps_latent_tape",
]  # fmt: skip


def loss_case(case):
    """(objective, denoise_fn, params, images, labels, draws) of one training-loss case."""
    arrays, meta = load("train_loss")
    assert set(LOSS_CASES) == set(meta["cases"])
    overrides = meta["cases"][case]["overrides"]
    rin, params = reference.network(f"arch_{meta['cases'][case]['arch']}")
    batch = arrays["t"].shape[0]
    self_cond = overrides.get("self_cond", "latent") != "none"
    rate = overrides.get("self_cond_rate", 0.9) if self_cond else 0.0
    kind = {"x": "x0"}
    objective = Objective(
        process=Process(
            prediction_type=kind.get(p := overrides.get("pred_type", "eps"), p),
            input_scale=overrides.get("b_scale", 1.0),
            normalize_input=overrides.get("normalize_noisy_input", False),
        ),
        schedule=schedule(overrides.get("train_schedule", "simple_linear")),
        loss_type=kind.get(p := overrides.get("loss_type", "eps"), p),
        self_cond_rate=rate,
        cond_dropout=overrides.get("cond_dropout", 0.0),
        sigmoid_bias=None,
        logit_normal_times=None,
    )
    if overrides.get("self_cond_by_masking", True):
        mask = arrays["u_mask"] > 1 - rate
    else:
        mask = np.arange(batch) < int(rate * batch)
    keep = np.ones((batch, 2), bool)
    if objective.cond_dropout:
        drops = [arrays[f"u_drop_{name}_pass"] for name in ("first", "second")]
        keep = np.concatenate([u > objective.cond_dropout for u in drops], -1)
    draws = Draws(arrays["t"], arrays["noise"], mask.astype(np.float32), keep)
    return objective, rin, params, arrays, draws


def drop_labels(labels, keep):
    return jnp.where(keep, labels, NO_LABEL)


def loss_of(case):
    objective, rin, params, arrays, draws = loss_case(case)

    def loss(params):
        denoise_fn = reference.denoiser(rin, params)
        images = 2 * arrays["images"] - 1
        labels = labels_of(arrays["labels"])
        passes = denoise_fn, denoise_fn
        return objective.errors(*passes, drop_labels, images, labels, draws).mean()

    return loss, rin, params, arrays


@pytest.mark.parametrize("case", LOSS_CASES)
def test_loss(case):
    loss, _, params, arrays = loss_of(case)
    assert error(loss(params), arrays[f"{case}/loss"]) < 3e-5


def test_cond_dropout_draws_are_those_of_the_reference():
    *_, arrays, draws = loss_case("eps_cond_dropout")
    labels = labels_of(arrays["labels"])
    for column, name in enumerate(("first", "second")):
        kept = drop_labels(labels, draws.keep_cond[:, column])
        np.testing.assert_array_equal(kept, labels_of(arrays[f"eps_cond_dropout/{name}_pass/cond"]))
    assert not draws.keep_cond.all()


def test_gradients():
    loss, rin, params, arrays = loss_of("eps")
    grads = jax.jit(jax.grad(loss))(params)
    expected = reference.pix2seq.import_params(under(arrays, "eps/grad/"), rin)
    errors = jax.tree.map(error, grads, expected)
    assert max(jax.tree.leaves(errors)) < 3e-6
