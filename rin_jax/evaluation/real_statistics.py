"""Statistics of real images in the features of one network, as a file that says what they are of.

    description    JSON: the feature network, the data set, its preprocessing and count
    OUTPUT/mean, OUTPUT/covariance    float64 [F], [F, F], for "pool" and perhaps "spatial"
    features       float32 [N, F], "pool" of some of the images, for KID and precision/recall
    histogram      int64 [K], how many images have each label; empty without labels
    OUTPUT/floor   Frechet distance between two halves of the images: samples cannot be much closer
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.evaluation.distances import Moments
from rin_jax.evaluation.parts import write_arrays
from rin_jax.evaluation.protocol import differences

# What samples and real images must have in common, of a reference's description.
COMPARED = ("features", "image_size", "channels", "preprocessing", "clip")
ADM = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # names in files of ADM's evaluator


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images as one feature network sees them."""

    description: Mapping[str, Any]
    moments: Mapping[str, Moments]  # of each output
    features: np.ndarray  # [N, F]
    histogram: np.ndarray  # [K]
    floor: Mapping[str, float]  # of each output

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name."""
        arrays = {"features": self.features, "histogram": self.histogram}
        for output, (mean, covariance) in self.moments.items():
            arrays |= {f"{output}/mean": mean, f"{output}/covariance": covariance}
        arrays |= {f"{output}/floor": np.float64(x) for output, x in self.floor.items()}
        return arrays

    @property
    def sha256(self) -> str:
        """A hash of the description and all numbers."""
        found = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        for name, array in sorted(self.arrays().items()):
            found.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def save(self, path: epath.Path) -> None:
        """Writes the file, as a whole or not at all."""
        write_arrays(path, {"description": json.dumps(self.description), **self.arrays()})


def load(path: epath.Path) -> Reference:
    """Reads a file of `Reference.save`, or of ADM's evaluator ("mu" and "sigma").

    Raises ConfigError: there is none; it is damaged; it is of neither kind.
    """
    try:
        data = path.read_bytes()
        arrays = dict(np.load(io.BytesIO(data)))
    except FileNotFoundError as error:
        raise ConfigError(f"evaluation.reference is {path}, which is not there.") from error
    except Exception as error:  # zipfile and numpy have a dozen of their own
        raise ConfigError(f"{path} is not a file of statistics, or damaged: {error}.") from error
    if "description" in arrays:
        description = json.loads(str(arrays.pop("description")))
        outputs = {name.removesuffix("/mean") for name in arrays if name.endswith("/mean")}
        moments = {x: Moments(arrays[f"{x}/mean"], arrays[f"{x}/covariance"]) for x in outputs}
        floor = {x: float(arrays[f"{x}/floor"]) for x in outputs}
        return Reference(description, moments, arrays["features"], arrays["histogram"], floor)
    if not {"mu", "sigma"} <= set(arrays):
        raise ConfigError(f"{path} has {sorted(arrays)}, and no statistics of rin_jax or of ADM.")
    description = {"features": {"network": "inception", "protocol": "adm"},
                   "file": path.name, "file_sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
    moments = {x: Moments(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
               for x, (mean, covariance) in ADM.items() if mean in arrays}  # fmt: skip
    return Reference(description, moments, np.empty((0, 0), np.float32), np.empty(0, np.int64), {})


def check(path: epath.Path, found: Reference, wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError if statistics are of other features, sizes or preprocessing than wanted.

    What the file does not tell (one of ADM's evaluator has no size) is taken as fitting.
    """
    told = {name: found.description[name] for name in COMPARED if name in found.description}
    ours = {name: wanted[name] for name in told if name in wanted}
    if "file" in found.description:  # the weights are not told either
        ours["features"] = {name: ours["features"].get(name) for name in told["features"]}
    if lines := differences(ours, told):
        raise ConfigError(
            f"the statistics {path} do not suit these samples: {'; '.join(lines)}. Make them with "
            "--mode=reference under this configuration."
        )
