"""What the methods of a loaded model are given: checked, and as arrays; ConfigError at the rest."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rin_jax import ConfigError, nearest
from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import NO_LABEL


def whole_number(name: str, value: Any, most: int) -> int:
    """A number of 0..most."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number in 0..{most}.")
    return int(value)


def examples(name: str, given: Any, shape: Sequence[int]) -> np.ndarray | jax.Array:
    """Numbers [B, *shape]."""
    try:
        array = given if isinstance(given, jax.Array) else np.asarray(given)
        fits = array.dtype.kind in "fiu" and array.shape[1:] == tuple(shape) and array.ndim
    except (TypeError, ValueError):  # what NumPy says of ragged lists
        fits = False
    if not fits:
        what = f"{array.dtype} {array.shape}" if hasattr(given, "dtype") else type(given).__name__
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ConfigError(f"{name} is {what}; give an array of numbers [{wanted}].")
    return array


def frames(given: Any, wanted: tuple[int, ...] | None, dtype: type) -> dict[str, np.ndarray]:
    """{"frames": array of shape `wanted`} from frames of one sample or all; {} if None are wanted.

    They are uint8, or any floats for float32.
    """
    if wanted is None:
        if given is not None:
            raise ConfigError("there are frames, but the model is given none; leave them out.")
        return {}
    fitting = f"{dtype.__name__} {wanted[1:]} for all samples, or {wanted}"
    if given is None:
        raise ConfigError(f"the model is given frames and there are none; pass {fitting}.")
    given = np.asarray(given)
    right = given.dtype == dtype if dtype is np.uint8 else given.dtype.kind == "f"
    if not right or given.shape not in (wanted, wanted[1:]):
        raise ConfigError(f"frames are {given.dtype} {given.shape}; pass {fitting}.")
    return {"frames": np.broadcast_to(given, wanted).astype(dtype)}


def edited(
    images: Any, mask: Any, strength: Any, experiment: Experiment
) -> tuple[np.ndarray, np.ndarray, int]:
    """What `Model.edit` starts from: images uint8 [B, ...], where they are made, the first step."""
    shape = experiment.rin.example_shape
    images = np.asarray(examples("images", images, shape))
    if images.dtype != np.uint8:
        raise ConfigError(f"images are {images.dtype}; give pixels of 0..255, uint8.")
    free = np.asarray(True if mask is None else mask)
    shapes = (), shape[:-1], images.shape[:-1]
    if free.dtype != bool or free.shape not in shapes[mask is not None :]:
        raise ConfigError(
            f"mask is {free.dtype} {free.shape}; give bool {shape[:-1]} for all images, or "
            f"{images.shape[:-1]}, True where they are made anew."
        )
    number = isinstance(strength, int | float | np.number) and not isinstance(strength, bool)
    if not (number and 0 < strength <= 1):
        raise ConfigError(f"strength is {strength!r}; it must be a number in (0, 1].")
    free = np.broadcast_to(free, images.shape[:-1])[..., None]
    steps = experiment.sampler.num_steps
    return images, free, steps - max(1, round(strength * steps))


def labels(given: Any, batch: int, known: int, names: Sequence[str] | None) -> np.ndarray:
    """int32 [batch] of a class for all or one for each, by number or name; None: NO_LABEL.

    `known` is the number of classes, `names` are theirs, if they are known.
    """
    if isinstance(given, str):
        given = _number(given, known, names)
    elif np.iterable(given) and not isinstance(given, jax.Array):
        each = given.tolist() if isinstance(given, np.ndarray) else given
        given = [_number(x, known, names) if isinstance(x, str) else x for x in each]
    try:
        found = np.asarray(NO_LABEL if given is None else given)
    except (TypeError, ValueError):  # what NumPy says of ragged lists
        found = np.asarray(given, object)
    if found.size and found.dtype.kind not in "iu":
        raise ConfigError(
            f"labels has {found.ravel().tolist()[0]!r}; give whole numbers or names of classes."
        )
    if found.ndim > 1 or (found.ndim and len(found) != batch):
        raise ConfigError(f"labels has shape {found.shape}; give one number or {batch}.")
    wrong = found[(found != NO_LABEL) & ((found < 0) | (found >= known))]
    if wrong.size:
        raise ConfigError(f"labels has {wrong.flat[0]}; the model's classes are {_classes(known)}.")
    return np.broadcast_to(found, (batch,)).astype(np.int32)


def _number(name: str, known: int, names: Sequence[str] | None) -> int:
    if names is None:
        raise ConfigError(
            f"labels has {name!r}, but the classes of this model have no names: they are "
            f"{_classes(known)}."
        )
    if name not in names:
        few = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        end = nearest(name, names)
        raise ConfigError(f"labels has {name!r}; the model's classes are {few}{end}")
    return list(names).index(name)


def _classes(known: int) -> str:
    return f"0..{known - 1}" if known else "none, it is unconditional"
