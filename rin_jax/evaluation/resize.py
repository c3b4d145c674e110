"""Bilinear resizes as the networks of published measures have them: one small matrix an axis.

Each output pixel is a mixture of two input pixels an axis, whether the image grows or shrinks:
there is never an antialiasing filter. With s = source / target, output pixel i lies at

    TF1 rule          i s                    the first pixels of both images coincide
    half-pixel rule   (i + 1/2) s - 1/2      their borders coincide; outside is the border's pixel

The positions are float32, as in TensorFlow: float64 would move a pixel of a large image by 3e-5.
Source: TensorFlow's ResizeBilinear (align_corners=False, half_pixel_centers False or True).
"""

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(images: jax.Array, size: tuple[int, int], half_pixel: bool) -> jax.Array:
    """Resizes images [B, H, W, C] to [B, *size, C], float32, in their own range.

    `half_pixel` picks the rule; False is the TF1 rule. The products have full precision on every
    device.
    """
    sides = zip(images.shape[1:3], size, strict=True)
    return mix(images, *(matrix(source, target, half_pixel) for source, target in sides))


def mix(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Images [B, H, W, C] by the weights [h, H] of rows and [w, W] of columns: [B, h, w, C]."""
    rows, columns = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    full = jax.lax.Precision.HIGHEST
    images = jnp.einsum("oh,bhwc->bowc", rows, images, precision=full)
    return jnp.einsum("pw,bowc->bopc", columns, images, precision=full)


def matrix(source: int, target: int, half_pixel: bool) -> np.ndarray:
    """The weights [target, source] of one axis, float32; each row sums to 1."""
    shift = np.float32(0.5 if half_pixel else 0.0)
    scale = np.float32(source) / np.float32(target)
    position = (np.arange(target, dtype=np.float32) + shift) * scale - shift
    below = np.floor(position).astype(int)
    weights = np.zeros((target, source), np.float32)
    for pixel, weight in ((below, 1 - (position - below)), (below + 1, position - below)):
        np.add.at(weights, (np.arange(target), np.clip(pixel, 0, source - 1)), weight)
    return weights
