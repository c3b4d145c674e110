"""Attention of heads, in the form that suits the device and the shapes.

    O = softmax(Q K^T / sqrt(K)) V        softmax in float32 in every form

The plain form serves every device, and is the only one in float32 or where the batch is symbolic
(exports). In bfloat16 a GPU has cuDNN's kernels and a TPU those of `flat_attention.py`, which keep
the scores out of the device's memory. Each program takes the form of the platform that it is
lowered for.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from rin_jax.network import flat_attention

Array = jax.Array

HEADS = ("batch", "tokens", "heads", "head")  # logical axes of [B, T, H, K]


def attend(query: Array, key: Array, value: Array) -> Array:
    """Attention of query [B, Q, H, K] to key and value [B, S, H, K]: [B, Q, H, K]."""
    forms = {}
    if query.dtype == jnp.bfloat16 and isinstance(query.shape[0], int):
        spec, parts = placement()
        if flat_attention.fits(query.shape, key.shape, *parts):
            forms["tpu"] = functools.partial(flat, spec=spec)
        if jax.default_backend() == "gpu" and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128:
            forms["cuda"] = cudnn
    if not forms:
        return plain(query, key, value)
    return jax.lax.platform_dependent(query, key, value, **forms, default=plain)


def plain(query: Array, key: Array, value: Array) -> Array:
    """The form of every device."""
    return jax.nn.dot_product_attention(query, key, value)


def cudnn(query: Array, key: Array, value: Array) -> Array:
    """cuDNN's flash attention."""
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def flat(query: Array, key: Array, value: Array, spec: PartitionSpec | None) -> Array:
    """The kernels of `flat_attention.py`; under a mesh each device takes its examples and heads."""

    def of_device(query, key, value):
        heads = query.shape[2]
        flattened = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
        return flat_attention.attention(*flattened, heads).reshape(query.shape)

    if spec is not None:
        of_device = jax.shard_map(of_device, in_specs=spec, out_specs=spec, check_vma=False)
    return of_device(query, key, value)


def placement() -> tuple[PartitionSpec | None, tuple[int, int]]:
    """How [B, T, H, K] lies on the mesh that the program is traced for, and in how many parts.

    The parts are those of B and of H.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None, (1, 1)
    spec = nn.logical_to_mesh_axes(HEADS)
    names = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    examples, _, heads, _ = (math.prod(mesh.shape[name] for name in axis) for axis in names)
    return spec, (examples, heads)
