"""A convolution and the batch normalisation after it as one convolution with a bias.

    kernel' = kernel * gamma / sqrt(variance + epsilon)
    bias'   = beta - mean * gamma / sqrt(variance + epsilon)

The norm's moments are those of training, so both are linear maps of each pixel.
"""

import jax
import jax.numpy as jnp
import numpy as np


def fold(
    kernel: np.ndarray,
    gamma: np.ndarray | float,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> dict[str, jax.Array]:
    """{"kernel" [*window, in, out], "bias" [out]}, float32, from arrays of float64."""
    scale = gamma / np.sqrt(variance + epsilon)
    return {
        "kernel": jnp.asarray(kernel * scale, jnp.float32),
        "bias": jnp.asarray(beta - mean * scale, jnp.float32),
    }
