"""Measures that compare samples with real images pair by pair, in the features [N, F] of both.

    precision: share of samples in the manifold of the real images; recall: the reverse
    KID: unbiased squared maximum mean discrepancy with the kernel (x . y / F + 1)^3

The manifold is the union of a ball around each row that reaches to its k-th nearest other row.
Sources: arXiv 1904.06991 section 2; arXiv 1801.01401 section 4. All float64, on the host.
"""

import numpy as np

from rin_jax import ConfigError
from rin_jax.evaluation.statistics import finite

_ROWS = 500  # of a block of distances
SUBSET, _SUBSETS, _SEED = 1000, 100, 2020  # torch-fidelity's defaults


def precision_recall(real: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall, 0..1, of samples [N, F] against real images [R, F].

    ConfigError for k or fewer rows of either, and for values that are not finite. The time grows
    with (N + R)^2, the memory with N + R.
    """
    check("Precision and recall", len(real), len(samples), k + 1)
    real, samples = finite(real), finite(samples)
    centre = real.mean(0)  # leaves more digits for the distances
    real, samples = real - centre, samples - centre
    radii, radii_of_real = _radii(samples, k), _radii(real, k)
    recalled = np.zeros(len(real), bool)
    precise = 0
    for start in range(0, len(samples), _ROWS):
        block = slice(start, start + _ROWS)
        distances = _squared_distances(samples[block], real)
        precise += int(np.sum(np.any(distances <= radii_of_real, axis=1)))
        recalled |= np.any(distances <= radii[block, None], axis=0)
    return precise / len(samples), float(recalled.mean())


def _radii(rows: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row; nearest of all is the row."""
    blocks = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
    nearest = [np.partition(_squared_distances(b, rows), k, axis=1)[:, k] for b in blocks]
    return np.concatenate(nearest)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[A, F] and [B, F] to [A, B]."""
    squares = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1)
    return np.maximum(squares - 2 * first @ second.T, 0.0)


def kid(real: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over 100 random subsets of 1,000 rows of each.

    The subsets are those that torch-fidelity draws for samples [N, F] and real images [R, F]. A
    value slightly below 0 is possible: the estimate has no bias. ConfigError for fewer than 1,000
    rows of either, and for values that are not finite.
    """
    check("KID", len(real), len(samples), SUBSET)
    real, samples = finite(real), finite(samples)
    rng = np.random.RandomState(_SEED)
    values = []
    for _ in range(_SUBSETS):
        x = samples[rng.choice(len(samples), SUBSET, replace=False)]
        y = real[rng.choice(len(real), SUBSET, replace=False)]
        values.append(_mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # a power of arrays is ten times slower


def _mean_of_pairs(x: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows."""
    values = _kernel(x, x)
    return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))


def check(measure: str, real: int, samples: int, fewest: int) -> None:
    """Raises ConfigError if there are fewer real images or samples than a measure needs."""
    if min(real, samples) < fewest:
        raise ConfigError(
            f"{measure} needs at least {fewest:,} real images and as many samples; there are "
            f"{real:,} and {samples:,}: measure more, or leave {measure} out."
        )
