"""Which class each sample is asked for: the label of image i follows from a rule, the seed and i.

More images never change the labels of the first ones.
"""

from collections.abc import Sequence

import numpy as np

from rin_jax import ConfigError, nearest
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.sampling import grids

GRID = grids.ROWS * grids.COLUMNS


def by_rule(
    rule: str, count: int, num_classes: int, seed: int, histogram: Sequence[int] | None = None
) -> np.ndarray:
    """Labels int32 [count]; NO_LABEL for 0 classes.

    "balanced": all classes in a new random order in each round. "random": each is drawn by itself.
    "data": each is drawn with the frequencies of `histogram` [num_classes]; ConfigError if it is
    not known.
    """
    if not num_classes:
        return np.full(count, NO_LABEL, np.int32)
    if rule == "balanced":
        rounds = range(-(-count // num_classes))
        orders = [np.random.default_rng((seed, i)).permutation(num_classes) for i in rounds]
        return np.concatenate(orders).astype(np.int32)[:count]
    draws = (np.random.default_rng((seed, i)) for i in range(count))  # more never change the first
    if rule == "random":
        return np.array([draw.integers(num_classes) for draw in draws], np.int32)
    if histogram is None or not np.sum(histogram):
        raise ConfigError(
            "evaluation.labels is 'data', but the statistics of real images do not tell how many "
            "have each label; set it to 'random' or 'balanced', or make the statistics with "
            "--mode=reference."
        )
    ends = np.cumsum(histogram)
    at = [draw.integers(ends[-1]) for draw in draws]
    return np.searchsorted(ends, at, side="right").astype(np.int32)


def choose(
    classes: Sequence[str], num: int | None, num_classes: int, seed: int, names: Sequence[str] = ()
) -> np.ndarray:
    """The labels int32 [N] of images 0, 1, ..; of a hundred, or whole rounds of "all", for None.

    `classes` are labels, or some of the `names` of the classes, taken in turn; or ["all"] in turn;
    or ["balanced"] or ["random"], see `by_rule`. Empty for at most ten in turn. ConfigError: a
    class that the model does not know, no class, or too few images.
    """
    if num is not None and num < 1:
        raise ConfigError(f"--num is {num}; it must be at least 1.")
    count = GRID if num is None else num
    if not num_classes and classes:
        raise ConfigError(
            f"--classes has {', '.join(classes)}, but the model knows 0 classes (it is "
            "unconditional); leave the flag out."
        )
    if not num_classes or list(classes) in (["balanced"], ["random"]):
        return by_rule(classes[0] if classes else "balanced", count, num_classes, seed)
    if list(classes) == ["all"]:
        if num is None:
            count = num_classes * -(-count // num_classes)
        if count < num_classes:
            raise ConfigError(
                f"--num is {count}, but --classes=all needs an image of each of {num_classes} "
                "classes; raise it, or choose balanced or random."
            )
        return np.resize(np.arange(num_classes, dtype=np.int32), count)
    chosen = [_number(text.strip(), num_classes, names) for text in classes]
    return np.resize(np.int32(chosen or np.unique(grids.grid_labels(num_classes))), count)


def _number(text: str, num_classes: int, names: Sequence[str]) -> int:
    """The label that a number or a name means; a number is a label where it is a name as well."""
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    if text in names:
        return list(names).index(text)
    words = [name for name in names if not name.isdecimal()]
    few = f" ({', '.join(words[:8])}{', ...' if len(words) > 8 else ''})" if words else ""
    raise ConfigError(
        f"--classes has {text}, but the model knows {num_classes} classes: 0..{num_classes - 1}"
        f"{few}; give some of them, or one of all, balanced, random alone{nearest(text, words)}"
    )
