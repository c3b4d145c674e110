"""Attention kernels for TPUs, on heads that lie side by side: [B, T, H K] as the projections give.

    P = softmax(Q K^T / sqrt(K)),  O = P V                                        forward
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum(P dP)),  dQ = dS K,  dK = dS^T Q      backward

A head of width 32 or 64 would fill a part of the 128 lanes of a TPU and waste the rest of them in
memory. Here a block of 128 lanes holds 4 or 2 heads. One head is told from the others by zeros in
the lanes of the others: in a product over lanes they add nothing, and the matrix unit works on 128
lanes anyway. All keys of a head are in the chip's vector memory at once, so that a row of scores is
whole: the backward pass computes it again and needs queries, keys and values alone. Scores and
softmax are float32 and never leave the vector memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array
Shape = tuple[int, ...]

LANES = 128
MOST_KEYS = 4096  # that lie in vector memory with all that the backward pass keeps beside them
VECTOR_MEMORY = 15 * 2**20  # bytes of 16 MiB, the least that a TPU has
BLOCK_SCORES = 2**18  # of a head in a block of queries at most: 1 MiB in float32
MOST_EXAMPLES = 4  # of a block: enough to fill the waits of one with the work of others


def takes(query: Shape, key: Shape) -> bool:
    """Whether the kernels take the tokens of query [B, Q, H K] and key [B, S, H K]."""
    return query[1] % 16 == 0 and key[1] % LANES == 0 and key[1] <= MOST_KEYS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Softmax attention of flat heads: query [B, Q, H K], key and value [B, S, H K]."""
    tiles = Tiles(query, key, heads)
    (out,) = tiles.run(_forward, 2, (query, key, value), "qkk", "q")
    return out


def _attention_forward(query, key, value, heads):
    return attention(query, key, value, heads), (query, key, value)


def _attention_backward(heads, saved, cotangent):
    tiles = Tiles(*saved[:2], heads)
    sums = [pltpu.VMEM((tiles.examples, tiles.keys, LANES), jnp.float32)] * 2
    return tuple(tiles.run(_backward, 5, (*saved, cotangent), "qkkq", "qkk", sums))


attention.defvjp(_attention_forward, _attention_backward)


class Tiles:
    """How a kernel goes over examples, heads and, the innermost, queries."""

    def __init__(self, query: Array, key: Array, heads: int):
        self.batch, self.queries, self.features = query.shape
        self.heads, self.keys, self.dtype = heads, key.shape[1], query.dtype
        self.width = self.features // heads
        # keys, values and their gradients twice, to be moved meanwhile, and two sums in float32
        beside = 24 * self.keys * LANES
        scores = min(BLOCK_SCORES, (VECTOR_MEMORY - beside) // 16)  # four arrays of them at once
        self.rows = divisor(self.queries, scores // self.keys, multiple=16)
        examples = scores // (self.rows * self.keys)
        self.examples = divisor(self.batch, min(examples, MOST_EXAMPLES))

    def run(self, kernel, products, arrays, taken, given, scratch=()) -> list[Array]:
        """Runs a kernel that takes and gives blocks of queries ("q") and of keys ("k")."""
        whole = {"q": (self.batch, self.queries, self.features),
                 "k": (self.batch, self.keys, self.features)}  # fmt: skip
        blocks = {
            "q": pl.BlockSpec((self.examples, self.rows, LANES), lambda b, h, i: (b, i, h)),
            "k": pl.BlockSpec((self.examples, self.keys, LANES), lambda b, h, i: (b, 0, h)),
        }
        scores = self.batch * self.heads * self.queries * self.keys
        moved = sum(math.prod(whole[kind]) for kind in taken + given) * self.dtype.itemsize
        return pl.pallas_call(
            functools.partial(kernel, width=self.width),
            grid=(self.batch // self.examples, self.features // LANES,
                  self.queries // self.rows),
            in_specs=[blocks[kind] for kind in taken],
            out_specs=[blocks[kind] for kind in given],
            out_shape=[jax.ShapeDtypeStruct(whole[kind], self.dtype) for kind in given],
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * LANES, bytes_accessed=moved,
                transcendentals=scores,
            ),
        )(*arrays)  # fmt: skip


def divisor(size: int, limit: int, multiple: int = 1) -> int:
    """The largest divisor of `size` up to `limit` that is a multiple; `multiple` is the least."""
    sizes = range(multiple, max(min(size, limit), multiple) + 1, multiple)
    return max(n for n in sizes if size % n == 0)


def _softmax(query: Array, key: Array, scale: float) -> Array:
    """Softmax [Q, S] in float32 of the scores of a head."""
    scores = product(query, key, 1, 1)
    powers = jnp.exp((scores - scores.max(1, keepdims=True)) * scale)
    return powers / powers.sum(1, keepdims=True)


def product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The product over an axis of each, summed in float32."""
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def heads_of(width: int):
    """For each head of a block: a function that puts zeros into the lanes of the others."""

    def keep(head, x):
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        own = (lane >= head * width) & (lane < (head + 1) * width)
        return jnp.where(own, x.astype(jnp.float32), 0.0)

    return [functools.partial(keep, head) for head in range(LANES // width)]


def _forward(query_ref, key_ref, value_ref, out_ref, *, width: int):
    """A block of queries [n, rows, lanes] against all keys [n, S, lanes]."""
    scale, dtype = 1 / math.sqrt(width), query_ref.dtype

    for n in range(query_ref.shape[0]):
        query, key, value = query_ref[n], key_ref[n], value_ref[n]
        out = jnp.zeros(query.shape, jnp.float32)
        for own in heads_of(width):
            weights = _softmax(own(query).astype(dtype), key, scale).astype(dtype)
            out += own(product(weights, value, 1, 0))
        out_ref[n] = out.astype(dtype)


def _backward(
    query_ref, key_ref, value_ref, cotangent_ref, dquery_ref, dkey_ref, dvalue_ref,
    key_sum, value_sum, *, width: int,
):  # fmt: skip
    """The same backwards; the gradients of keys and values are summed over blocks of queries."""
    scale, dtype = 1 / math.sqrt(width), query_ref.dtype
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    for n in range(query_ref.shape[0]):
        query, key, value, cotangent = query_ref[n], key_ref[n], value_ref[n], cotangent_ref[n]
        dquery = jnp.zeros(query.shape, jnp.float32)
        for own in heads_of(width):
            q, do = own(query).astype(dtype), own(cotangent).astype(dtype)
            weights = _softmax(q, key, scale)
            value_sum[n] += product(weights.astype(dtype), do, 0, 0)
            dweights = product(do, value, 1, 1)
            mean = (weights * dweights).sum(1, keepdims=True)
            dscores = (weights * (dweights - mean) * scale).astype(dtype)
            dquery += own(product(dscores, key, 1, 0))
            key_sum[n] += product(dscores, q, 0, 0)
        dquery_ref[n] = dquery.astype(dtype)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        dkey_ref[...] = key_sum[...].astype(dtype)
        dvalue_ref[...] = value_sum[...].astype(dtype)
