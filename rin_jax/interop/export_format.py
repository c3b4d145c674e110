"""What an export says of a model: `config.json` beside the weights in `model.safetensors`.

    format       version of this layout
    network      all attributes of the RIN, those that a configuration leaves out too
    config       the run's resolved configuration: process, sampler, data, training
    class_names  one name a class, or null where they are not known
    step, ema    training steps taken; which running average of the weights this is
    sha256       of model.safetensors

A tensor's name is its path in the parameter tree, dotted: `blocks_0.read.mlp.norm.scale` is
params["blocks_0"]["read"]["mlp"]["norm"]["scale"], of the same shape. Layers that the network scans
over stay stacked along the leading axes.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rin_jax import ConfigError, check_types
from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN
from rin_jax.runtime import files

FORMAT = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOST_BYTES = 2**24  # of config.json; a description has some ten kilobytes
MOST_NAMED = 10  # tensors in a message
MOST_LEVELS = 10  # of its nesting; a description has five


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of config.json; the module's docstring has the fields."""

    network: Mapping[str, Any]
    config: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    step: int
    ema: str
    sha256: str


def network_fields(rin: RIN) -> dict[str, Any]:
    """All attributes of a network, as JSON keeps them."""
    names = (field.name for field in dataclasses.fields(rin) if field.init)
    fields = {name: getattr(rin, name) for name in names if name not in ("parent", "name")}
    return json.loads(json.dumps(fields, default=dataclasses.asdict))


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter tree as {name: leaf}; the leaves themselves, not copies."""
    return traverse_util.flatten_dict(params, sep=".")


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep=".")


def write_weights(
    folder: epath.Path, params: Mapping[str, Any], metadata: Mapping[str, str]
) -> str:
    """Writes model.safetensors; returns its SHA-256. ConfigError at an array that is not float32.

    Those of a CPU are written as they lie in memory; those of other devices are on the host once
    while this runs.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flatten(params).items()}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ConfigError(f"{name} is {array.dtype}; an export has float32 tensors only.")
    path = folder / WEIGHTS
    with _local(path) as local:
        save_file(arrays, local, dict(metadata))
        local.chmod(0o644)  # the library writes a file that its owner alone can read
        _copy(local, path)
        return _sha256(local)


def write(folder: epath.Path, description: Description) -> None:
    """Writes config.json."""
    content = {"format": FORMAT, **dataclasses.asdict(description)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def read(folder: epath.Path) -> Description:
    """Reads config.json, which may be anybody's; what is in `config` is not checked.

    ConfigError if it is missing, damaged, incomplete, of another format or of other types.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ConfigError(f"{folder} is not an export: it has no {CONFIG}.")
    if (size := path.stat().length) > MOST_BYTES:
        raise ConfigError(f"{path} has {size} bytes; a description has at most {MOST_BYTES}.")
    try:
        content = json.loads(path.read_text())
        _check_levels(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}; copy the file again.") from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if version != FORMAT:
        raise ConfigError(
            f"{path} has format {reprlib.repr(version)}; this version of rin_jax reads format "
            f"{FORMAT}. Use the version that wrote it, or export the checkpoint again."
        )
    wanted = {field.name for field in dataclasses.fields(Description)}
    if wanted != set(content):
        missing, unknown = sorted(wanted - set(content)), sorted(set(content) - wanted)
        raise ConfigError(
            f"{path} is damaged: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}."
        )
    check_types(f"{path}: ", Description, content)
    names = content["class_names"]
    return Description(**content | {"class_names": None if names is None else tuple(names)})


def _check_levels(content: Any) -> None:
    """Raises ValueError if JSON is nested deeper than MOST_LEVELS."""
    level = [content]
    for _ in range(MOST_LEVELS):
        dicts, lists = ([x for x in level if isinstance(x, kind)] for kind in (dict, list))
        level = [x for values in (*lists, *map(dict.values, dicts)) for x in values]
    if level:
        raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels")


def check_network(path: epath.Path, saved: Mapping[str, Any], rin: RIN) -> None:
    """Raises ConfigError if config.json's `network` is not what its `config` builds here.

    They differ if the file was changed, or where another version has other defaults.
    """
    now = network_fields(rin)
    names = [name for name in sorted(set(saved) | set(now)) if saved.get(name) != now.get(name)]
    if names:
        short = reprlib.repr
        each = [
            f"{name}: network {short(saved.get(name))}, config {short(now.get(name))}"
            for name in names
        ]
        raise ConfigError(f"{path} describes two networks:\n  " + "\n  ".join(each))


def read_weights(
    folder: epath.Path, sha256: str, rin: RIN, place: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """The parameter tree of `rin` from model.safetensors; `place` puts each array on its devices.

    Raises:
      ConfigError: the file is missing, cut off, changed or not of this format, or a tensor is
        missing, unknown, not float32 or of another shape; the file or the tensor is named.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ConfigError(f"{folder} has no {WEIGHTS}.")
    with _local(path) as local:
        _copy(path, local)
        if (found := _sha256(local)) != sha256:
            raise ConfigError(
                f"{path} was cut off or changed since its export: its SHA-256 is {found}, "
                f"that of the export {sha256}; copy the file again."
            )
        try:
            # not the default, which maps the file into memory: read parts of it would count too
            with safe_open(local, "np", backend="pread") as file:
                _check_tensors(path, file, rin)
                return nest({name: place(file.get_tensor(name)) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(f"{path} is not a safetensors file: {error}.") from error


def _check_tensors(path: epath.Path, file: Any, rin: RIN) -> None:
    """Raises ConfigError unless an open file has the parameters of `rin` and nothing else."""
    wanted = {name: list(leaf.shape) for name, leaf in flatten(param_shapes(rin)).items()}
    problems = [f"{name}: missing" for name in sorted(set(wanted) - set(file.keys()))]
    for name in file.keys():  # noqa: SIM118
        header = file.get_slice(name)
        if name not in wanted:
            problems.append(f"{name}: unknown")
        elif header.get_shape() != wanted[name]:
            problems.append(f"{name}: shape {header.get_shape()} instead of {wanted[name]}")
        elif header.get_dtype() != "F32":
            problems.append(f"{name}: {header.get_dtype()} instead of F32")
    if len(problems) > MOST_NAMED:
        problems[MOST_NAMED:] = [f"and {len(problems) - MOST_NAMED} more"]
    if problems:
        raise ConfigError(f"{path} does not fit the network:\n  " + "\n  ".join(problems))


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[pathlib.Path]:
    """A file of this machine that stands for `path`: itself, or a temporary one for a bucket."""
    if not files.is_bucket(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder, path.name)


def _copy(source: pathlib.Path | epath.Path, target: pathlib.Path | epath.Path) -> None:
    """Copies a file to or from a bucket; nothing if the two are one."""
    if str(source) != str(target):
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 2**24)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
