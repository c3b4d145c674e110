"""The training state: what a step changes and a checkpoint keeps. Created already sharded."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rin_jax.experiment import Experiment
from rin_jax.network.partitioning import new_params
from rin_jax.sampling.weights import abstract_params, placed


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes."""

    step: jax.Array  # int32 scalar, steps taken
    params: Any  # network parameters, float32
    emas: dict[str, Any]  # their running averages by name; all start from the parameters
    opt_state: Any  # the optimizer's state


def new_state(experiment: Experiment, params: Any) -> TrainState:
    """The state before the first step."""
    emas = {name: jax.tree.map(jnp.copy, params) for name in experiment.averages}
    return TrainState(jnp.zeros((), jnp.int32), params, emas, experiment.optimizer.init(params))


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of an experiment's state, without any array."""
    params = abstract_params(experiment.rin, mesh)
    return placed(jax.eval_shape(lambda p: new_state(experiment, p), params), mesh)


def create_state(experiment: Experiment, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state; every array is made on the devices that hold it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
    init = jax.jit(
        lambda key: new_state(experiment, new_params(experiment.rin, key)), out_shardings=shardings
    )
    return init(jax.random.key(seed))


def items_of(state: TrainState) -> dict[str, Any]:
    """A state, or its shapes, as the items of a checkpoint."""
    averages = {f"ema_{name}": params for name, params in state.emas.items()}
    return {"params": state.params, "opt_state": state.opt_state, **averages}


def state_of(items: Mapping[str, Any], step: int, abstract: TrainState) -> TrainState:
    """The state that `items_of` took apart."""
    taken = jax.device_put(jnp.int32(step), abstract.step.sharding)
    emas = {name: items[f"ema_{name}"] for name in abstract.emas}
    return TrainState(taken, items["params"], emas, items["opt_state"])


def metadata_of(state: TrainState, experiment: Experiment, images_read: int) -> dict[str, Any]:
    """What a checkpoint says of a state: configuration, averages and the position in the data."""
    config = experiment.config.to_dict()
    return {"config": config, "emas": list(state.emas), "images_read": images_read}
