"""Images to interface tokens and back: patch order, patch stem, readout.

Tokens run row by row over the image; inside a patch the order is (row, column, channel),
in the stem's kernel (P, P, C, D) as in the readout's features P P C.

Source: arXiv 2212.11972 section 2.1.
"""

import jax.numpy as jnp
from flax import linen as nn

from rin_jax.network.layers import GLOROT, Array, Dtype, PositionTable, dense, layer_norm


def patchify(images: Array, patch_size: int) -> Array:
    """Cuts images [B, H, W, C] into patches [B, N, P, P, C], row by row."""
    batch, height, width, channels = images.shape
    rows, cols = height // patch_size, width // patch_size
    grid = images.reshape(batch, rows, patch_size, cols, patch_size, channels)
    return grid.swapaxes(2, 3).reshape(batch, rows * cols, patch_size, patch_size, channels)


def unpatchify(patches: Array, height: int, width: int) -> Array:
    """Puts patches [B, N, P, P, C] together to images [B, height, width, C]."""
    batch, _, patch_size, _, channels = patches.shape
    rows, cols = height // patch_size, width // patch_size
    grid = patches.reshape(batch, rows, cols, patch_size, patch_size, channels)
    return grid.swapaxes(2, 3).reshape(batch, height, width, channels)


class PatchStem(nn.Module):
    """Images [B, H, W, C] to interface tokens [B, N, D]: linear patches, LN, then positions."""

    patch_size: int
    width: int
    positions: str
    span: float
    dtype: Dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        patches = patchify(images.astype(self.dtype), self.patch_size)
        kernel = self.param("kernel", GLOROT, (*patches.shape[2:], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        tokens = jnp.einsum("bnpqc,pqcd->bnd", patches, kernel.astype(self.dtype))
        tokens = layer_norm("norm", self.dtype)(tokens + bias.astype(self.dtype)[None, None])
        grid = (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
        table = PositionTable(grid, self.width, self.positions, self.span, name="positions")
        return tokens + table().astype(self.dtype)[None]


class Readout(nn.Module):
    """Interface tokens [B, N, D] to a float32 prediction [B, H, W, C]: LN, Dense, patches."""

    patch_size: int
    image_shape: tuple[int, int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        height, width, channels = self.image_shape
        features = self.patch_size * self.patch_size * channels
        normed = layer_norm("norm", self.dtype)(tokens)
        pixels = dense("out", features, self.dtype)(normed).astype(jnp.float32)
        patches = pixels.reshape(*pixels.shape[:2], self.patch_size, self.patch_size, channels)
        return unpatchify(patches, height, width)
