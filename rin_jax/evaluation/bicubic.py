"""Bicubic resizes of PyTorch, one small matrix an axis.

With s = source / target, output pixel i lies at (i + 1/2) s - 1/2 and mixes the pixels j around it
by Keys' cubic k of their distance:

    antialiased   k_{-1/2}((j - position) / max(s, 1)), divided by the sum: it spreads as the image
                  shrinks, and what would lie outside is left out
    plain         k_{-3/4}(j - position) of four pixels; outside is the border's pixel

Source: torch.nn.functional.interpolate(mode="bicubic", antialias=True or False); R. Keys, Cubic
convolution interpolation for digital image processing, 1981.
"""

import jax
import numpy as np

from rin_jax.evaluation.resize import mix


def bicubic(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes images [B, H, W, C] to [B, *size, C], float32 and antialiased, in their own range.

    Values may leave that range near edges, as in PyTorch. The products have full precision on every
    device.
    """
    sides = zip(images.shape[1:3], size, strict=True)
    return mix(images, *(antialiased(source, target) for source, target in sides))


def antialiased(source: int, target: int) -> np.ndarray:
    """The weights [target, source] of one axis with antialiasing; each row sums to 1."""
    position = _positions(target, source / target)[:, None]
    weights = _cubic((np.arange(source) - position) / max(source / target, 1.0), -0.5)
    return weights / weights.sum(1, keepdims=True)


def plain(source: int, target: int, step: float) -> np.ndarray:
    """The weights [target, source] of one axis without antialiasing; each row sums to 1.

    `step` takes the place of s above: the distance, in source pixels, from one output pixel to the
    next.
    """
    position = _positions(target, step)
    weights = np.zeros((target, source))
    for tap in np.floor(position) + np.arange(-1, 3)[:, None]:
        pixel = np.clip(tap, 0, source - 1).astype(int)
        np.add.at(weights, (np.arange(target), pixel), _cubic(tap - position, -0.75))
    return weights


def _positions(target: int, step: float) -> np.ndarray:
    return (np.arange(target) + 0.5) * step - 0.5


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic: 1 at distance 0, and 0 at 1 and from 2 on."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
