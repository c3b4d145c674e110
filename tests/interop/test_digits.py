"""A trained model through every runtime: the same noise gives the same images.

The demo's network is trained for some steps, exported, and drawn by DDIM in 50 steps on the demo's
grid: by rin_jax, and in fresh processes that lack rin_jax and what it is made of.
"""

import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.interop.loading import Model
from rin_jax.training.state import create_state
from rin_jax.training.step import compile_train_step
from tests import test_configs
from tests.interop import exports

STEPS, BATCH = 60, 20
GRID = {"name": "logsnr", "start": 6.0, "end": -9.0}  # begins at a gamma of 1e-4


def trained() -> Model:
    """The demo on one device after a few steps, with their average."""
    config = test_configs.load("digits").get_config()
    config.data.update(image_size=8, channels=1, num_classes=10)
    config.train.update(num_steps=STEPS, batch_size=32)
    config.optimizer.warmup_steps = STEPS // 5
    config.ema.decays = (0.9,)
    config.model.remat = "none"
    config.sampler.num_steps = 50
    config.mesh.data = 1
    experiment = make_experiment(config)
    assert config.sampler.schedule.to_dict() == GRID
    mesh = device_mesh(experiment, jax.devices()[:1])
    images, labels = load_digits(return_X_y=True)
    images = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    state, step = create_state(experiment, mesh, 0), compile_train_step(experiment, mesh)
    for rows in np.random.default_rng(0).integers(0, len(images), (STEPS, 32)):
        batch = {"image": images[rows], "label": labels[rows].astype(np.int32)}
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.7  # 1 is that of a network that knows nothing
    return Model(experiment, state.emas["decay_0.9"], mesh, None, STEPS, "decay_0.9")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(folder of the export, images that rin_jax draws from the noise in in.npz)."""
    model = trained()
    folder = exports.write(tmp_path_factory.mktemp("to"), model, onnx=True)
    noise, labels = exports.noise(model, BATCH), np.arange(BATCH, dtype=np.int32) % 10
    np.savez(folder / "in.npz", noise=noise, labels=labels)
    ours = np.asarray(model.sample_from(noise, labels))
    assert 0.9 < np.abs(ours).max() < 1.1
    return folder, ours


def compare(case, file: str) -> None:
    folder, ours = case
    assert np.abs(np.load(folder / file) - ours).max() < 1e-4


def test_stablehlo_without_rin_jax(case):
    code = exports.readme_code(case[0], "sampler.stablehlo")
    head, tail = code.split("random = ")
    tail = tail[tail.index("weights = ") :]
    code = f"""{head}
given = np.load("in.npz")
noise, labels, keys = given["noise"], given["labels"], np.zeros((len(given["noise"]), 2), np.uint32)
{tail}
np.save("hlo.npy", samples)
"""
    absent = ("rin_jax", "flax", "optax", "ml_collections", "chex", "etils")
    exports.run_without(absent, code, case[0])
    compare(case, "hlo.npy")


def test_pytorch_without_jax(case):
    """Nor with numpy, for what draws the images."""
    folder = case[0]
    given = np.load(folder / "in.npz")
    (folder / "in.json").write_text(json.dumps({name: given[name].tolist() for name in given}))
    code = """
import json, torch, rin_torch
given = json.load(open("in.json"))
model = rin_torch.load(".")
images = model.sample(torch.tensor(given["noise"]), torch.tensor(given["labels"]))
json.dump(images.tolist(), open("torch.json", "w"))
"""
    absent = ("rin_jax", "jax", "flax", "numpy", "safetensors", "etils", "ml_collections")
    exports.run_without(absent, code, folder)
    np.save(folder / "torch.npy", np.float32(json.loads((folder / "torch.json").read_text())))
    compare(case, "torch.npy")


def test_onnxruntime_without_jax(case):
    code = exports.readme_code(case[0], "onnxruntime")
    first, rest = code.split("noise = ", 1)
    rest = rest[rest.index("labels, steps, guidance") :]
    labels, rest = rest.split("\n", 1)
    steps = labels.split("), ", 1)[1].removeprefix("np.int32), ")
    code = f"""{first}
given = np.load("in.npz")
noise, labels = given["noise"], given["labels"]
steps, guidance = {steps}
{rest}
np.save("onnx.npy", samples)
"""
    exports.run_without(("rin_jax", "jax", "flax", "torch", "safetensors"), code, case[0])
    compare(case, "onnx.npy")
