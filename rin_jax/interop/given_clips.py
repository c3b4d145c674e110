"""The real clips that come with an export of a network that is given frames."""

import io
import math
import zipfile

import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.network.rin import RIN

MOST_BYTES = 2**28  # of what is read of the file


def read(path: epath.Path, rin: RIN) -> dict[str, np.ndarray] | None:
    """`Model.clips` of an export; None if it has none.

    ConfigError: the file is damaged, large, or has other arrays than the network's frames.
    """
    if not path.exists():
        return None
    if (size := path.stat().length) > MOST_BYTES:
        raise ConfigError(f"{path} has {size} bytes; at most {MOST_BYTES} are read.")
    content = path.read_bytes()
    shape = (rin.cond_frames, *rin.example_shape[1:])
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            frames = _rows(archive, "frames.npy", np.uint8, shape)
            labels = _rows(archive, "labels.npy", np.int32, ())
        if len(frames) != len(labels):
            raise ValueError(f"{len(frames)} clips have {len(labels)} labels")
    except Exception as error:  # there are a dozen classes of errors of zipfile, zlib and NumPy
        text = f"{path} is damaged: {str(error) or type(error).__name__}; copy the file again."
        raise ConfigError(text) from error
    return {"frames": frames, "labels": labels}


def _rows(archive: zipfile.ZipFile, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array [N, *shape] of an archive; ValueError if it is another, or large."""
    if (size := archive.getinfo(name).file_size) > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes, more than {MOST_BYTES}")
    stream = io.BytesIO(archive.read(name))
    np.lib.format.read_magic(stream)
    found, _, kind = np.lib.format.read_array_header_1_0(stream)
    if kind != dtype or found[1:] != shape or found[0] < 1:
        raise ValueError(f"{name} is {kind} {found} instead of {np.dtype(dtype)} (N, *{shape})")
    if math.prod(found) * kind.itemsize != size - stream.tell():
        raise ValueError(f"{name} has {size} bytes, not those of {kind} {found}")
    stream.seek(0)
    return np.load(stream)
