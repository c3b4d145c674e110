"""The training state: what a step changes and a checkpoint keeps. Created already sharded."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rin_jax.runtime import sharding

Array = jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: int32 scalar, steps taken.
      params: network parameters, float32.
      emas: their running averages by name (`ema.make_averages`); all start from the parameters.
      opt_state: the optimizer's state.
    """

    step: Array
    params: Any
    emas: dict[str, Any]
    opt_state: Any


def new_params(rin, key: Array) -> Any:
    """Fresh parameters of a network."""
    images = jnp.zeros((1, *rin.image_shape), jnp.float32)
    labels = jnp.zeros((1,), jnp.int32) if rin.num_classes else None
    return rin.init(key, images, jnp.zeros((1,)), labels)["params"]


def new_state(experiment, params: Any) -> TrainState:
    """The state before the first step; `experiment` has the optimizer and the averages."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        emas={name: jax.tree.map(jnp.copy, params) for name in experiment.averages},
        opt_state=experiment.optimizer.init(params),
    )


def _with_shardings(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.state_sharding(shapes, mesh),
    )


def abstract_params(rin, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a network's parameters, without any array."""
    shapes = jax.eval_shape(lambda key: new_params(rin, key), jax.random.key(0))
    return _with_shardings(shapes, mesh)


def abstract_state(experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of an experiment's state, without any array."""
    params = abstract_params(experiment.rin, mesh)
    return _with_shardings(jax.eval_shape(lambda p: new_state(experiment, p), params), mesh)


def create_state(experiment, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state; every array is made on the devices that hold it."""

    def init(key):
        return new_state(experiment, new_params(experiment.rin, key))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def state_from(experiment, mesh: Mesh, params: Any) -> TrainState:
    """The state of a run that starts from given parameters, laid out as `abstract_params`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    return jax.jit(lambda p: new_state(experiment, p), out_shardings=shardings)(params)
