"""Files of published weights as arrays by name; the user names the file, nothing is downloaded.

Formats: PyTorch (.pth, .pt: needs torch), safetensors, NumPy (.npz), and the constants of a frozen
TensorFlow graph (.pb: needs the extra `tf`). A file of pickled code is never run.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rin_jax import ConfigError

# SHA-256 -> what the file is. PyTorch's names of files carry the first eight digits.
PUBLISHED = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
        "inception-2015-12-05 for PyTorch (pytorch-fid, torch-fidelity)"
    ),
}
CHUNK = 2**20  # bytes that are hashed at a time


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a file by name, as the file has them; PyTorch's are float32.

    Raises:
      ConfigError: the file is not there, its suffix is of no format above, the package that reads
        it is missing, or the file is damaged.
    """
    path = epath.Path(path)
    if path.suffix not in READERS:
        raise ConfigError(f"{path} is not of a known format; known are {', '.join(READERS)}.")
    if not path.is_file():
        raise ConfigError(f"the file of weights {path} does not exist.")
    content = path.read_bytes()
    try:
        return READERS[path.suffix](content)
    except ImportError as error:
        package = 'pip install "rin-jax[tf]"' if path.suffix == ".pb" else "pip install torch"
        raise ConfigError(f"{path} cannot be read without {error.name}: {package}") from error
    except Exception as error:  # whatever a library says of bytes that it does not understand
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{path} is damaged, or not a {path.suffix} file of arrays: {reason}"
        ) from error


def load(
    path: epath.PathLike, network: str, params_of: Callable[[Mapping[str, np.ndarray]], Any],
    read: Callable[[epath.PathLike], Mapping[str, np.ndarray]] | None = None,
) -> tuple[Any, str]:  # fmt: skip
    """(parameters, SHA-256) of a file of a network, whose arrays `params_of` understands.

    `read` is `read_arrays` if not given.

    Raises:
      ConfigError: the file is missing, damaged, not what its name says, or of another network.
    """
    arrays, digest = (read or read_arrays)(path), sha256(path)
    published(path, digest)
    try:
        return params_of(arrays), digest
    except ConfigError as error:
        raise ConfigError(f"{path} is not {network}: {error}") from error


def sha256(path: epath.PathLike) -> str:
    """The SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def published(path: epath.PathLike, digest: str) -> str | None:
    """What published file has this SHA-256; None if the table has none.

    Raises:
      ConfigError: the file's name claims to be a published one, and its SHA-256 is another.
    """
    name = epath.Path(path).name
    for known in PUBLISHED:
        if known[:8] in re.split(r"[-_.]", name) and digest != known:
            raise ConfigError(
                f"{path} has SHA-256 {digest}, but the published file of this name has {known}: "
                "download it again, or rename it if it is meant to differ."
            )
    return PUBLISHED.get(digest)


def take(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, checked, as float64.

    Raises:
      ConfigError: the array is missing, has another shape, or a value of it is not finite.
    """
    if name not in arrays:
        raise ConfigError(f"it has no array {name}, so it is a file of another network.")
    found = np.asarray(arrays[name], np.float64)
    if found.shape != shape:
        raise ConfigError(
            f"its array {name} has shape {found.shape} instead of {shape}, so it is cut short or a "
            "file of another network."
        )
    if not np.isfinite(found).all():
        raise ConfigError(f"its array {name} has values that are not finite: download it again.")
    return found


def _torch(content: bytes) -> dict[str, np.ndarray]:
    import torch

    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    tensors = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
    return {name: x.detach().float().numpy() for name, x in tensors.items()}


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    import safetensors.numpy

    return safetensors.numpy.load(content)


def _numpy(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _graph(content: bytes) -> dict[str, np.ndarray]:
    import tensorflow as tf

    nodes = tf.compat.v1.GraphDef.FromString(content).node
    constants = {x.name: x.attr["value"].tensor for x in nodes if x.op == "Const"}
    return {name: tf.make_ndarray(tensor) for name, tensor in constants.items()}


READERS: dict[str, Callable[[bytes], dict[str, np.ndarray]]] = {
    ".pth": _torch, ".pt": _torch, ".safetensors": _safetensors, ".npz": _numpy, ".pb": _graph,
}  # fmt: skip
