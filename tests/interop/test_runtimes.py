"""Every runtime of an export gives rin_jax's numbers, by its programs and by the card's code."""

import functools
import re

import jax
import numpy as np
import onnxruntime
import pytest
import torch

from rin_jax import ConfigError
from rin_jax.diffusion.process import PREDICTION_TYPES
from rin_jax.interop import card, export_format, onnx, rin_torch
from rin_jax.network import conditioning
from rin_jax.network.attention_maps import apply_with_reads
from tests.interop import exports

VARIANTS = {
    "guided DDIM": {"sampler__guidance_scale": 1.0, "sampler__num_steps": 5},
    "2M, guided by own latents where there is more noise": {
        "sampler__name": "dpmpp_2m", "sampler__num_steps": 50, "sampler__guidance_scale": 1.0,
        "sampler__guidance_latents": "own", "sampler__guidance_interval": (0.0, 0.6),
    },
    # all that the PyTorch file and the card's loop do not do
    "2M of v, normalised, unconditional": {
        "data__num_classes": 0, "diffusion__prediction_type": "v",
        "diffusion__normalize_input": True, "diffusion__input_scale": 0.5,
        "sampler__name": "dpmpp_2m", "sampler__eta": 0.5, "sampler__latents": "reset",
        "sampler__refresh": 1, "sampler__guidance_latents": "own",
        "sampler__guidance_interval": (0.2, 0.8),
        "sampler__schedule": {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9},
    },
    "guided DDPM in bfloat16": {
        "sampler__name": "ddpm_large", "sampler__guidance_scale": 1.0,
        "diffusion__normalize_input": True, "model__dtype": "bfloat16",
    },
    "guided DDIM of videos": exports.VIDEO | {
        "sampler__guidance_scale": 1.0, "diffusion__normalize_input": True,
        "diffusion__input_scale": 0.5, "sampler__num_steps": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def case(request, tmp_path_factory):
    """(model, folder of its export); ONNX too if float32, in which PyTorch and ONNX compute."""
    model = exports.model(**request.param)
    return model, exports.write(tmp_path_factory.mktemp("to"), model, onnx=_float32(model))


def _float32(model) -> bool:
    return model.config.model.dtype == "float32"


def _program(folder, name: str):
    return jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())


def _frames(model) -> dict[str, np.ndarray]:
    """Four clips' frames as samplers take them, if the network is given some."""
    return {} if model.clips is None else {"frames": model.clips["frames"][:4]}


def _in_onnx(folder, xt, gamma, labels, latents, **frames):
    session = onnxruntime.InferenceSession(folder / onnx.DENOISER)
    inputs = {"xt": xt, "gamma": gamma, "labels": labels, "previous_latents": latents, **frames}
    return session.run(None, {put.name: inputs[put.name] for put in session.get_inputs()})


def _in_torch(folder, xt, gamma, labels, latents, **frames):
    model = rin_torch.load(str(folder))
    labels = torch.tensor(labels) if model.net["num_classes"] else None
    with torch.no_grad():
        xt, gamma, latents = (torch.tensor(array) for array in (xt, gamma, latents))
        frames = {name: torch.tensor(array) for name, array in frames.items()}
        prediction, carried = model(xt, gamma, labels, {"latents": latents}, **frames)
    return prediction.numpy(), carried["latents"].numpy()


@pytest.mark.parametrize("batch", [1, 5])
def test_one_pass_of_any_batch(case, batch):
    model, folder = case
    rng, classes = np.random.default_rng(batch), model.experiment.rin.num_classes
    xt, gamma = exports.noise(model, batch), rng.uniform(0.1, 0.9, batch).astype(np.float32)
    labels = np.arange(batch, dtype=np.int32) - 1 if classes else np.full(batch, -1, np.int32)
    latents = rng.standard_normal((batch, 6, 16), np.float32)
    frames = {name: rng.standard_normal((batch, *x.shape[1:]), np.float32)
              for name, x in _frames(model).items()}  # fmt: skip
    ours = model.denoise(xt, gamma, labels, latents, **frames)
    weights = export_format.flatten(model.params)
    theirs = [_program(folder, "denoiser").call(weights, xt, gamma, labels, latents, **frames)]
    if _float32(model):
        given = folder, xt, gamma, labels, latents
        *outputs, reads = _in_onnx(*given, **frames)
        theirs += [outputs, _in_torch(*given, **frames)]
        cond = conditioning.of_labels(labels, classes) | frames
        x = model.experiment.sampler.process.network_input(xt)
        passing = jax.jit(functools.partial(apply_with_reads, model.experiment.rin))
        expected = passing(model.params, x, gamma, cond, latents)[2]
        np.testing.assert_allclose(reads, expected, atol=1e-5)
    for outputs in theirs:
        for a, b in zip(ours, outputs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_stablehlo_in_the_cards_words(case, monkeypatch):
    """The card's code, which draws its noise from numpy's seed 0."""
    model, folder = case
    code = exports.readme_code(folder, "sampler.stablehlo")
    assert len([line for line in code.splitlines() if line]) <= 11 + len(_frames(model))
    made = exports.run_here(code, folder, monkeypatch)
    given = made["noise"], made["labels"]
    ours = np.asarray(model.sample_from(*given, made["keys"], **_frames(model)))
    # bfloat16 shows that the two programs were not compiled together
    np.testing.assert_allclose(made["samples"], ours, atol=1e-4 if _float32(model) else 5e-2)
    if model.experiment.sampler.stochastic:
        assert np.abs(np.asarray(model.sample_from(*given, made["keys"] + 1)) - ours).max() > 0.1


def test_pytorch_and_onnx_in_the_cards_words(case, monkeypatch):
    """Both draw with the export's own sampler or, where they lack it, with another, and say so."""
    model, folder = case
    if not _float32(model):
        pytest.skip("they compute in float32")
    classes, own = model.experiment.rin.num_classes, model.experiment.sampler.name
    labels = np.arange(4) % classes if classes else None
    text = (folder / "README.md").read_text()
    for word, rules in (("import rin_torch", card.IN_TORCH), ("onnxruntime", ("ddim",))):
        made = exports.run_here(exports.readme_code(folder, word), folder, monkeypatch)
        noise = np.asarray(made["noise"])
        given, frames = (noise, labels), _frames(model)
        rule = {} if own in rules else {"name": "ddim", "num_steps": 50}
        drawn_with = model.with_sampler(**rule, **card.PLAIN)
        ours = np.asarray(drawn_with.sample_from(*given, **frames))
        np.testing.assert_allclose(made["samples"], ours, atol=1e-4)
        if rule or not classes:
            assert f"plain {rule.get('name', own)} here, not with the sampler above" in text
            theirs = model.sample_from(*given, **frames)
            assert np.abs(np.asarray(theirs) - ours).max() > 0.01
    said = "plain ddim here, not with the sampler above, which has name dpmpp_2m"
    assert (said in text) == (own != "ddim")
    assert (f"{said}, eta 0.5, latents reset, refresh 1." in text) == (not classes)


def test_programs_are_portable(case):
    """For three platforms, nothing in them but StableHLO, float32 products at full precision."""
    model, folder = case
    for name in ("denoiser", "sampler"):
        exported = _program(folder, name)
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
        text = exported.mlir_module()
        # `shape_assertion` states what the batch must be and is gone once it is known
        assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
        products = re.findall(r"dot_general .*", text)
        assert products
        assert all("HIGHEST" in line or "bf16" in line for line in products)
        assert len(exported.serialize()) < 200_000
    written = ["denoiser.stablehlo", "sampler.stablehlo"] + [onnx.DENOISER] * _float32(model)
    for program in ((folder / name).read_bytes() for name in written):
        for trace in (b".py", b"/tmp", str(folder).encode()):  # of the machine that wrote it
            assert trace not in program


def test_what_the_card_writes_for_other_runtimes_is_what_they_do():
    assert set(card.X0) == set(PREDICTION_TYPES)
    plain = {field: (only,) for field, only in card.PLAIN.items()}
    assert {"name": card.IN_TORCH, **plain} == rin_torch.SAMPLERS


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    from rin_jax.jobs import export

    monkeypatch.setattr(onnx, "NEEDED", ("torch", "no_such_exporter"))
    with pytest.raises(ConfigError, match=r"--onnx needs no_such_exporter: pip install .*onnx"):
        export.export(exports.tiny.config(), str(tmp_path), str(tmp_path / "to"), None,
                      with_grid=False, with_onnx=True, push=None)  # fmt: skip
    assert not (tmp_path / "to").exists()
