"""The forms of attention agree: kernels against the plain form, alone and under a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rin_jax.network import attention, flat_attention
from rin_jax.runtime import sharding
from tests.network.small import distance

ROUNDING = 2**-8  # of bfloat16, relative


def inputs(batch, queries, keys, heads, width, dtype=jnp.bfloat16):
    """Query, key, value and a cotangent of the result."""
    rng = np.random.default_rng(0)
    shapes = [(batch, tokens, heads * width) for tokens in (queries, keys, keys, queries)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def with_gradients(form, heads, query, key, value, cotangent):
    """Result and gradients of a form, compiled."""

    def both(query, key, value, cotangent):
        out, backward = jax.vjp(lambda *arrays: form(*arrays, heads), query, key, value)
        return out, *backward(cotangent)

    return jax.jit(both)(query, key, value, cotangent)


flat = functools.partial(attention.flat, spec=None)


SHAPES = {
    "read, four heads in a block": (2, 32, 256, 4, 32),
    "write, two": (3, 64, 128, 2, 64),
    "one": (1, 16, 128, 2, 128),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_are_as_near_to_float32_as_the_plain_form(shape):
    arrays, heads = inputs(*shape), shape[3]
    exact = with_gradients(attention.plain, heads, *(x.astype(jnp.float32) for x in arrays))
    plain = with_gradients(attention.plain, heads, *arrays)
    with pltpu.force_tpu_interpret_mode():
        kernel = with_gradients(flat, heads, *arrays)
    for result, other, truth in zip(kernel, plain, exact, strict=True):
        assert (result.dtype, result.shape) == (jnp.bfloat16, truth.shape)
        error = distance(result.astype(jnp.float32), truth)
        assert error < min(ROUNDING, 1.5 * distance(other.astype(jnp.float32), truth))


def test_kernels_sum_over_blocks_of_queries_and_of_examples(monkeypatch):
    arrays = inputs(4, 48, 128, 4, 32)
    expected = with_gradients(attention.plain, 4, *arrays)
    for scores in (16 * 128, 48 * 128 * 2):  # three blocks of queries; two examples a block
        monkeypatch.setattr(flat_attention, "BLOCK_SCORES", scores)
        with pltpu.force_tpu_interpret_mode():
            results = with_gradients(flat, 4, *arrays)
        for result, other in zip(results, expected, strict=True):
            assert distance(result.astype(jnp.float32), other.astype(jnp.float32)) <= 2 * ROUNDING


def test_each_device_of_a_mesh_takes_its_examples_and_heads():
    query, key, value, _ = inputs(4, 16, 128, 8, 32)
    mesh = sharding.make_mesh(2, 1, 2, jax.devices()[:4])
    with sharding.logical_axes(mesh), pltpu.force_tpu_interpret_mode():
        spec, parts = attention.placement()
        form = functools.partial(attention.flat, heads=8 // 2, spec=spec)
        result = jax.jit(form)(query, key, value)
    assert parts == (2, 2)
    shards = {shard.data.shape for shard in result.addressable_shards}
    assert shards == {(2, 16, 4 * 32)}
    expected = attention.plain(query, key, value, 8)
    assert distance(result.astype(jnp.float32), expected.astype(jnp.float32)) <= 2 * ROUNDING
    assert attention.placement() == (None, (1, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_computes_the_plain_form_to_the_bit(dtype):
    arrays = inputs(2, 32, 128, 4, 32, dtype)
    results = with_gradients(attention.attend, 4, *arrays)
    plain = with_gradients(attention.plain, 4, *arrays)
    for result, expected in zip(results, plain, strict=True):
        assert (result == expected).all()
    program = str(jax.make_jaxpr(lambda *a: attention.attend(*a, 4))(*arrays[:3]))
    assert ("pallas_call" in program) == (dtype == "bfloat16")


def test_what_kernels_do_not_take_is_left_to_the_plain_form():
    query, key = (4, 32, 512), (4, 256, 512)
    assert flat_attention.fits(query, key, 16, 2, 4)
    for keys, parts in (
        (256, (3, 1)),  # examples, or heads, do not divide
        (256, (1, 3)),
        (256, (1, 8)),  # less than 128 lanes on a device
        (255, (1, 1)),
        (flat_attention.MOST_KEYS + 128, (1, 1)),
    ):
        assert not flat_attention.fits(query, (4, keys, 512), 16, *parts)
    assert not flat_attention.fits((4, 24, 512), key, 16, 1, 1)  # queries
    assert not flat_attention.fits((4, 32, 384), (4, 256, 384), 16, 1, 1)  # width 24
