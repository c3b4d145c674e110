"""Attention, MLPs and norms: the parts every RIN token passes through.

Letters of shapes and of einsum strings, here and in the whole network:

    B batch            N interface tokens   D interface width
    M latents          E latent width       H heads   K width of a head
    Q query tokens     S context tokens     W width of the queries
    P patch side       C channels           F hidden width of an MLP

Parameters are float32. Activations run in `dtype`; norms and softmax are computed in float32
whatever `dtype` is.

Logical axes ("batch", "tokens", "heads", ...) of activations are named where a compiler would not
guess how to split them over devices. What the names mean is up to whoever traces the network
under `flax.linen.logical_axis_rules`; without rules they mean nothing.

Source: arXiv 2212.11972 section 2 and appendix; initialisers and the order of norm and
residual follow the authors' released code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rin_jax.network.attention import HEADS, attend, split
from rin_jax.network.platform import add_bias, gelu, project, project_gelu

Array = jax.Array
Dtype = Any
Product = Callable[[Array, Array], Array]

# On a kernel with more than two axes the leading ones count as a receptive field, so (W, H, K)
# has the limit sqrt(6 / (W (H + K))): smaller than that of the flattened (W, H K) matrix.
GLOROT = nn.initializers.glorot_uniform()
TOKENS = ("batch", "tokens", "width")  # logical axes of [B, T, W]


def layer_norm(name: str, dtype: Dtype, zero_scale: bool = False) -> nn.LayerNorm:
    """LayerNorm over the last axis with population variance, epsilon 1e-6.

    In bfloat16 the variance is E[x^2] - E[x]^2, one pass over x and no reduction backwards: what it
    loses in float32 is less than what rounding x to bfloat16 adds.
    """
    scale = nn.initializers.zeros if zero_scale else nn.initializers.ones
    fast = dtype == jnp.bfloat16
    return nn.LayerNorm(
        epsilon=1e-6, dtype=dtype, use_fast_variance=fast, scale_init=scale, name=name
    )


def dense(name: str, features: int, dtype: Dtype, product: Product = project) -> nn.Dense:
    """Dense layer with a Glorot-uniform kernel and a zero bias; `product` of input and kernel."""

    def of_two(x, kernel, *_, **__):  # nn.Dense also gives the axes and the default precision
        return product(x, kernel)

    return nn.Dense(features, dtype=dtype, kernel_init=GLOROT, dot_general=of_two, name=name)


class HeadProjection(nn.Module):
    """Projects [B, T, W] to heads [B, T, H K], or heads to [B, T, W].

    The kernel is (W, H, K) or (H, K, W), the bias of the shape of `features`.
    """

    inputs: tuple[int, ...]  # (W,) or (H, K)
    features: tuple[int, ...]  # (H, K) or (W,)
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", GLOROT, (*self.inputs, *self.features))
        bias = self.param("bias", nn.initializers.zeros, self.features)
        kernel = kernel.astype(self.dtype).reshape(x.shape[-1], -1)
        bias = bias.astype(self.dtype).reshape(-1)
        return add_bias(project(x.astype(self.dtype), kernel), bias)


class Attention(nn.Module):
    """Multi-head attention of queries [B, Q, W] to context [B, S, any]; returns [B, Q, W].

    `width` is the inner width; a head has `width // num_heads` features. Softmax in float32. With
    `qk_norm` the queries and keys of each head pass an RMSNorm, whose scale all heads share.
    Where the collection "intermediates" is mutable, and only there, the mean of the heads'
    attention [B, Q, S] goes into it as "weights". `dropout` acts on the weights if `train`.
    """

    num_heads: int
    width: int
    dtype: Dtype
    dropout: float = 0.0
    qk_norm: bool = False

    @nn.compact
    def __call__(self, queries: Array, context: Array, train: bool = False) -> Array:
        sizes = (self.num_heads, self.width // self.num_heads)

        def project(name, x):
            heads = HeadProjection(x.shape[-1:], sizes, self.dtype, name=name)(x)
            return nn.with_logical_constraint(heads, HEADS)

        query, key = project("query", queries), project("key", context)
        if self.qk_norm:
            query = head_norm("query_norm", query, self.num_heads)
            key = head_norm("key_norm", key, self.num_heads)
        if self.is_mutable_collection("intermediates"):
            weights = attention_weights(query, key, self.num_heads)
            self.sow("intermediates", "weights", weights.mean(1))
        value = project("value", context)
        if train and self.dropout:
            drop = nn.Dropout(self.dropout, deterministic=False)
            weights = drop(attention_weights(query, key, self.num_heads)).astype(self.dtype)
            heads = jnp.einsum("bhqs,bshk->bqhk", weights, split(value, self.num_heads))
            heads = heads.reshape(query.shape)
        else:
            heads = attend(query, key, value, self.num_heads)
        return HeadProjection(sizes, queries.shape[-1:], self.dtype, name="out")(heads)


def head_norm(name: str, x: Array, heads: int) -> Array:
    """RMSNorm of each of the heads [B, T, H K], epsilon 1e-6, in float32: [B, T, H K].

    Source: arXiv 2010.04245, 2302.05442 section 2 (there a LayerNorm); measured in
    docs/ablations.md.
    """
    norm = nn.RMSNorm(epsilon=1e-6, dtype=x.dtype, name=name)
    return norm(split(x, heads)).reshape(x.shape)


def attention_weights(query: Array, key: Array, heads: int) -> Array:
    """Softmax of query [B, Q, H K] against key [B, S, H K]: [B, H, Q, S], float32."""
    query, key = split(query, heads), split(key, heads)
    logits = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits / np.sqrt(query.shape[-1]).astype(np.float32), axis=-1)


class FeedForward(nn.Module):
    """Dense, exact GELU, dropout, Dense, with hidden width `ratio` times the input's."""

    ratio: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = dense("hidden", self.ratio * x.shape[-1], self.dtype)(x)
        hidden = nn.with_logical_constraint(hidden, ("batch", "tokens", "hidden"))
        if not (train and self.dropout):
            return dense("out", x.shape[-1], self.dtype, project_gelu)(hidden)
        hidden = nn.Dropout(self.dropout, deterministic=False)(gelu(hidden))
        return dense("out", x.shape[-1], self.dtype)(hidden)


class MLP(nn.Module):
    """Pre-norm feed-forward with its residual: x + FeedForward(LN(x)). Never drops."""

    ratio: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        normed = layer_norm("norm", self.dtype)(x)
        return x + FeedForward(self.ratio, 0.0, self.dtype, name="ffn")(normed, train=False)


class CrossAttention(nn.Module):
    """One direction of routing: x attends to context, then passes its own MLP.

    x [B, Q, W], context [B, S, any] -> [B, Q, W]. The context is not normalised unless
    `norm_context`. `width` is the inner width. `mlp_ratio` 0: no MLP.
    """

    width: int
    num_heads: int
    mlp_ratio: int
    norm_context: bool
    dtype: Dtype
    qk_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        queries = layer_norm("norm", self.dtype)(x)
        if self.norm_context:
            context = layer_norm("context_norm", self.dtype)(context)
        attention = Attention(
            self.num_heads, self.width, self.dtype, qk_norm=self.qk_norm, name="attention"
        )
        x = x + attention(queries, context)
        if self.mlp_ratio:
            x = MLP(self.mlp_ratio, self.dtype, name="mlp")(x)
        return x


class SelfAttentionLayer(nn.Module):
    """One compute layer on the latents [B, M, E]: pre-norm self-attention, then feed-forward.

    `dropout` acts on the hidden units, `attention_dropout` on the attention weights, `drop_path`
    removes a whole branch per example (stochastic depth; the kept ones are divided by the keep
    rate). All only if `train`.
    """

    num_heads: int
    mlp_ratio: int
    dropout: float
    attention_dropout: float
    drop_path: float
    dtype: Dtype
    qk_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def keep(branch):
            drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
            return drop(branch)

        normed = layer_norm("attention_norm", self.dtype)(x)
        attention = Attention(
            self.num_heads, x.shape[-1], self.dtype, self.attention_dropout, self.qk_norm,
            name="attention",
        )  # fmt: skip
        x = x + keep(attention(normed, normed, train))
        normed = layer_norm("ffn_norm", self.dtype)(x)
        ffn = FeedForward(self.mlp_ratio, self.dropout, self.dtype, name="ffn")
        return x + keep(ffn(normed, train))
