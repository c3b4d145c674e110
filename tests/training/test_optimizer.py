"""LAMB, AdamW, learning rates and EMA against reference tensors and by their properties."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from rin_jax.training import ema as ema_lib
from rin_jax.training import optimizer
from tests import reference
from tests.diffusion.test_reference import drop_labels, loss_case
from tests.reference import error, labels_of, load, under


def decay(spec: str):
    """The reference's "none" or "cosine@0.7" as ours; None if it is another."""
    name, _, rate = spec.partition("@")
    if name == "none":
        return {"name": "constant"}
    return {"name": "cosine", "rate": float(rate or 1)} if name == "cosine" else None


@reference.needed
def test_learning_rates():
    arrays, meta = load("optim")
    steps, compared = arrays["lr/steps"], 0
    for name, case in meta["lr"].items():
        base, scaling, batch, spec, warmup, total = case["args"]
        if decay(spec) is None or case["kw"].get("tail_steps"):
            continue  # decays that no released configuration has
        peak = base * {"none": 1.0, "linear": batch / 256, "sqrt": batch**0.5}[scaling]
        shape = decay(spec)
        if shape["name"] == "cosine":
            shape["end_factor"] = case["kw"].get("end_lr_factor", 0.0)
        schedule = optimizer.learning_rate_schedule(peak, warmup, total, shape)
        assert error(schedule(steps) / peak, arrays[f"lr/{name}"] / peak) < 3e-6, name
        compared += 1
    assert compared >= 3


def cosine(spec: str):
    return decay(spec) | {"end_factor": 0.0}


def _tree(flat: dict[str, np.ndarray]) -> dict:
    """Reference names to a flat tree whose last path part is ours: kernel, bias, scale."""
    leaf = {"gamma": "scale", "beta": "bias"}
    return {
        name: {leaf.get(last, last): value}
        for name, value in flat.items()
        for last in [name.rsplit("/", 1)[-1]]
    }


@reference.needed
@pytest.mark.parametrize(
    "case",
    ["lamb_const", "lamb_sched", "lamb_nowd_const", "lamb_exclude_emb_const",
     "lamb_exclude_nothing_const", "adamw_const", "adamw_legacy_const", "adam_const"],
)  # fmt: skip
def test_three_updates(case):
    arrays, meta = load("optim")
    settings = meta["cases"][case]
    rate = settings["learning_rate"]
    if isinstance(rate, str):
        assert rate == "WarmUpAndDecay(0.01,'none',8,'cosine@0.7',warmup 2,total 6)"
        rate = optimizer.learning_rate_schedule(0.01, 2, 6, cosine("cosine@0.7"))
    excluded = [word for word in settings.get("exclude_from_weight_decay", "").split(",") if word]

    def mask(params):
        # the legacy optimizer reads an empty list as its own, which names the same variables
        if excluded == ["bias", "beta", "gamma"] or settings["optimizer"] == "adamw_legacy":
            return optimizer.decay_mask(params)
        return {
            name: jax.tree.map(lambda _, n=name: not any(word in n for word in excluded), leaf)
            for name, leaf in params.items()
        }

    lamb = settings["optimizer"] == "lamb"
    update = optimizer.OPTIMIZERS["lamb" if lamb else "adamw"](
        rate, settings["beta1"], settings["beta2"], settings["eps"],
        weight_decay=settings["weight_decay"], mask=mask,
    )  # fmt: skip
    # The reference's Adam adds epsilon before the bias correction, ours after it: where a
    # gradient is tiny the two differ by a few 1e-6 of a step of 1e-2.
    tolerance = 3e-6 if lamb else 5e-6
    if settings["optimizer"].startswith("adamw"):  # all that the reference clips
        update = optax.chain(optax.clip_by_global_norm(settings["global_clipnorm"]), update)
    params = _tree(under(arrays, "param0/"))
    state = update.init(params)
    for step in (1, 2, 3):
        grads = _tree(under(arrays, f"grad{step}/"))
        updates, state = update.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        expected = _tree(under(arrays, f"{case}/param{step}/"))
        assert max(jax.tree.leaves(jax.tree.map(error, params, expected))) < tolerance, step


@pytest.mark.slow
@reference.needed
def test_three_training_steps():
    arrays, meta = load("train_steps")
    settings = meta["optimization"]
    objective, rin, params, _, _ = loss_case("eps")
    ema = reference.pix2seq.import_params(under(arrays, "ema0/"), rin)
    schedule = optimizer.learning_rate_schedule(
        settings["learning_rate"],
        settings["warmup_steps"],
        meta["train_steps"],
        cosine(settings["learning_rate_schedule"]),
    )
    update = optimizer.lamb(
        schedule,
        settings["beta1"],
        settings["beta2"],
        settings["eps"],
        settings["weight_decay"],
    )
    state = update.init(params)

    averages = {"ema": lambda t: 1 - settings["ema_decay"]}

    @jax.jit
    def step(params, ema, state, images, labels, t, noise, u_mask):
        from rin_jax.diffusion.objective import Draws

        draws = Draws(t, noise, (u_mask > 1 - 0.9).astype(jnp.float32), jnp.ones((4, 2), bool))

        def loss_fn(params):
            denoise = reference.denoiser(rin, params)
            passes = denoise, denoise
            return objective.errors(*passes, drop_labels, 2 * images - 1, labels, draws).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = update.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        ema = ema_lib.update({"ema": ema}, params, averages, 1)["ema"]
        return params, ema, state, loss, optax.tree.norm(grads)

    for number in (1, 2, 3):
        data = under(arrays, f"step{number}/")
        params, ema, state, loss, norm = step(
            params, ema, state, data["images"], labels_of(data["labels"]), data["t"],
            data["noise"], data["u_mask"],
        )  # fmt: skip
        assert error(loss, data["loss"]) < 3e-5
        assert error(norm, data["grad_global_norm"]) < 3e-5
        assert error(schedule(number - 1), data["lr"]) < 1e-7
    for ours, prefix in ((params, "param3/"), (ema, "ema3/")):
        expected = reference.pix2seq.import_params(under(arrays, prefix), rin)
        for path, value in jax.tree_util.tree_leaves_with_path(ours):
            names = [key.key for key in path]
            if names[-2:] == ["key", "bias"]:
                continue  # its true gradient is zero: a step moves it by rounding noise
            reference_value = expected
            for name in names:
                reference_value = reference_value[name]
            assert error(value, reference_value) < 1e-5, names


def test_stacked_layers_are_adapted_one_by_one():
    rng = np.random.default_rng(0)
    scales = np.float32([1, 10, 0])[:, None, None]
    kernel = rng.normal(size=(3, 4, 5)).astype(np.float32) * scales
    grads = rng.normal(size=(3, 4, 5)).astype(np.float32)
    transform = optimizer.scale_by_layer_trust_ratio()

    def scaled(tree, gradient):
        return transform.update(gradient, transform.init(tree), tree)[0]

    stacked = scaled({"blocks_0": {"kernel": kernel}}, {"blocks_0": {"kernel": grads}})
    for layer in range(3):
        single = scaled({"stem": {"kernel": kernel[layer]}}, {"stem": {"kernel": grads[layer]}})
        np.testing.assert_allclose(
            stacked["blocks_0"]["kernel"][layer], single["stem"]["kernel"], rtol=1e-6
        )
    norms = np.linalg.norm(np.asarray(stacked["blocks_0"]["kernel"]).reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms[:2], np.linalg.norm(kernel.reshape(3, -1), axis=1)[:2], 1e-5)
    np.testing.assert_allclose(norms[2], np.linalg.norm(grads[2]), rtol=1e-5)
    together = scaled({"stem": {"kernel": kernel}}, {"stem": {"kernel": grads}})
    assert error(together["stem"]["kernel"], stacked["blocks_0"]["kernel"]) > 0.1


def test_muon_is_that_of_pytorch_for_each_matrix_and_adamw_for_the_rest():
    """PyTorch iterates in bfloat16, so that updates agree to a few hundredths of their norm."""
    rng = np.random.default_rng(0)
    shapes = {
        ("blocks_0", "compute", "attention", "query", "kernel"): ((2, 3), (16,), (2, 16)),
        ("blocks_0", "read", "attention", "out", "kernel"): ((2,), (2, 6), (20,)),
        ("prev_latent_mlp", "ffn", "hidden", "kernel"): ((), (8,), (32,)),
    }
    others = {("blocks_0", "read", "norm", "scale"): (2, 8), ("stem", "kernel"): (2, 2, 1, 8)}
    wide = {path: sum(parts, ()) for path, parts in shapes.items()} | others

    def draw():
        return {path: rng.normal(size=s).astype(np.float32) for path, s in wide.items()}

    params, grads = draw(), [draw(), draw()]
    made, _ = optimizer.Optimizer(
        name="muon", learning_rate=1e-2, warmup_steps=0, decay={"name": "constant"}, b1=0.95,
        b2=0.99, eps=1e-8, weight_decay=0.1, clip_norm=None,
    ).make(10)  # fmt: skip
    ours = flax.traverse_util.unflatten_dict(params)
    state = made.init(ours)
    for gradient in grads:
        gradient = flax.traverse_util.unflatten_dict(gradient)
        updates, state = made.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    assert optimizer.updates_taken(state) == 2
    ours = flax.traverse_util.flatten_dict(ours)
    for path, (layers, inputs, outputs) in shapes.items():
        flat = (math.prod(layers), math.prod(inputs), math.prod(outputs))
        start, *slopes = (x[path].reshape(flat) for x in (params, *grads))
        for layer, found in enumerate(ours[path].reshape(flat)):
            matrix = torch.nn.Parameter(torch.tensor(start[layer]))
            peer = torch.optim.Muon(
                [matrix], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
            for slope in slopes:
                matrix.grad = torch.tensor(slope[layer])
                peer.step()
            moved = matrix.detach().numpy() - start[layer]
            off = np.linalg.norm(found - start[layer] - moved) / np.linalg.norm(moved)
            assert off < 0.1, path
    for path in others:
        adamw = optimizer.OPTIMIZERS["adamw"](1e-2, 0.95, 0.99, 1e-8, weight_decay=0.1)
        value = {path[-1]: params[path]}
        moments = adamw.init(value)
        for gradient in grads:
            updates, moments = adamw.update({path[-1]: gradient[path]}, moments, value)
            value = optax.apply_updates(value, updates)
        assert error(ours[path], value[path[-1]]) < 1e-6, path


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_clipping_acts_for_every_optimizer(name):
    def moments(clip_norm):
        update, _ = optimizer.Optimizer(
            name=name, learning_rate=1.0, warmup_steps=0, decay={"name": "constant"}, b1=0.9,
            b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=clip_norm,
        ).make(10)  # fmt: skip
        params, grads = ({"a": {"kernel": jnp.full((3,), value)}} for value in (1.0, 1e3))
        _, state = update.update(grads, update.init(params), params)
        states = jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu"))
        first = [s.mu["a"]["kernel"] for s in states if hasattr(s, "mu")]
        (first,) = (x for x in first if isinstance(x, jax.Array))  # Muon: of its own kernels, none
        return np.linalg.norm(first) / 0.1

    assert moments(2.0) == pytest.approx(2.0, rel=1e-5)
    assert moments(None) == pytest.approx(1e3 * 3**0.5, rel=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"optimizer.warmup_steps 10 .* train.num_steps 10"):
        optimizer.learning_rate_schedule(1.0, 10, 10, {"name": "constant"})
    with pytest.raises(ValueError, match="optimizer.decay.name is 'cosin'"):
        optimizer.learning_rate_schedule(1.0, 0, 10, {"name": "cosin"})
