"""The loss by noise level, in bins of log-SNR = log(gamma / (1 - gamma)).

The mean over all levels hides what a network learns: most of it is from the few levels at which it
errs most. The bins are the same for every schedule, so that runs can be compared.
"""

import jax
import jax.numpy as jnp
import numpy as np

EDGES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # between neighbouring bins
NAMES = (
    "0_below_-6", "1_-6_to_-4", "2_-4_to_-2", "3_-2_to_0", "4_0_to_2", "5_2_to_4", "6_4_to_6",
    "7_above_6",
)  # fmt: skip
PREFIX = "train/loss_by_logsnr/"


def by_level(errors: jax.Array, gamma: jax.Array) -> jax.Array:
    """float32 [2, 8]: the sum of the errors [B] in each bin and their number; gamma [B]."""
    logsnr = jnp.log(gamma) - jnp.log1p(-gamma)
    bins = jax.nn.one_hot(jnp.digitize(logsnr, jnp.array(EDGES)), len(NAMES))
    return jnp.stack([(errors[:, None] * bins).sum(0), bins.sum(0)])


def figures(levels: np.ndarray) -> dict[str, float]:
    """The mean error of each bin that has an example, by its name in the curves."""
    means = zip(NAMES, *levels, strict=True)
    return {f"{PREFIX}{name}": float(total / count) for name, total, count in means if count}
