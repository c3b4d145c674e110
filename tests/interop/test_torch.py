"""The PyTorch file: every option of the network, every sampler, and a process without JAX."""

import jax
import numpy as np
import pytest
import torch

from rin_jax import ConfigError
from rin_jax.diffusion import schedules
from rin_jax.diffusion.process import PREDICTION_TYPES
from rin_jax.diffusion.update_rules import RULES
from rin_jax.interop import formulas, rin_torch
from rin_jax.network.embeddings import sinusoidal_encoding
from tests import reference
from tests.interop import exports
from tests.network import small
from tests.reference import error

TINY_CONFIG = exports.tiny.config().to_dict()


def in_torch(rin, params, tmp_path, config=TINY_CONFIG, module=rin_torch) -> rin_torch.RIN:
    """A network through the files of an export; process and sampler are those of `config`."""
    return module.load(str(exports.write_weights(tmp_path, rin, params, config)))


def tensors_of(tree):
    return jax.tree.map(torch.tensor, tree)


def one_pass(model: rin_torch.RIN, xt, gamma, cond: dict, latents: dict | None) -> tuple:
    """Prediction and latents of arrays and a condition as rin_jax has them."""
    cond = {"labels" if name == "label" else name: value for name, value in cond.items()}
    with torch.no_grad():
        return model(**tensors_of({"xt": xt, "gamma": gamma, "previous": latents, **cond}))


def latents_of(tree) -> dict:
    return tree if isinstance(tree, dict) else {"latents": tree}


@reference.needed
@pytest.mark.parametrize("prev", [True, False])
@pytest.mark.parametrize("name", reference.names("arch_*"))
def test_forward_is_that_of_the_reference(name, prev, tmp_path):
    arrays, _ = reference.load(name)
    rin, params = reference.network(name)
    model = in_torch(rin, params, tmp_path)
    given = reference.inputs(name)
    latents = {"latents": arrays["in/latent_prev"]}
    if rin.interface_self_cond:
        latents["interface"] = arrays["in/tape_prev"]
    x, z = one_pass(model, given["xt"], given["gamma"], given["cond"], latents if prev else None)
    out = reference.under(arrays, "out/" if prev else "out_zero_prev/")
    assert error(x, out["x"]) < 4e-5
    assert error(z["latents"], out["latent"]) < 4e-5


CLIP = {"example_shape": (3, 4, 6, 1), "cond_frames": 3, "video": small.VIDEO}
OPTIONS = {
    "context norms, scale, a line of tokens": {
        "norm_context": True, "time_scale": 10.0, "example_shape": (2, 10, 1),
        "interface_positions": "sin_cos", "qk_norm": True,
    },
    "time and label read, depths": {
        "time_on_latents": False, "label_on_latents": False, "num_blocks": 4, "depth": (2, 2, 1, 0),
    },
    "label written, positions": {
        "label_on_latents": False, "cond_route": "write",
        "latent_positions": "sin_cos_plus_learned", "interface_positions": "sin_cos",
    },
    "decoupled, no write MLP": {
        "time_on_latents": False, "label_on_latents": False, "cond_route": "decoupled",
        "cond_dim": 24, "interface_mlp_ratio": 0, "interface_self_cond": False,
    },
    "decoupled with nothing to read, no self-conditioning": {
        "cond_route": "decoupled", "latent_self_cond": False, "interface_self_cond": False,
    },
    "unconditional, time read": {"num_classes": 0, "time_on_latents": False},
    "video after frames, written, convolution": CLIP | {
        "label_in_time": True, "conv_size": 2, "example_shape": (4, 4, 4, 1), "cond_frames": 3,
    },
    "video before frames that are read, a sequence": CLIP | {
        "video": {"patch_frames": 4, "positions": "before", "written": False}, "cond_frames": 2,
        "sequence": small.SEQUENCE | {"on_latents": True}, "interface_positions": "sin_cos",
    },
    "video with nothing given": CLIP | {
        "cond_frames": 0, "interface_positions": "sin_cos_plus_learned", "interface_dim": 8,
    },
    "frames read apart": CLIP | {
        "video": small.VIDEO | {"written": False}, "cond_route": "decoupled",
        "sequence": small.SEQUENCE,
    },
    "token sequences, another sequence as it is": {
        "example_shape": (7, 3), "patch_size": 1, "cond_route": "decoupled", "cond_dim": 11,
        "sequence": {"tokens": 2, "width": 5, "projected": False, "on_latents": False},
    },
    "tokens of a square": {
        "example_shape": (9, 3), "patch_size": 1, "interface_positions": "sin_cos",
        "conv_size": 3, "cond_route": "write", "label_on_latents": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_the_network(changes, tmp_path):
    rin = small.small(**changes)
    params = small.random_params(rin)
    model = in_torch(rin, params, tmp_path)
    xt, gamma, cond, latents = small.inputs(rin)
    ours = jax.jit(rin.apply)({"params": params}, xt, gamma, cond, latents)
    x, z = one_pass(model, xt, gamma, cond, latents_of(latents))
    assert small.distance(ours[0], x.numpy()) < 2e-5
    assert small.distance(latents_of(ours[1]), {k: v.numpy() for k, v in z.items()}) < 1e-4


def test_schedules(tmp_path):
    """The file of an export has the formula of every schedule; that of the package has none."""
    path = tmp_path / "rin_torch.py"
    path.write_text(formulas.torch_file())
    module = exports.torch_module(tmp_path)
    assert set(module.SCHEDULES) == set(schedules.SCHEDULES)
    t = np.linspace(0, 1, 11, dtype=np.float32)
    for name, parameters in (
        ("cosine", {"start": 0.2, "end": 1.0, "tau": 0.9}),
        ("logarithmic", {"start": 1.0, "end": 10.0, "reverse": True}),
        ("offset_cosine", {}),
    ):
        ours = schedules.make_schedule(name, **parameters)(t)
        theirs = [module.signal_power(torch.tensor(u), name, **parameters) for u in t]
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=3e-7)
    with pytest.raises(ValueError, match="schedule 'linear' is not in this file; use one of"):
        rin_torch.signal_power(torch.tensor(0.5), "linear")


def test_a_schedule_without_a_formula_is_refused(monkeypatch):
    family = schedules.Family(schedules.linear, None)
    monkeypatch.setitem(schedules.SCHEDULES, "new", family)
    with pytest.raises(ConfigError, match=r"sampler.schedule is 'new', .* choose one of offset_co"):
        formulas.check("new")
    for name in set(schedules.SCHEDULES) - {"new"}:
        formulas.check(name)
    assert '"new"' not in formulas.torch_file()


SAMPLERS = {
    "ddim": {},
    "ddpm_large, guided, normalised": {
        "sampler__name": "ddpm_large", "sampler__guidance_scale": 1.5,
        "diffusion__normalize_input": True, "diffusion__input_scale": 0.5,
    },
    "ddpm_small, v": {"sampler__name": "ddpm_small", "diffusion__prediction_type": "v"},
    "x0, decay, jumps beyond t = 0, unconditional": {
        "diffusion__prediction_type": "x0", "sampler__latent_decay": 0.5,
        "sampler__time_difference": 1.5, "data__num_classes": 0,
    },
    "2M, guided in an interval by own latents, decay": {
        "sampler__name": "dpmpp_2m", "sampler__guidance_scale": 1.5,
        "sampler__guidance_latents": "own", "sampler__guidance_interval": (0.01, 0.9),
        "sampler__latent_decay": 0.5, "diffusion__prediction_type": "v",
    },
}  # fmt: skip


def fresh_noise(keys, shape):
    def fresh(i):
        def draw(key):
            key = jax.random.fold_in(jax.random.wrap_key_data(key), i + 1)
            return jax.random.normal(key, shape)

        return torch.tensor(np.asarray(jax.vmap(draw)(keys)))

    return fresh


@pytest.mark.parametrize("changes", SAMPLERS.values(), ids=SAMPLERS)
def test_samples(changes, tmp_path):
    model = exports.model(**changes)
    (tmp_path / "rin_torch.py").write_text(formulas.torch_file())
    theirs = in_torch(
        model.experiment.rin, model.params, tmp_path, model.config.to_dict(),
        exports.torch_module(tmp_path),
    )  # fmt: skip
    noise, labels = exports.noise(model), np.arange(4, dtype=np.int32)
    keys = np.random.default_rng(1).integers(0, 2**32, (4, 2), np.uint32)
    known = model.experiment.rin.num_classes
    ours = model.sample_from(noise, labels if known else None, keys)
    fresh = fresh_noise(keys, noise.shape[1:])
    images = theirs.sample(torch.tensor(noise), torch.tensor(labels) if known else None, fresh)
    np.testing.assert_allclose(images, ours, atol=2e-4)  # DDPM divides by sqrt(1e-8) at first
    again = theirs.sample(torch.tensor(noise), num_steps=7, name="ddim")
    assert np.abs(again - images).max() > 0.01


def test_codes_of_gamma_and_positions():
    """To the rounding of one angle of a thousand radians, at the widths of large networks."""
    coords = np.linspace(0, 1000, 1001, dtype=np.float32)
    for width in (2, 96, 256):
        ours = sinusoidal_encoding(coords, width)
        theirs = rin_torch.sinusoids(torch.tensor(coords), width)
        np.testing.assert_allclose(theirs, ours, atol=2e-6)


ENDS = np.float32([1.0, 1 - 6e-8, 1 - 1e-6, 0.5, 1e-4, 1e-9])  # 1 leaves no noise to divide by


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_estimates_at_the_ends_of_gamma(kind, tmp_path):
    model = exports.model(diffusion__prediction_type=kind, diffusion__input_scale=0.5)
    theirs = in_torch(model.experiment.rin, model.params, tmp_path, model.config.to_dict())
    rng = np.random.default_rng(0)
    prediction, xt = rng.standard_normal((2, 1, 8, 8, 1), np.float32)
    for gamma in ENDS:
        ours = model.experiment.sampler.process.to_clipped_x0_eps(prediction, xt, gamma[None])
        found = theirs.to_x0_eps(*map(torch.tensor, (prediction, xt, gamma)))
        for a, b in zip(ours, found, strict=True):
            assert np.isfinite(a).all()
            # eps is a difference divided by as little as 3e-5
            atol = 1e-6 / np.sqrt(max(1 - gamma, 1e-9))
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("small", [True, False])
def test_ancestral_steps_at_the_ends_of_gamma(small):
    """Also where rounding lets gamma fall a little in a step, as it must not."""
    rng = np.random.default_rng(0)
    xt, eps, fresh = rng.standard_normal((3, 1, 5), np.float32)
    update = RULES["ddpm_small" if small else "ddpm_large"].update
    for gamma, gamma_next in zip(ENDS, ENDS[[0, 0, 1, 2, 3, 4]], strict=True):
        for factor in (1.0, 1 - 1e-6):
            later = np.float32(gamma_next * factor)
            ours = update(xt, None, eps, gamma[None], later[None], fresh, 0.0)
            arrays = map(torch.tensor, (xt, eps, fresh, gamma, later))
            assert np.isfinite(ours).all()
            found = rin_torch.ancestral(*arrays, small)
            np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-6)


def test_what_it_does_not_know_is_refused(tmp_path):
    model = exports.model()
    model = in_torch(model.experiment.rin, model.params, tmp_path)
    noise = torch.zeros(1, 8, 8, 1)
    drawn = {name for changes in SAMPLERS.values() for name in [changes.get("sampler__name")]}
    assert set(rin_torch.SAMPLERS["name"]) == drawn - {None} | {"ddim"}  # compared above
    for name in set(RULES) - set(rin_torch.SAMPLERS["name"]):
        with pytest.raises(ValueError, match=f"'{name}' is not in this file"):
            model.sample(noise, name=name)
    with pytest.raises(TypeError, match="num_step"):
        model.sample(noise, num_step=3)
