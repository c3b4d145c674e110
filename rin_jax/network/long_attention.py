"""Attention kernels for TPUs where the keys of a head do not fit in vector memory at once.

A read of many interface tokens by few latents. The queries stay; keys and values pass in blocks,
with the largest score m and the sum l of powers so far (the online softmax of arXiv 1805.02867):

    m' = max(m, scores),  c = exp(m - m'),  l' = c l + sum exp(scores - m'),  O' = c O + exp(...) V

and O / l at the end. Backwards, the weights are exp(scores - L) with the L = m + log l that the
forward pass leaves, and sum(P dP) is sum(O dO), as in arXiv 2205.14135, with O in float32. Heads
lie side by side as in `flat_attention.py`, and so do the statistics of their queries: m, l and L of
a head are repeated over its lanes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rin_jax.network.flat_attention import LANES, Array, Shape, divisor, heads_of, product

MOST_QUERIES = 512  # that stay in vector memory with what is summed for them
BLOCK_SCORES = 2**18  # of a head at once: 1 MiB in float32


def takes(query: Shape, key: Shape) -> bool:
    """Whether the kernels take the tokens of query [B, Q, H K] and key [B, S, H K]."""
    return query[1] <= MOST_QUERIES and query[1] % 16 == 0 and key[1] % LANES == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Softmax attention of flat heads: query [B, Q, H K], key and value [B, S, H K]."""
    return _attention_forward(query, key, value, heads)[0]


def _attention_forward(query, key, value, heads):
    float32 = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    statistics = [pltpu.VMEM((query.shape[1], LANES), jnp.float32)] * 3
    out, logs = _run(
        _forward, 2, heads, (query, key, value), "qkk", [float32] * 2, "qq", statistics
    )
    return out.astype(query.dtype), (query, key, value, out, logs)


def _attention_backward(heads, saved, cotangent):
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in saved[:3]]
    total = [pltpu.VMEM((cotangent.shape[1], LANES), jnp.float32)]
    return tuple(_run(_backward, 5, heads, (*saved, cotangent), "qkkqqq", given, "qkk", total))


attention.defvjp(_attention_forward, _attention_backward)


def _run(kernel, products, heads, arrays, taken, out_shape, given, scratch) -> list[Array]:
    """Runs a kernel over examples, blocks of heads and, the innermost, of keys ("k")."""
    (batch, queries, features), keys = arrays[0].shape, arrays[1].shape[1]
    rows = divisor(keys, max(BLOCK_SCORES // queries, LANES), multiple=LANES)
    blocks = {
        "q": pl.BlockSpec((1, queries, LANES), lambda b, h, i: (b, 0, h)),
        "k": pl.BlockSpec((1, rows, LANES), lambda b, h, i: (b, i, h)),
    }
    scores = batch * heads * queries * keys
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *out_shape))
    return pl.pallas_call(
        functools.partial(kernel, width=features // heads),
        grid=(batch, features // LANES, keys // rows),
        in_specs=[blocks[kind] for kind in taken],
        out_specs=[blocks[kind] for kind in given],
        out_shape=list(out_shape),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * LANES,
            bytes_accessed=moved,
            transcendentals=scores,
        ),
    )(*arrays)


def _forward(
    query_ref, key_ref, value_ref, out_ref, logs_ref, most_ref, sum_ref, total_ref, *, width: int
):
    """All queries [1, Q, lanes] against a block of keys [1, rows, lanes]."""
    query, key, value = query_ref[0], key_ref[0], value_ref[0]
    scale, dtype, block = 1 / math.sqrt(width), query.dtype, pl.program_id(2)

    @pl.when(block == 0)
    def _():
        most_ref[...] = jnp.full_like(most_ref, -jnp.inf)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)

    before = most_ref[...]
    most = sums = totals = jnp.zeros_like(before)
    for head, own in enumerate(heads_of(width)):
        scores = product(own(query).astype(dtype), key, 1, 1) * scale
        largest = before[:, head * width : head * width + 1]
        largest = jnp.maximum(largest, scores.max(1, keepdims=True))
        powers = jnp.exp(scores - largest)
        most = most + own(jnp.broadcast_to(largest, before.shape))
        sums = sums + own(jnp.broadcast_to(powers.sum(1, keepdims=True), before.shape))
        totals = totals + own(product(powers.astype(dtype), value, 1, 0))
    kept = jnp.exp(before - most)
    most_ref[...] = most
    sum_ref[...] = kept * sum_ref[...] + sums
    total_ref[...] = kept * total_ref[...] + totals

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        out_ref[0] = total_ref[...] / sum_ref[...]
        logs_ref[0] = most_ref[...] + jnp.log(sum_ref[...])


def _backward(
    query_ref, key_ref, value_ref, out_ref, logs_ref, cotangent_ref, dquery_ref, dkey_ref,
    dvalue_ref, total_ref, *, width: int,
):  # fmt: skip
    """The same backwards; the gradients of queries are summed over blocks of keys."""
    query, key, value, cotangent = query_ref[0], key_ref[0], value_ref[0], cotangent_ref[0]
    scale, dtype, block = 1 / math.sqrt(width), query.dtype, pl.program_id(2)
    both = out_ref[0] * cotangent.astype(jnp.float32)
    logs = logs_ref[0]

    @pl.when(block == 0)
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)

    dquery = jnp.zeros(query.shape, jnp.float32)
    dkey, dvalue = jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32)
    for head, own in enumerate(heads_of(width)):
        q, do = own(query).astype(dtype), own(cotangent).astype(dtype)
        log = logs[:, head * width : head * width + 1]
        weights = jnp.exp(product(q, key, 1, 1) * scale - log)
        dvalue += product(weights.astype(dtype), do, 0, 0)
        mean = own(both).sum(1, keepdims=True)
        dscores = (weights * (product(do, value, 1, 1) - mean) * scale).astype(dtype)
        dquery += own(product(dscores, key, 1, 0))
        dkey += product(dscores, q, 0, 0)
    dkey_ref[0], dvalue_ref[0] = dkey.astype(dtype), dvalue.astype(dtype)
    total_ref[...] += dquery

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        dquery_ref[0] = total_ref[...].astype(dtype)
