"""The ONNX denoiser in onnxruntime, and the sampler of the README in numpy."""

import numpy as np
import onnxruntime
import pytest

from rin_jax import ConfigError
from rin_jax.interop import onnx
from tests.interop import exports

VARIANTS = {
    "eps": {"sampler__guidance_scale": 1.0, "sampler__num_steps": 5},
    "v, normalised, unconditional": {
        "data__num_classes": 0, "diffusion__prediction_type": "v", "sampler__num_steps": 5,
        "diffusion__normalize_input": True, "diffusion__input_scale": 0.5,
        "sampler__schedule": {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def case(request, tmp_path_factory):
    model = exports.model(**request.param)
    return model, exports.write(tmp_path_factory.mktemp("export"), model, onnx=True)


def test_denoiser_for_any_batch(case):
    model, folder = case
    session = onnxruntime.InferenceSession(folder / onnx.DENOISER)
    names = [put.name for put in session.get_inputs()]
    classes = model.experiment.rin.num_classes
    for batch in (1, 5):
        rng = np.random.default_rng(batch)
        inputs = {
            "xt": exports.noise(model, batch),
            "gamma": rng.uniform(0.1, 0.9, batch).astype(np.float32),
            "labels": np.arange(batch, dtype=np.int32) - 1,
            "previous_latents": rng.standard_normal((batch, 6, 16), np.float32),
        }
        ours = model.denoise(
            inputs["xt"], inputs["gamma"], inputs["labels"] if classes else None,
            inputs["previous_latents"],
        )  # fmt: skip
        theirs = session.run(None, {name: inputs[name] for name in names})
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert ("labels" in names) == (classes > 0)


def test_sampler_in_the_readmes_own_words(case):
    model, folder = case
    code = exports.readme_code(folder, "onnxruntime")
    code += "\nnp.savez('made.npz', noise=noise, labels=labels, images=images)\n"
    exports.run_without(("rin_jax", "jax", "torch", "safetensors"), code, folder)
    made = np.load(folder / "made.npz")
    ours = model.sample_from(made["noise"], made["labels"])
    np.testing.assert_allclose(made["images"], ours, atol=1e-4)


def test_the_graph_tells_nothing_of_this_machine(case):
    _, folder = case
    text = (folder / onnx.DENOISER).read_bytes()
    for trace in (b".py", b"/tmp", str(folder).encode()):
        assert trace not in text


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    from rin_jax.jobs import export

    monkeypatch.setattr(onnx, "NEEDED", ("torch", "no_such_exporter"))
    with pytest.raises(ConfigError, match=r"--onnx needs no_such_exporter: pip install .*onnx"):
        export.export(exports.tiny.config(), str(tmp_path), str(tmp_path / "to"), None,
                      with_grid=False, with_onnx=True, push=None)  # fmt: skip
    assert not (tmp_path / "to").exists()
