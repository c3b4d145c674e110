"""The forms of attention agree: kernels against the plain form, alone and under a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rin_jax.network import attention, flat_attention, long_attention
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


def errors(arrays, heads):
    """Distances to float32 of the kernels' result and gradients, each beside the plain form's."""
    exact = with_gradients(attention.plain, heads, *(x.astype(jnp.float32) for x in arrays))
    plain = with_gradients(attention.plain, heads, *arrays)
    with pltpu.force_tpu_interpret_mode():
        kernel = with_gradients(flat, heads, *arrays)
    for result, other, truth in zip(kernel, plain, exact, strict=True):
        assert (result.dtype, result.shape) == (jnp.bfloat16, truth.shape)
        yield tuple(distance(x.astype(jnp.float32), truth) for x in (result, other))


SHAPES = {
    "read, four heads in a block": (2, 32, 256, 4, 32),
    "write, two": (3, 64, 128, 2, 64),
    "one": (1, 16, 128, 2, 128),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_are_as_near_to_float32_as_the_plain_form(shape):
    arrays, heads = inputs(*shape), shape[3]
    for error, other in errors(arrays, heads):
        assert error < min(ROUNDING, 1.5 * other)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_kernels_for_many_keys_are_nearly_as_near_to_float32(monkeypatch, width):
    """Three blocks of keys, whose scores grow: each has a new largest one."""
    heads = 128 // width
    query, key, value, cotangent = inputs(2, 32, 3 * 128, heads, width)
    key *= jnp.linspace(0.2, 2, 3 * 128, dtype=key.dtype)[None, :, None]
    monkeypatch.setattr(flat_attention, "MOST_KEYS", 128)
    monkeypatch.setattr(long_attention, "BLOCK_SCORES", 32 * 128)
    for error, other in errors((query, key, value, cotangent), heads):
        assert error < 2 * other


def test_kernels_sum_over_blocks_of_queries_and_of_examples(monkeypatch):
    arrays = inputs(4, 48, 128, 4, 32)
    expected = with_gradients(attention.plain, 4, *arrays)
    # of four heads: three blocks of queries; two examples a block
    for scores, rows, examples in ((4 * 16 * 128, 16, 1), (4 * 48 * 128 * 2, 48, 2)):
        monkeypatch.setattr(flat_attention, "BLOCK_SCORES", scores)
        tiles = flat_attention.Tiles(*arrays[:2], 4)
        assert (tiles.rows, tiles.examples) == (rows, examples)
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
    assert attention.kernels(query, key) is flat_attention.attention
    many = flat_attention.MOST_KEYS + 128
    assert attention.kernels(query, (4, many, 512)) is long_attention.attention
    most = long_attention.MOST_QUERIES + 16
    for queries, keys in ((32, 255), (24, 256), (24, many), (most, many)):
        assert attention.kernels((4, queries, 512), (4, keys, 512)) is None
    assert attention.fits(query, 16, 2, 4)
    # examples or heads do not divide; less than 128 lanes on a device; heads of width 24
    for parts in ((3, 1), (1, 3), (1, 8)):
        assert not attention.fits(query, 16, *parts)
    assert not attention.fits((4, 32, 384), 16, 1, 1)
