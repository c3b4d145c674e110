"""The safetensors file: another reader and writer agree, and damage is named."""

import io
import json
import struct
import tracemalloc
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors import numpy as others

from rin_jax.interop import safetensors

ARRAYS = {
    "b.kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "a": np.float32([-0.0, np.inf, 1e-40]),
    "scalar": np.array(3.5, np.float32),
}


def written(path, arrays=ARRAYS) -> epath.Path:
    path = epath.Path(path) / "x.safetensors"
    safetensors.write(path, arrays, {"step": "7"})
    return path


def read(data: bytes) -> dict[str, np.ndarray]:
    return dict(safetensors.Reader(io.BytesIO(data), "x").tensors())


def same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


def test_the_formats_own_library_reads_it(tmp_path):
    path = written(tmp_path)
    same(others.load_file(path), ARRAYS)
    with others.safe_open(path, "np") as file:
        assert file.metadata() == {"step": "7"}


def test_a_file_of_the_formats_own_library_is_read(tmp_path):
    others.save_file(ARRAYS, tmp_path / "y.safetensors")
    same(read((tmp_path / "y.safetensors").read_bytes()), ARRAYS)


def test_other_types_are_refused(tmp_path):
    half = {"w": np.ones(2, ml_dtypes.bfloat16)}
    with pytest.raises(ValueError, match="w is bfloat16"):
        written(tmp_path, half)
    others.save_file({"w": np.ones(2, np.float64)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="w is F64"):
        read((tmp_path / "y.safetensors").read_bytes())


def test_a_cut_is_seen_wherever_it_is(tmp_path):
    data = written(tmp_path).read_bytes()
    for size in (0, 4, 8, 40, len(data) - 150, len(data) - 1):
        with pytest.raises(ValueError, match="x is cut off"):
            read(data[:size])
    with pytest.raises(ValueError, match=r"cut off: tensor b\.kernel should have 96 bytes"):
        read(data[: len(data) - 12 - 4 - 10])
    same(read(data), ARRAYS)


def with_header(data: bytes, change) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_a_header_that_does_not_fit_the_data_is_named(tmp_path):
    data = written(tmp_path).read_bytes()

    def shape(header):
        header["b.kernel"]["shape"] = [2, 3, 5]

    def overlap(header):
        header["a"]["data_offsets"] = [90, 102]

    with pytest.raises(ValueError, match=r"b\.kernel of shape \(2, 3, 5\)"):
        read(with_header(data, shape))
    with pytest.raises(ValueError, match="bytes 90 to 102 of the data, but must begin at"):
        read(with_header(data, overlap))
    with pytest.raises(ValueError, match="header is damaged"):
        read(data[:8] + b"?" + data[9:])
    with pytest.raises(ValueError, match="no safetensors file"):
        read(b"PK\x03\x04 something else entirely")


def test_a_changed_byte_changes_the_digest(tmp_path):
    path = epath.Path(tmp_path) / "x"
    digest = safetensors.write(path, ARRAYS, {})
    data = bytearray(path.read_bytes())
    for place in (30, len(data) - 1):
        changed = data.copy()
        changed[place] ^= 1
        with pytest.raises(ValueError, match="x"):
            check(changed, digest)
    check(data, digest)
    with pytest.raises(ValueError, match="goes on after its last tensor"):
        check(data + b"!", digest)


def check(data: bytes, digest: str) -> None:
    reader = safetensors.Reader(io.BytesIO(data), "x")
    list(reader.tensors())
    reader.check_digest(digest)


class Lazy(Mapping):
    """Thirty tensors of 4 MiB that exist only while somebody holds them."""

    def __len__(self):
        return 30

    def __iter__(self):
        return (f"w{i}" for i in range(30))

    def __getitem__(self, name):
        return np.zeros(2**20, np.float32)


def test_memory_is_that_of_one_tensor(tmp_path):
    tracemalloc.start()
    path = written(tmp_path, Lazy())
    with path.open("rb") as file:
        for _ in safetensors.Reader(file, "x").tensors():
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**22
    assert path.stat().length > 30 * 2**22
