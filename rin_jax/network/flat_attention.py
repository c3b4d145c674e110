"""Attention kernels for TPUs, on heads that lie side by side: [B, T, H K] as the projections give.

    P = softmax(Q K^T / sqrt(K)),  O = P V                                        forward
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum(P dP)),  dQ = dS K,  dK = dS^T Q      backward

Softmax is r E, with powers E that are not divided by their sums and one over those, r.

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
MOST_KEYS = 2048  # that lie in vector memory with all that the backward pass keeps beside them
VECTOR_MEMORY = 15 * 2**20  # bytes of 16 MiB, the least that a TPU has
BLOCK_SCORES = 2**18  # of a block at most: 1 MiB in float32
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
        scores //= LANES // self.width  # of a head
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


def product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The product over an axis of each, of bfloat16 and summed in float32."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def heads_of(width: int):
    """For each head of a block: a function that puts zeros into the lanes of the others."""

    def keep(head, x):
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        own = (lane >= head * width) & (lane < (head + 1) * width)
        return jnp.where(own, x.astype(jnp.float32), 0.0)

    return [functools.partial(keep, head) for head in range(LANES // width)]


def _apart(ref, width: int) -> list[Array]:
    """Each head of a block [n, T, lanes] alone, in float32, zeros in the lanes of the others."""
    return [own(ref[n]) for n in range(ref.shape[0]) for own in heads_of(width)]


def _for_each(ref, width: int) -> list[Array]:
    """The block [n, T, lanes] of all heads, once for each of them."""
    return [ref[n] for n in range(ref.shape[0]) for _ in heads_of(width)]


def _put_together(ref, parts: Array, width: int) -> None:
    """Writes the lanes of each head, from parts [n H, T, lanes], to a block [n, T, lanes]."""
    heads = heads_of(width)
    for n in range(ref.shape[0]):
        owns = zip(heads, parts[n * len(heads) : (n + 1) * len(heads)], strict=True)
        ref[n] = functools.reduce(jnp.add, [own(x) for own, x in owns]).astype(ref.dtype)


def _products(a, b, axis_a: int, axis_b: int) -> Array:
    """The product of each pair of heads: [n H, ...]."""
    return jnp.stack([product(x, y, axis_a, axis_b) for x, y in zip(a, b, strict=True)])


def _add_products(sums, a, b) -> None:
    """Adds the products over queries of each pair of heads, for keys, to those of [n, S, lanes].

    One head after the other: with 2,048 keys each product is 1 MiB.
    """
    heads = len(a) // sums.shape[0]
    for n in range(sums.shape[0]):
        pairs = zip(a[n * heads : (n + 1) * heads], b[n * heads : (n + 1) * heads], strict=True)
        sums[n] += functools.reduce(jnp.add, (product(x, y, 0, 0) for x, y in pairs))


def _softmax(query: list[Array], key: list[Array], width: int) -> tuple[Array, Array]:
    """(E, r) of the scores of heads, float32 [n H, Q, S] and [n H, Q, 1]: their softmax is r E."""
    scores = _products(query, key, 1, 1)
    powers = jnp.exp((scores - scores.max(2, keepdims=True)) * (1 / math.sqrt(width)))
    sums = powers.sum(2, keepdims=True)
    share = pl.reciprocal(sums, approx=True)  # the device's estimate, and a step of Newton's method
    return powers, share * (2.0 - sums * share)


# All heads of a block take each step together, so that a chip has other work while it waits for a
# product or a sum of one of them: one after the other they take up to 1.9 times as long. Nothing as
# large as the scores is divided, which is ten instructions in float32. docs/plan.md has figures.


def _forward(query_ref, key_ref, value_ref, out_ref, *, width: int):
    """A block of queries [n, rows, lanes] against all keys [n, S, lanes]."""
    powers, share = _softmax(_apart(query_ref, width), _for_each(key_ref, width), width)
    out = _products(powers, _for_each(value_ref, width), 1, 0)
    _put_together(out_ref, out * share, width)


def _backward(
    query_ref, key_ref, value_ref, cotangent_ref, dquery_ref, dkey_ref, dvalue_ref,
    key_sum, value_sum, *, width: int,
):  # fmt: skip
    """The same backwards; the gradients of keys and values are summed over blocks of queries.

    With P = r E: dV = E^T (r dO), and with T = E ((r dO) V^T) it is dS = T - E r sum(T).
    """
    scale, block = 1 / math.sqrt(width), pl.program_id(2)

    @pl.when(block == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    query, key = _apart(query_ref, width), _for_each(key_ref, width)
    powers, share = _softmax(query, key, width)
    cotangent = [x * r for x, r in zip(_apart(cotangent_ref, width), share, strict=True)]
    dpowers = _products(cotangent, _for_each(value_ref, width), 1, 1)
    _add_products(value_sum, powers, cotangent)
    terms = powers * dpowers
    dscores = terms - powers * (share * terms.sum(2, keepdims=True))
    _put_together(dquery_ref, _products(dscores, key, 1, 0) * scale, width)
    _add_products(key_sum, dscores, query)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        dkey_ref[...] = (key_sum[...] * scale).astype(dkey_ref.dtype)
        dvalue_ref[...] = value_sum[...].astype(dvalue_ref.dtype)
