"""Exports of the tiny experiment with random weights, and processes that lack a package."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import torch
from etils import epath

from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop import export_format
from rin_jax.interop.loading import Model
from rin_jax.jobs import export
from rin_jax.network.partitioning import param_shapes
from tests import tiny, xla
from tests.network.small import fill

VIDEO = {  # three frames of 8 x 8 that follow two given ones
    "data__clip": {"frames": 5, "cond_frames": 2, "stride": 1, "window": "first"},
    "model__video": {"patch_frames": 2, "positions": "before", "written": True},
}  # fmt: skip
NAMES = tuple(f"digit {i}" for i in range(10))


def model_of(experiment: Experiment, names=NAMES) -> Model:
    """A model with weights under which every part of the network has an effect."""
    mesh = device_mesh(experiment, jax.devices()[:1])
    params = jax.device_put(fill(param_shapes(experiment.rin)))
    return Model(experiment, params, mesh, names, step=7, ema="decay_0.9")


def model(**changes) -> Model:
    """That of TINY with fields changed; with clips where it is given frames."""
    names = NAMES if changes.get("data__num_classes", 10) == 10 else None
    made = model_of(make_experiment(tiny.config(**changes)), names)
    return dataclasses.replace(made, clips=clips_of(made))


def clips_of(model: Model) -> dict[str, np.ndarray] | None:
    """Six clips of noise, of a network with classes that is given frames."""
    rng, rin = np.random.default_rng(1), model.experiment.rin
    if not rin.cond_frames:
        return None
    frames = rng.integers(0, 256, (6, rin.cond_frames, *rin.example_shape[1:]), np.uint8)
    return {"frames": frames, "labels": np.arange(6, dtype=np.int32)[::-1]}


def write(path, model: Model, *, onnx: bool = False, page: bool = False) -> Path:
    """Its export, without a sample grid."""
    parts = {"with_onnx": onnx or page, "with_page": page}
    export.write(epath.Path(path), model, [], preview=None, **parts)
    return Path(path)


def write_weights(path, rin, params, config) -> Path:
    """Only config.json and model.safetensors."""
    path = epath.Path(path)
    sha256 = export_format.write_weights(path, params, {})
    network = export_format.network_fields(rin)
    export_format.write(
        path, export_format.Description(network, config, None, step=7, ema="x", sha256=sha256)
    )
    return Path(path)


def noise(model: Model, batch: int = 4, seed: int = 0) -> np.ndarray:
    shape = (batch, *model.experiment.rin.example_shape)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def readme_code(path: Path, word: str) -> str:
    """The code block of README.md that has a word in it."""
    blocks = (path / "README.md").read_text().split("```python\n")[1:]
    (found,) = [code for block in blocks if word in (code := block.split("```")[0])]
    return found


def torch_module(folder: Path):
    """The PyTorch file of an export, as a module of its own."""
    spec = importlib.util.spec_from_file_location("rin_torch", Path(folder, "rin_torch.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(code: str, folder: Path, monkeypatch) -> dict:
    """Runs code of a card in the export's folder; its variables.

    PyTorch's noise is the same whatever other tests have drawn.
    """
    names: dict = {}
    torch.manual_seed(0)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "rin_torch", torch_module(folder))
    exec(code, names)
    return names


def run_without(packages: tuple[str, ...], code: str, path: Path) -> str:
    """Runs code in a fresh process in `path` where importing `packages` fails; its output."""
    guard = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {packages!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"for package in {packages!r}:\n"
        "    try: __import__(package)\n"
        "    except ImportError: continue\n"
        "    raise SystemExit(f'{package} can be imported')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guard + code],
        cwd=path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"OMP_NUM_THREADS": "1", "XLA_FLAGS": xla.FAST},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
