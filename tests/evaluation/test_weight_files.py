"""Files of weights: what is read, and one sentence about what cannot be."""

import hashlib
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch

from rin_jax import ConfigError
from rin_jax.evaluation import weight_files

pytestmark = pytest.mark.slow  # imports what it compares with

ARRAYS = {"kernel": np.arange(600, dtype=np.float32).reshape(20, 30), "bias": np.ones(4, np.int32)}


@pytest.fixture
def files(tmp_path):
    """The same arrays in each format but the graph's."""
    tensors = {name: torch.from_numpy(x) for name, x in ARRAYS.items()}
    torch.save(tensors | {"kernel": torch.nn.Parameter(tensors["kernel"])}, tmp_path / "a.pth")
    torch.save(tensors | {"epoch": 3}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", **ARRAYS)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "a.safetensors")
    return sorted(tmp_path.iterdir())


def test_all_formats_have_the_same_arrays(files):
    for path in files:
        arrays = weight_files.read_arrays(path)
        assert set(arrays) == set(ARRAYS)
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(arrays[name], value)


def sentence(path) -> str:
    with pytest.raises(ConfigError) as error:
        weight_files.read_arrays(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_damaged_files(files, tmp_path):
    for path in files:
        path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "a.pb").write_bytes(b"\xff\xff not a graph")
    for path in [*files, tmp_path / "a.pb"]:
        assert "is damaged" in sentence(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    for path, write in (("a.pth", torch.save), ("a.npz", lambda x, p: np.savez(p, x=np.array(x)))):
        write({"x": Code()}, tmp_path / path)
        assert "is damaged, or not a" in sentence(tmp_path / path)


def test_files_that_are_not_there(tmp_path):
    assert "does not exist" in sentence(tmp_path / "a.pth")
    assert "known are .pth, .pt, .safetensors, .npz, .pb" in sentence(tmp_path / "a.h5")


def test_a_missing_package_is_named(files, tmp_path, monkeypatch):
    (tmp_path / "a.pb").write_bytes(b"")
    for package, name, remedy in (
        ("torch", "a.pth", "pip install torch"),
        ("tensorflow", "a.pb", 'pip install "rin-jax[tf]"'),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        assert sentence(tmp_path / name).endswith(f"without {package}: {remedy}")


def test_a_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"x" * (weight_files.CHUNK + 1))
    digest = weight_files.sha256(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"has SHA-256 {digest}, but the published file"):
        weight_files.published(path, digest)
    assert weight_files.published(tmp_path / "mine.pth", digest) is None
    known = next(iter(weight_files.PUBLISHED))
    assert known.startswith("6726825d")
    assert "torch-fidelity" in weight_files.published(path, known)
