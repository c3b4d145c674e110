"""Attention of heads, in the form that suits the device and the shapes.

    O = softmax(Q K^T / sqrt(K)) V        softmax in float32 in every form

The plain form serves every device, and is the only one in float32 or where the batch is symbolic
(exports). In bfloat16 a TPU has kernels which keep the scores out of the device's memory, those of
`flat_attention.py` and, for many keys, of `long_attention.py`. Each program takes the form of the
platform that it is lowered for.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from rin_jax.network import flat_attention, long_attention

Array = jax.Array

HEADS = ("batch", "tokens", "heads")  # logical axes of heads that lie side by side, [B, T, H K]


def attend(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Attention of query [B, Q, H K] to key and value [B, S, H K]: [B, Q, H K]."""
    every = functools.partial(plain, heads=heads)
    if query.dtype != jnp.bfloat16 or not isinstance(query.shape[0], int):
        return every(query, key, value)
    spec, parts = placement()
    if kernels(query.shape, key.shape) is None or not fits(query.shape, heads, *parts):
        return every(query, key, value)
    on_tpu = functools.partial(flat, heads=heads // parts[1], spec=spec)
    return jax.lax.platform_dependent(query, key, value, tpu=on_tpu, default=every)


def split(x: Array, heads: int) -> Array:
    """[B, T, H K] as [B, T, H, K]."""
    return x.reshape(*x.shape[:2], heads, -1)


def plain(query: Array, key: Array, value: Array, heads: int, implementation: str = "xla") -> Array:
    """JAX's own attention, by XLA's products; "cudnn": by cuDNN's kernels, on a GPU in bfloat16."""
    arrays = (split(x, heads) for x in (query, key, value))
    out = jax.nn.dot_product_attention(*arrays, implementation=implementation)
    return out.reshape(query.shape)


def flat(query: Array, key: Array, value: Array, heads: int, spec: PartitionSpec | None) -> Array:
    """The kernels, which must take the shapes; under a mesh each device has `heads` of its own."""
    attention = functools.partial(kernels(query.shape, key.shape), heads=heads)
    if spec is not None:
        attention = jax.shard_map(attention, in_specs=spec, out_specs=spec, check_vma=False)
    return attention(query, key, value)


def kernels(query: tuple[int, ...], key: tuple[int, ...]) -> Callable[..., Array] | None:
    """The attention for the tokens of query [B, Q, H K] and key [B, S, H K]; None: no kernels."""
    both = flat_attention, long_attention
    return next((module.attention for module in both if module.takes(query, key)), None)


def fits(query: tuple[int, ...], heads: int, batch_parts: int, head_parts: int) -> bool:
    """Whether kernels take heads [B, Q, H K] of which devices hold B and H in so many parts."""
    batch, _, features = query
    divided = batch % batch_parts == 0 and heads % head_parts == 0
    lanes = flat_attention.LANES
    return divided and lanes % (features // heads) == 0 and features // head_parts % lanes == 0


def placement() -> tuple[PartitionSpec | None, tuple[int, int]]:
    """How [B, T, H K] lies on the mesh that the program is traced for, and in how many parts.

    The parts are those of B and of H.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None, (1, 1)
    spec = nn.logical_to_mesh_axes(HEADS)
    names = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    examples, _, heads = (math.prod(mesh.shape[name] for name in axis) for axis in names)
    return spec, (examples, heads)
