"""The training state: what a step changes and a checkpoint keeps. Created already sharded."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rin_jax import sharding

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: int32 scalar, steps taken.
      params: network parameters, float32.
      ema_params: their running average; starts from the parameters.
      opt_state: the optimizer's state.
    """

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any


def new_state(rin, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """A fresh state; `rin` is the network module."""
    images = jnp.zeros((1, *rin.image_shape), jnp.float32)
    labels = jnp.zeros((1,), jnp.int32) if rin.num_classes else None
    params = rin.init(key, images, jnp.zeros((1,)), labels)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def abstract_state(rin, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, without any array."""
    shapes = jax.eval_shape(lambda key: new_state(rin, optimizer, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.state_sharding(shapes, mesh),
    )


def create_state(rin, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state; every array is made on the devices that hold it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(rin, optimizer, mesh))
    init = jax.jit(lambda key: new_state(rin, optimizer, key), out_shardings=shardings)
    return init(jax.random.key(seed))
