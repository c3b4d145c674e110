"""What an export says of a model: `config.json` beside the weights in `model.safetensors`.

    format       version of this layout
    network      all attributes of the RIN, those that a configuration leaves out too
    config       the run's resolved configuration: process, sampler, data, training
    class_names  one name a class, or null where they are not known
    step, ema    training steps taken; which running average of the weights this is
    sha256       of model.safetensors
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rin_jax.interop import safetensors, tensors
from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN

FORMAT = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
    return json.loads(json.dumps(fields))


def write_weights(
    folder: epath.Path, params: Mapping[str, Any], metadata: Mapping[str, str]
) -> str:
    """Writes model.safetensors, a tensor at a time; returns its SHA-256."""
    return safetensors.write(folder / WEIGHTS, tensors.flatten(params), metadata)


def write(folder: epath.Path, description: Description) -> None:
    """Writes config.json."""
    content = {"format": FORMAT, **dataclasses.asdict(description)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def read(folder: epath.Path) -> Description:
    """Reads config.json.

    Raises:
      ValueError: it is not there, damaged, of another format version, or incomplete.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} is no export: it has no {CONFIG}.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; copy the file again.") from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}; this version of rin_jax reads format {FORMAT}. Use "
            "the version that wrote it, or export the checkpoint again."
        )
    wanted = [field.name for field in dataclasses.fields(Description)]
    missing, unknown = sorted(set(wanted) - set(content)), sorted(set(content) - set(wanted))
    if missing or unknown:
        raise ValueError(
            f"{path} is damaged: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}."
        )
    names = content["class_names"]
    return Description(**content | {"class_names": None if names is None else tuple(names)})


def check_network(path: epath.Path, saved: Mapping[str, Any], rin: RIN) -> None:
    """Raises ValueError if config.json's `network` is not what its `config` builds here.

    They differ if the file was changed, or where another version has other defaults.
    """
    now = network_fields(rin)
    differences = [
        f"{name}: network {saved.get(name)!r}, config {now.get(name)!r}"
        for name in sorted(set(saved) | set(now))
        if saved.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(f"{path} describes two networks:\n  " + "\n  ".join(differences))


def read_weights(
    folder: epath.Path, sha256: str, rin: RIN, place: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """The parameter tree of `rin` from model.safetensors; `place` puts each array on its devices.

    Raises:
      ValueError: a tensor is missing, left over or of another shape, or the file is cut off or
        was changed; the tensor or the file is named.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{folder} has no {WEIGHTS}.")
    wanted = {name: leaf.shape for name, leaf in tensors.flatten(param_shapes(rin)).items()}
    with path.open("rb") as file:
        reader = safetensors.Reader(file, str(path))
        problems = [f"{name}: missing" for name in wanted if name not in reader.shapes]
        for name, shape in reader.shapes.items():
            if name not in wanted:
                problems.append(f"{name}: unknown")
            elif shape != wanted[name]:
                problems.append(f"{name}: shape {shape} instead of {wanted[name]}")
        if problems:
            raise ValueError(f"{path} does not fit the network:\n  " + "\n  ".join(problems))
        placed = {name: place(array) for name, array in reader.tensors()}
        reader.check_digest(sha256)
    return tensors.nest(placed)
