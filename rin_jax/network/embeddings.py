"""What a network is told of positions and of the noise level: sinusoids, always in float32.

Letters of shapes are those of layers.py.

Source: arXiv 2212.11972 section 2 and appendix; initialisers follow the authors' released code.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rin_jax.network.layers import TOKENS, Array, Dtype, dense

POSITION_INIT = nn.initializers.truncated_normal(stddev=0.02)  # cut at two sigma: std 0.0176


def sinusoidal_encoding(coords: Array, width: int) -> Array:
    """Sine block, then cosine block, of `coords`: shape [...] -> [..., width], width even.

    The frequencies are 10000^(-2j / width) for j in 0..width/2 - 1.
    """
    frequencies = (10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    angles = coords[..., None] * jnp.expand_dims(frequencies, range(coords.ndim))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sincos_positions(shape: tuple[int, ...], width: int, span: float) -> Array:
    """Fixed position codes of a line (n,) or grid (rows, cols) of tokens: [tokens, width].

    Coordinates run over 0..span on each axis. On a grid the first half of the features codes
    the row, the second half the column; a grid with one row or one column counts as a line. On
    (times, rows, cols) each time has the codes of the grid: as released they do not code time.
    """
    if len(shape) == 3:
        return jnp.tile(sincos_positions(shape[1:], width, span), (shape[0], 1))
    if 1 in shape:
        shape = (int(np.prod(shape)),)

    def code(n, features):
        coords = np.arange(n, dtype=np.float32) / np.float32(max(n - 1, 1)) * np.float32(span)
        return sinusoidal_encoding(jnp.asarray(coords), features)

    if len(shape) == 1:
        return code(shape[0], width)
    rows, cols = (code(n, width // 2) for n in shape)
    both = rows.repeat(shape[1], axis=0), jnp.tile(cols, (shape[0], 1))
    return jnp.concatenate(both, axis=-1)


class PositionTable(nn.Module):
    """Position codes [tokens, width] of a line, grid or video of tokens, in float32.

    `kind`: "learned" (a table), "sin_cos" (fixed, coordinates 0..span), or
    "sin_cos_plus_learned" (fixed plus a table that starts at zero).
    """

    shape: tuple[int, ...]
    width: int
    kind: str
    span: float

    @nn.compact
    def __call__(self) -> Array:
        table = (int(np.prod(self.shape)), self.width)
        if self.kind == "learned":
            return self.param("table", POSITION_INIT, table)
        codes = sincos_positions(self.shape, self.width, self.span)
        if self.kind == "sin_cos":
            return codes
        return codes + self.param("table", nn.initializers.zeros, table)


class ScalarEmbedding(nn.Module):
    """Embeds gamma [B] in [0, 1] as one token [B, 1, width].

    Sinusoids of gamma * scale in width / 4 features, standardised over the features (no
    epsilon), Dense, SiLU, Dense. The sinusoids stay float32. `beside` [B, any] joins the input of
    the second dense layer.
    """

    width: int
    scale: float
    dtype: Dtype

    @nn.compact
    def __call__(self, gamma: Array, beside: Array | None = None) -> Array:
        codes = sinusoidal_encoding(gamma.astype(jnp.float32) * self.scale, self.width // 4)
        codes = codes - codes.mean(-1, keepdims=True)
        codes = codes / codes.std(-1, keepdims=True)
        hidden = nn.silu(dense("hidden", self.width, self.dtype)(codes))
        hidden = nn.with_logical_constraint(hidden, ("batch", "width"))
        if beside is not None:
            hidden = jnp.concatenate([hidden, beside], axis=-1)
        token = dense("out", self.width, self.dtype)(hidden)[:, None]
        return nn.with_logical_constraint(token, TOKENS)
