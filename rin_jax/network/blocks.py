"""A block of a RIN (its equations are in rin.py), and how layers are stacked and computed again.

The convolution is of the authors' released code alone.

Source: arXiv 2212.11972 section 2.2.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax.network.layers import GLOROT, TOKENS, Array, CrossAttention, SelfAttentionLayer
from rin_jax.network.platform import unroll

# What the backward pass keeps of a layer instead of computing it again.
REMAT_POLICIES: dict[str, Callable | None] = {
    "full": None,  # nothing but the layer's input
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of projections
}


def scan_layers(body, length: int, unroll: int = 1):
    """Lifts `body(module, carry) -> carry` to `length` layers with stacked parameters.

    A loop over them, in which `unroll` are written out.
    """
    return nn.scan(
        lambda module, carry, _: (body(module, carry), None),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        unroll=unroll,
    )


class RINBlock(nn.Module):
    """One read, `depth` compute layers, one write; depth 0 is a read alone.

    carry = (latents [B, M, E], interface [B, N, D]) -> the same. `cond_tokens` [B, any, any]
    are read only: with the interface, or before it by a unit of their own if `cond_width`. The
    first `num_tokens` of the interface pass a convolution at the end if `conv_size`. The inner
    width of a unit is the smaller one of those that it joins.
    """

    depth: int
    num_heads: int
    routing_heads: int
    latent_mlp_ratio: int
    interface_mlp_ratio: int
    norm_context: bool
    qk_norm: bool
    cond_width: int
    dropout: float
    attention_dropout: float
    drop_path: float
    conv_size: int
    conv_dropout: float
    num_tokens: int
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], cond_tokens: Array | None, train: bool
    ) -> tuple[Array, Array]:
        latents, interface = (nn.with_logical_constraint(tokens, TOKENS) for tokens in carry)
        cross, layer = CrossAttention, SelfAttentionLayer
        if self.remat != "none":
            kept = {"prevent_cse": False, "policy": REMAT_POLICIES[self.remat]}
            cross, layer = nn.remat(cross, **kept), nn.remat(layer, static_argnums=(2,), **kept)

        def route(name, mlp_ratio, other_width=interface.shape[-1]):
            return cross(
                min(latents.shape[-1], other_width), self.routing_heads, mlp_ratio,
                self.norm_context, self.dtype, self.qk_norm, name=name,
            )  # fmt: skip

        context = interface
        if cond_tokens is not None and self.cond_width:
            read_cond = route("read_cond", self.latent_mlp_ratio, self.cond_width)
            latents = read_cond(latents, cond_tokens)
        elif cond_tokens is not None:
            context = jnp.concatenate([interface, cond_tokens], axis=1)
        latents = route("read", self.latent_mlp_ratio)(latents, context)
        if self.depth:
            compute = layer(
                self.num_heads, self.latent_mlp_ratio, self.dropout, self.attention_dropout,
                self.drop_path, self.dtype, self.qk_norm, name="compute",
            )  # fmt: skip
            layers = scan_layers(
                lambda module, z: module(nn.with_logical_constraint(z, TOKENS), train),
                self.depth, unroll(self.depth),
            )  # fmt: skip
            latents, _ = layers(compute, latents, None)
            interface = route("write", self.interface_mlp_ratio)(interface, latents)
            if self.conv_size:
                conv = Convolution(self.conv_size, self.conv_dropout, self.dtype, name="conv")
                own, others = jnp.split(interface, [self.num_tokens], axis=1)
                interface = jnp.concatenate([conv(own, train), others], axis=1)
        return latents, interface


def conv_groups(width: int) -> int:
    """Groups of the convolution's normalisation."""
    return min(width // 4, 32)


class Convolution(nn.Module):
    """tokens [B, N, D] + pointwise(SiLU(GroupNorm(depthwise(tokens)))), as a square image."""

    size: int  # side of the depthwise kernel
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        batch, count, width = tokens.shape
        side = math.isqrt(count)
        x = tokens.reshape(batch, side, side, width)
        x = Depthwise(self.size, self.dtype, name="depthwise")(x)
        groups = conv_groups(width)
        norm = nn.GroupNorm(
            groups, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name="norm"
        )
        x = nn.silu(norm(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Pointwise(self.dtype, name="pointwise")(x)
        return tokens + x.reshape(tokens.shape)


class Depthwise(nn.Module):
    """A convolution of each channel of x [B, H, W, D] by its own kernel, of the same size.

    A sum of shifted products in float32, rounded once. XLA's convolutions in a loop over layers
    take a CPU several times as long as all the rest of a network: this one's and that of 1 x 1.
    """

    size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, height, width, channels = x.shape
        kernel = self.param("kernel", GLOROT, (self.size, self.size, channels, 1))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        ends = ((self.size - 1) // 2, self.size // 2)
        x = jnp.pad(x, ((0, 0), ends, ends, (0, 0))).astype(jnp.float32)
        total = bias[None, None, None]
        for i, j in itertools.product(range(self.size), repeat=2):
            total += kernel[i, j].T[None, None] * x[:, i : i + height, j : j + width]
        return total.astype(self.dtype)


class Pointwise(nn.Module):
    """A convolution of 1 x 1, x [B, H, W, D] to the same shape, near zero at initialisation."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        near_zero = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
        kernel = self.param("kernel", near_zero, (1, 1, width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        x = jnp.einsum("bhwd,de->bhwe", x.astype(self.dtype), kernel[0, 0].astype(self.dtype))
        return x + bias[None, None, None]
