"""A trained model through every runtime: the same noise gives the same images.

The digits are trained for a few hundred steps by the command, exported by the command, and drawn
by DDIM in 50 steps from the same noise. So is the same model with the published cosine grid.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import rin_jax
from tests.interop import exports
from tests.test_configs import CONFIGS

STEPS, BATCH = 300, 64
pytestmark = pytest.mark.slow


def command(*arguments: str) -> None:
    """python -m rin_jax.main on the digits, on one device and with XLA's usual optimisation."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(CONFIGS.parent / ".cache" / "jax-cli")
    done = subprocess.run(
        [sys.executable, "-m", "rin_jax.main", "--config=configs/digits.py", *arguments],
        cwd=CONFIGS.parent, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of the export of a trained model."""
    run, folder = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("to") / "digits"
    workdir = f"--workdir={run}"
    command(workdir, f"--config.train.num_steps={STEPS}", f"--config.data.data_dir={run}/tfds")
    command(
        workdir, "--mode=export", f"--to={folder}", "--onnx", "--config.sampler.num_steps=50",
        f"--config.data.data_dir={run}/tfds",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module", params=["logsnr", "cosine"])
def case(request, exported, tmp_path_factory):
    """(folder of an export, noise, labels, our images, which of them are well-posed)."""
    folder, model = exported, rin_jax.load(str(exported))
    assert model.step == STEPS
    assert model.config.sampler.schedule.name == "logsnr"  # the demo's own, from a gamma of 1e-4
    noise, labels = exports.noise(model, BATCH), np.arange(BATCH, dtype=np.int32) % 10
    good = np.ones(BATCH, bool)
    if request.param == "cosine":
        schedule = {"name": "cosine", "start": 0.0, "end": 1.0, "tau": 1.0}
        model = model.with_sampler(schedule=schedule)
        folder = exports.write(tmp_path_factory.mktemp("to"), model, onnx=True)
        good = well_posed(model, noise, labels)
    ours = np.asarray(model.sample_from(noise, labels))
    np.savez(folder / "in.npz", noise=noise, labels=labels)
    return folder, noise, labels, ours, good


def well_posed(model, noise, labels) -> np.ndarray:
    """Whether float32 tells the first x0 of the cosine grid, bool [B].

    There gamma is 1e-9, so rounding in the prediction is divided by 3e-5. A pixel that is then
    clipped to the range of x0 loses that error; one that is not carries it on.
    """
    gamma = np.full(BATCH, 1e-9, np.float32)
    scale = model.config.sampler.guidance_scale
    conditional, without = (
        np.asarray(model.denoise(noise, gamma, given)[0]) for given in (labels, None)
    )
    prediction = (1 + scale) * conditional - scale * without
    x0 = (noise - prediction) / np.sqrt(1e-9)
    return (np.abs(x0) > 1.1).all((1, 2, 3))


def compare(case, images) -> None:
    *_, ours, good = case
    assert good.mean() > 0.8
    assert np.abs(ours).max() > 0.9
    assert np.abs(np.asarray(images) - ours)[good].max() < 1e-4


def test_stablehlo_without_rin_jax(case):
    folder = case[0]
    code = exports.readme_code(folder, "sampler.stablehlo")
    head, tail = code.split("random = ")
    tail = tail[tail.index("images = ") :]
    code = f"""{head}
given = np.load("in.npz")
noise, labels, keys = given["noise"], given["labels"], np.zeros((len(given["noise"]), 2), np.uint32)
{tail}
np.save("hlo.npy", images)
"""
    exports.run_without(("rin_jax", "flax", "optax", "ml_collections"), code, folder)
    compare(case, np.load(folder / "hlo.npy"))


def test_pytorch_without_jax(case):
    folder = case[0]
    code = """
import numpy, torch, rin_torch
given = numpy.load("in.npz")
model = rin_torch.load(".")
images = model.sample(torch.tensor(given["noise"]), torch.tensor(given["labels"]))
numpy.save("torch.npy", images.numpy())
"""
    exports.run_without(("rin_jax", "jax", "flax"), code, folder)
    compare(case, np.load(folder / "torch.npy"))


def test_onnxruntime_without_jax(case):
    folder = case[0]
    code = exports.readme_code(folder, "onnxruntime")
    first, rest = code.split("noise = ", 1)
    rest = rest[rest.index("labels, steps, guidance") :]
    labels, rest = rest.split("\n", 1)
    steps = labels.split("), ", 1)[1].removeprefix("np.int32), ")
    code = f"""{first}
given = np.load("in.npz")
noise, labels = given["noise"], given["labels"]
steps, guidance = {steps}
{rest}
np.save("onnx.npy", images)
"""
    exports.run_without(("rin_jax", "jax", "flax", "torch"), code, folder)
    compare(case, np.load(folder / "onnx.npy"))


def test_denoisers(case):
    """One pass from latents as a pass leaves them, in this process, to 1e-5."""
    import onnxruntime
    import torch

    from rin_jax.interop import rin_torch, tensors

    folder, noise, labels, *_ = case
    model = rin_jax.load(str(folder))
    gamma = np.linspace(0.01, 0.99, BATCH, dtype=np.float32)
    latents = np.asarray(model.denoise(noise, gamma, labels)[1])
    ours, _ = model.denoise(noise, gamma, labels, latents)
    program = jax.export.deserialize((folder / "denoiser.stablehlo").read_bytes())
    weights = tensors.flatten(model.params)
    inputs = {"xt": noise, "gamma": gamma, "labels": labels, "previous_latents": latents}
    session = onnxruntime.InferenceSession(str(folder / "denoiser.onnx"))
    with torch.no_grad():
        arrays = (torch.tensor(array) for array in (noise, gamma, labels))
        in_torch, _ = rin_torch.load(str(folder))(*arrays, {"latents": torch.tensor(latents)})
    for theirs in (
        program.call(weights, noise, gamma, labels, latents)[0],
        session.run(None, inputs)[0],
        in_torch,
    ):
        assert np.abs(np.asarray(theirs) - np.asarray(ours)).max() < 1e-5
