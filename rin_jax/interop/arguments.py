"""What the methods of a loaded model are given: checked, and as arrays; ConfigError at the rest."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rin_jax import ConfigError, nearest
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
