"""The safetensors file: written and read one tensor after another.

    8 bytes      length n of the header, little endian
    n bytes      JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {}}
    the rest     the tensors, C order, without gaps; offsets count from the end of the header

All tensors here are float32, and no more than one of them is in memory beside those that the
caller keeps.

Source: the format's description at huggingface.co/docs/safetensors.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

ALIGNMENT = 8  # the header is padded with spaces, so that the tensors start at a multiple
LARGEST_HEADER = 100_000_000  # bytes, the limit of other readers
FLOAT32 = np.dtype("<f4")

Shape = tuple[int, ...]


def write(path: epath.Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Writes float32 arrays under their names, in the mapping's order; returns the file's SHA-256.

    `tensors`: numpy or jax arrays, fetched one by one.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ValueError(f"{name} is {tensor.dtype}; an export has float32 tensors only.")
        begin, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(data):
            file.write(data)
            digest.update(data)

        put(struct.pack("<Q", len(text)))
        put(text)
        for tensor in tensors.values():
            put(_bytes(tensor))  # nothing holds the tensor before while this one is fetched
    return digest.hexdigest()


def _bytes(tensor: Any) -> memoryview:
    """The data of an array, in C order.

    A jax array keeps the copy that is made of it for as long as it lives, unless it is asked for
    the part on one device, which is new each time.
    """
    whole = getattr(tensor, "is_fully_replicated", False)
    array = np.asarray(tensor.addressable_data(0) if whole else tensor)
    return memoryview(np.ascontiguousarray(array, FLOAT32)).cast("B")


class Reader:
    """A safetensors file that is open for reading, from its first byte to its last.

    Args:
      file: the file, open in binary mode.
      name: what errors call it.

    Attributes:
      shapes: shape of each tensor, in the order of the file.

    Raises:
      ValueError: the file is cut off, is no safetensors file, or has a tensor that is not float32.
    """

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name, self._digest = file, name, hashlib.sha256()
        (length,) = struct.unpack("<Q", self._read(8, "the header's length"))
        if length > LARGEST_HEADER:
            raise ValueError(f"{name} is no safetensors file: it begins with a length of {length}.")
        text = self._read(length, "the header")
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            self.shapes = {key: tuple(entry["shape"]) for key, entry in entries}
            dtypes = {key: entry["dtype"] for key, entry in entries}
            offsets = [entry["data_offsets"] for _, entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is no safetensors file: its header is damaged.") from error
        end = 0
        for key, (begin, after) in zip(self.shapes, offsets, strict=True):
            if dtypes[key] != "F32":
                raise ValueError(f"{name}: {key} is {dtypes[key]}; an export has F32 tensors only.")
            size = 4 * math.prod(self.shapes[key])
            if begin != end or after - begin != size:
                raise ValueError(
                    f"{name}: {key} of shape {self.shapes[key]} lies at bytes {begin} to {after} "
                    f"of the data, but must begin at {end} and take {size} bytes."
                )
            end = after

    def _read(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(
                f"{self._name} is cut off: {what} should have {size} bytes and has {len(data)}; "
                "copy the file again."
            )
        self._digest.update(data)
        return data

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of all tensors, read as they are asked for; once."""
        for key, shape in self.shapes.items():
            data = self._read(4 * math.prod(shape), f"tensor {key}")
            yield key, np.frombuffer(data, FLOAT32).reshape(shape)

    def check_digest(self, sha256: str) -> None:
        """Raises ValueError unless the whole file, read by now, has this SHA-256."""
        if self._file.read(1):
            raise ValueError(f"{self._name} goes on after its last tensor; copy the file again.")
        if self._digest.hexdigest() != sha256:
            raise ValueError(
                f"{self._name} was changed since it was exported: its SHA-256 is "
                f"{self._digest.hexdigest()}, that of the export {sha256}; copy the file again."
            )
