"""The notebooks: stripped, installed as they say, and run from top to bottom."""

import base64
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests import xla

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    """The one cell with a tag."""
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["digits", "sampling"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_left(path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            compile(cell.source, str(path), "exec")  # no magics: plain Python
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    (home,) = set(re.findall(r"github(?:\.com)?/([\w-]+/rin_jax)", str(notebook.cells)))
    badge = f"https://colab.research.google.com/github/{home}/blob/main/notebooks/{path.name}"
    assert badge in notebook.cells[0].source


def test_both_install_in_the_same_way():
    first, second = (tagged(read(path), "install").source for path in NOTEBOOKS)
    assert first == second


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Runs the install cell in an empty folder with rin_jax there or not; the commands it ran."""

    def run(present: bool) -> list[list[str]]:
        found = importlib.util.find_spec("rin_jax") if present else None
        commands = []

        def record(command, check):
            assert check  # a failure ends the cell
            commands.append(command)
            if command[0] == "git":
                Path(command[-1]).mkdir()

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
        monkeypatch.setattr(subprocess, "run", record)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)
        exec(tagged(read(NOTEBOOKS[0]), "install").source, {})
        return commands

    return run


def test_nothing_is_installed_where_rin_jax_is(install, tmp_path):
    before = list(sys.path)
    assert install(present=True) == []
    assert list(tmp_path.iterdir()) == []
    assert sys.path == before


def test_the_code_is_installed_beside_the_image_s_jax(install, tmp_path):
    clone, pip = install(present=False)
    code = tmp_path / "rin_jax_code"
    assert clone[:2] == ["git", "clone"]
    assert clone[-1] == str(code)
    assert pip[:4] == [sys.executable, "-m", "pip", "install"]
    assert f"--editable={code}" in pip
    assert sys.path[0] == str(code)
    (stay,) = [word.partition("=")[2] for word in pip if word.startswith("--constraint=")]
    pins = dict(line.split("==") for line in Path(stay).read_text().splitlines())
    assert {"jax", "jaxlib", "numpy"} <= set(pins) <= {"jax", "jaxlib", "numpy", "libtpu"}
    assert pins == {name: importlib.metadata.version(name) for name in pins}
    assert len(install(present=False)) == 1  # again after a failure: the clone is there


BACKEND = """
import zipfile
def build_editable(folder, *_):
    name = "rin_jax-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("rin_jax.pth", __file__.rsplit("/", 1)[0])
        info = "rin_jax-0.1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: rin_jax\\nVersion: 0.1.0")
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.mark.slow
def test_git_and_pip_take_those_commands(tmp_path):
    """The cell in a fresh environment, with a package in the place of ours that needs nothing."""
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "rin_jax").mkdir(parents=True)
    away.mkdir()
    (home / "rin_jax" / "__init__.py").touch()
    (home / "backend.py").write_text(BACKEND)
    (home / "pyproject.toml").write_text(BUILD)
    git = ["git", "-C", str(home), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=a"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    cell = tagged(read(NOTEBOOKS[0]), "install").source
    cell = re.sub('REPOSITORY = ".*"', f"REPOSITORY = {str(home)!r}", cell)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(code):
        done = subprocess.run(
            [python, "-c", code], cwd=away, env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    where = "import rin_jax; print(rin_jax.__file__)"
    installed = str(away / "rin_jax_code" / "rin_jax" / "__init__.py")
    assert run(f"{cell}\n{where}") == installed  # in the kernel that installs it,
    assert run(where) == installed  # and in the next one


def execute(name: str, folder: Path, **parameters) -> list[list[np.ndarray]]:
    """Runs a notebook in `folder` on this machine's CPU; the pictures of each cell that has any.

    `parameters` replace those of the tagged cell, which must have them.
    """
    notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
    cell = tagged(notebook, "parameters")
    for field, value in parameters.items():
        assert re.search(rf"^{field} = ", cell.source, re.MULTILINE), field
        cell.source += f"\n{field} = {value!r}"
    flags = {"XLA_FLAGS": xla.FAST}
    places = {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(folder / "tfds")}
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, **flags, **places})
    pictures = [
        [picture(output.data) for output in cell.outputs if "image/png" in output.get("data", {})]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [of_cell for of_cell in pictures if of_cell]


def picture(data) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))))


@pytest.mark.slow
def test_training_leaves_an_export(tmp_path):
    (improving,), (loaded,) = execute(
        "digits", tmp_path, VARIANT="tiny", STEPS=20, PICTURES=2, SAMPLER_STEPS=4
    )
    assert improving.shape[1] == 2 * (152 + 2) + 2  # of two steps
    lines = (tmp_path / "runs" / "digits_lamb" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines]
    assert np.mean(losses[-5:]) < 0.7  # 1 is that of a network that knows nothing
    assert (improving[100:450, 4:150] != improving[100:450, 158:304]).any()
    assert loaded.shape == (5 * 50 + 2, 10 * 50 + 2)
    assert (tmp_path / "exports" / "digits" / "model.safetensors").exists()


def in_ten_steps(name: str, folder: Path) -> str:
    """A copy of a committed model that samples in fewer steps."""
    copied = Path(shutil.copytree(ROOT / "models" / name, folder / name))
    content = json.loads((copied / "config.json").read_text())
    content["config"]["sampler"]["num_steps"] = 10
    (copied / "config.json").write_text(json.dumps(content))
    return str(copied)


@pytest.mark.slow
def test_samples_of_the_committed_models(tmp_path):
    """Other scales of guidance and other samplers show other pictures of the same noise."""
    grid, guided, samplers, way, reads, clips = execute(
        "sampling", tmp_path, SCALES=(0.0, 3.0), STEPS=(2, 3),
        EXPORT=in_ten_steps("digits", tmp_path), CLIPS=in_ten_steps("moving_digits", tmp_path),
        SAMPLERS=({"name": "ddim", "eta": 0.0}, {"name": "heun", "eta": 0.0}),
    )  # fmt: skip
    tile, line, gap, columns = 96, 14, 2, 10
    row = tile + line + gap
    assert grid[0].shape == (10 * row + gap, columns * (tile + gap) + gap, 3)
    assert guided[0].shape[0] == 2 * row + gap
    assert samplers[0].shape[0] == 4 * row + gap
    tiles = [guided[0][i * row + gap : i * row + gap + tile] for i in range(2)]
    assert (tiles[0] != tiles[1]).any()
    tiles = [samplers[0][i * row + gap : i * row + gap + tile] for i in range(4)]
    assert all((tiles[i] != tiles[j]).any() for i in range(4) for j in range(i))
    assert way[0].shape == (6 * 50 + 2, 10 * 50 + 2)  # images x some of the steps
    assert reads[0].shape == (3 * 3 * 50 + 2, 10 * 50 + 2, 3)  # with two blocks below each
    assert clips[0].shape == (8 * 62 + 2, 12 * 62 + 2)  # of 8 frames that are given, 4 predicted
    last, first = (clips[0][2:62, 2 + i * 62 :][:, :60].astype(int) for i in (7, 8))
    assert 0 < abs(first - last).mean() < 60
