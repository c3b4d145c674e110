"""The StableHLO programs: the same numbers as rin_jax, in a process that cannot import it."""

import re

import jax
import numpy as np
import pytest

from rin_jax.interop import tensors
from tests.interop import exports

ABSENT = ("rin_jax", "flax", "optax", "ml_collections", "chex")

VARIANTS = {
    "ddim": {},
    "ddpm, guided, normalised, bfloat16": {
        "sampler__name": "ddpm_large", "sampler__guidance_scale": 1.0,
        "diffusion__normalize_input": True, "model__dtype": "bfloat16",
    },
    "unconditional": {"data__num_classes": 0, "diffusion__prediction_type": "v"},
}  # fmt: skip


def program(folder, name: str):
    return jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def case(request, tmp_path_factory):
    model = exports.model(**request.param)
    return model, exports.write(tmp_path_factory.mktemp("export"), model)


def test_denoiser_for_any_batch(case):
    model, folder = case
    denoiser = program(folder, "denoiser")
    weights = tensors.flatten(model.params)
    for batch in (1, 5):
        rng = np.random.default_rng(batch)
        xt, gamma = exports.noise(model, batch), rng.uniform(0.1, 0.9, batch).astype(np.float32)
        classes = model.experiment.rin.num_classes
        labels = np.arange(batch, dtype=np.int32) % classes if classes else np.full(batch, -1)
        latents = rng.standard_normal((batch, 6, 16), np.float32)
        ours = model.denoise(xt, gamma, labels, latents)
        theirs = denoiser.call(weights, xt, gamma, labels.astype(np.int32), latents)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_sampler_in_the_readmes_own_words_without_rin_jax(case):
    """The card's code, which draws its noise from numpy's seed 0, in a fresh process."""
    model, folder = case
    save = "\nnp.savez('made.npz', noise=noise, labels=labels, keys=keys, images=images)"
    code = exports.readme_code(folder, "sampler.stablehlo") + save
    assert len([line for line in code.splitlines() if line]) <= 10 + 1  # ten, and the saving
    exports.run_without(ABSENT, code, folder)
    made = np.load(folder / "made.npz")
    ours = np.asarray(model.sample_from(made["noise"], made["labels"], made["keys"]))
    # compiled at another optimisation level there, which in bfloat16 is seen
    atol = 1e-4 if model.config.model.dtype == "float32" else 5e-2
    np.testing.assert_allclose(made["images"], ours, atol=atol)
    if model.config.sampler.name != "ddim":
        other = np.asarray(model.sample_from(made["noise"], made["labels"], made["keys"] + 1))
        assert np.abs(other - ours).max() > 0.1


def test_programs_are_portable(case):
    """For three platforms, nothing in them but StableHLO, float32 products at full precision."""
    _, folder = case
    for name in ("denoiser", "sampler"):
        exported = program(folder, name)
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
        text = exported.mlir_module()
        # `shape_assertion` states what the batch must be and is gone once it is known
        assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
        products = re.findall(r"dot_general .*", text)
        assert products
        assert all("HIGHEST" in line or "bf16" in line for line in products)
        assert len(exported.serialize()) < 200_000


def test_the_weights_are_an_argument(case):
    model, folder = case
    sampler = program(folder, "sampler")
    noise, keys = exports.noise(model), np.zeros((4, 2), np.uint32)
    labels = np.zeros(4, np.int32)
    weights = tensors.flatten(model.params)
    before = sampler.call(weights, noise, labels, keys)
    weights["readout.out.kernel"] = -weights["readout.out.kernel"]
    assert np.abs(before - sampler.call(weights, noise, labels, keys)).max() > 0.1
