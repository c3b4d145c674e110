"""Examples to interface tokens and back: patches, stem, readout.

An example is a token sequence [N, C], an image [H, W, C] or a video [T, H, W, C]. Its patches have
no axis, two (rows, columns) or three (frames, rows, columns). Tokens run over the grid of patches
in the order of its axes, and so do the values of a patch, channels last: in the stem's kernel
(*patch, C, D) as in the readout's features. A video whose frames are no multiple of the patch's is
filled up with zeros, as a convolution with padding "SAME" does: one frame that is missing comes at
the end, two come at both ends. The first frames of what is read out are kept, as released.

Source: arXiv 2212.11972 section 2.1; the authors' released code for videos and sequences.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn

from rin_jax import at_least_one, one_of
from rin_jax.network.embeddings import PositionTable
from rin_jax.network.layers import GLOROT, Array, Dtype, dense, layer_norm

Sizes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Video:
    """How a network takes videos; the field `model.video`."""

    patch_frames: int  # frames of a patch
    positions: str  # of conditioning frames: "before" the others, or "after" them as released
    written: bool  # whether the tokens of conditioning frames are written too, as released

    def __post_init__(self):
        at_least_one("model.video", self, "patch_frames")
        one_of("model.video.positions", self.positions, ("before", "after"))


def grid_of(size: Sizes, patch: Sizes) -> Sizes:
    """The numbers of patches along the axes of an example without its channels."""
    whole = len(size) - len(patch)
    parts = (-(-n // p) for n, p in zip(size[whole:], patch, strict=True))
    return (*size[:whole], *parts)


def patchify(x: Array, patch: Sizes) -> Array:
    """Cuts x [B, ..., C] into patches [B, N, *patch, C]."""
    batch, *size, channels = x.shape
    grid, whole = grid_of(tuple(size), patch), len(size) - len(patch)
    padding = [g * p - n for g, p, n in zip(grid[whole:], patch, size[whole:], strict=True)]
    if any(padding):
        ends = [(n // 2, n - n // 2) for n in padding]
        x = jnp.pad(x, [(0, 0)] * (1 + whole) + ends + [(0, 0)])
    pairs = [n for pair in zip(grid[whole:], patch, strict=True) for n in pair]
    x = x.reshape(batch, *grid[:whole], *pairs, channels).transpose(_grid_first(whole, len(patch)))
    return x.reshape(batch, math.prod(grid), *patch, channels)


def unpatchify(patches: Array, size: Sizes) -> Array:
    """Puts patches [B, N, *patch, C] together to [B, *size, C], the first of more frames."""
    batch, _, *patch, channels = patches.shape
    grid, whole = grid_of(size, tuple(patch)), len(size) - len(patch)
    order = _grid_first(whole, len(patch))
    x = patches.reshape(batch, *grid, *patch, channels)
    x = x.transpose([order.index(axis) for axis in range(len(order))])
    sides = [g * p for g, p in zip(grid[whole:], patch, strict=True)]
    x = x.reshape(batch, *grid[:whole], *sides, channels)
    return x[:, : size[0]]


def _grid_first(whole: int, split: int) -> list[int]:
    """The axes [batch, whole.., (grid, patch).., channels] with those of the grid first."""
    first, last = 1 + whole, 1 + whole + 2 * split
    return [*range(first), *range(first, last, 2), *range(first + 1, last, 2), last]


class PatchStem(nn.Module):
    """Examples [B, ..., C] to interface tokens [B, N, D]: linear patches, LN, then positions.

    Conditioning frames [B, c, H, W, C] pass the same stem and take other rows of the same table.
    """

    patch: Sizes
    width: int
    positions: str
    span: float
    video: Video | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, frames: Array | None = None) -> tuple[Array, Array | None]:
        kernel = self.param("kernel", GLOROT, (*self.patch, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        norm = layer_norm("norm", self.dtype)

        def embed(x):
            patches = patchify(x.astype(self.dtype), self.patch)
            tokens = jnp.tensordot(patches, kernel.astype(self.dtype), len(self.patch) + 1)
            return norm(tokens + bias.astype(self.dtype)[None, None])

        grid = list(grid_of(x.shape[1:-1], self.patch))
        tokens, frame_tokens = embed(x), None
        if frames is not None:
            frame_tokens = embed(frames)
            grid[0] += grid_of(frames.shape[1:-1], self.patch)[0]
        if len(grid) == 1 and self.positions != "learned":
            grid = [math.isqrt(grid[0])] * 2  # as released, a sequence is coded as a square
        table = PositionTable(tuple(grid), self.width, self.positions, self.span, name="positions")
        codes = table().astype(self.dtype)[None]
        if frame_tokens is None:
            return tokens + codes, None
        if self.video.positions == "after":
            first = tokens.shape[1]
            return tokens + codes[:, :first], frame_tokens + codes[:, first:]
        first = frame_tokens.shape[1]
        return tokens + codes[:, first:], frame_tokens + codes[:, :first]


class Readout(nn.Module):
    """Interface tokens [B, N, D] to float32 predictions [B, *example_shape]: LN, Dense, patches."""

    patch: Sizes
    example_shape: Sizes
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        *size, channels = self.example_shape
        normed = layer_norm("norm", self.dtype)(tokens)
        values = dense("out", math.prod(self.patch) * channels, self.dtype)(normed)
        values = values.astype(jnp.float32)
        patches = values.reshape(*values.shape[:2], *self.patch, channels)
        return unpatchify(patches, tuple(size))
