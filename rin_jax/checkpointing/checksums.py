"""Checksums of arrays: numbers that change with any bit, the same on any devices.

    checksum(x) = sum_i (2 i + 1) c bits_i   modulo 2^32,   c odd

over the elements in row-major order, bits_i as an unsigned integer. The factor of an element is
odd, so that a change of one element always changes the checksum; of several, but for one chance in
2^32. Integer sums do not depend on their order: an array has the same checksum however it is
sharded.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
ODD = 0x9E3779B1
GROUP_BYTES = 2**26  # of arrays in one program, which on a CPU holds as much beside them


@jax.jit  # traced once for all arrays of one shape: parameters, averages, moments
def checksum(x: jax.Array) -> jax.Array:
    """uint32 scalar; x may have any shape and a dtype of up to 32 bits, not bool."""
    bits = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index += iota * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum((2 * index + 1) * jnp.uint32(ODD) * bits, dtype=jnp.uint32)


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([checksum(leaf) for leaf in leaves])


def tree_checksums(tree: Mapping[str, Any]) -> dict[str, int]:
    """The checksum of every leaf by its path, PART/LAYER/...

    One program for many leaves of a part, which is that of all parts with the same shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    values: list[int] = []
    for _, part in itertools.groupby(leaves, lambda item: item[0][0]):
        for group in _groups([leaf for _, leaf in part]):
            values += jax.device_get(_checksums(group)).tolist()
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for (path, _), value in zip(leaves, values, strict=True)
    }


def _groups(leaves: list[jax.Array]) -> list[list[jax.Array]]:
    """The leaves in order, as many at once as fit GROUP_BYTES, or one that is larger."""
    groups: list[list[jax.Array]] = []
    room = 0
    for leaf in leaves:
        room -= leaf.nbytes
        if room < 0:
            groups.append([])
            room = GROUP_BYTES - leaf.nbytes
        groups[-1].append(leaf)
    return groups
