"""The parameters of a network on a mesh: where each lies, and those of a run's EMA.

For sampling the weights are whole on every device, however training splits them.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints, restore
from rin_jax.checkpointing.checkpoints import folder
from rin_jax.configuration.stored import check_architecture
from rin_jax.experiment import Experiment
from rin_jax.network import partitioning
from rin_jax.network.rin import RIN
from rin_jax.runtime import sharding

BEST = "best"  # the average with the lowest trend figure, and the folder that keeps it


class Ema(NamedTuple):
    """The averaged weights of a run at one step."""

    step: int  # steps taken
    name: str  # of the average
    params: Any


def placed(shapes: Any, mesh: Mesh) -> Any:
    """Shapes with the sharding of each: one rule for parameters, averages and moments."""

    def place(path, leaf):
        names = partitioning.names(path)
        axes = partitioning.logical_axes(names, len(leaf.shape))
        spec = sharding.parameter_spec(axes, partitioning.stacked_axes(names), leaf.shape, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, shapes)


def abstract_params(rin: RIN, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a network's parameters, without any array."""
    return placed(partitioning.param_shapes(rin), mesh)


@functools.cache
def _replicate(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))


def whole(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, whole on every device of a mesh."""
    return _replicate(mesh)(tree)


def on_device(tree: Any, device: jax.Device) -> Any:
    """The copies on one device of arrays that are whole on it."""
    return jax.tree.map(
        lambda x: next(part.data for part in x.addressable_shards if part.device == device), tree
    )


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Arrays of a mesh on this process's first device."""
    return on_device(whole(tree, mesh), mesh.local_devices[0])


def load_ema(
    experiment: Experiment, mesh: Mesh, workdir: str, ema: str | None = None,
    checkpoint: int | None = None,
) -> Ema:  # fmt: skip
    """An average in a run's checkpoint, on the devices of `mesh`.

    Args:
      ema: the name, "decay_0.9999"; the first that the run keeps if not given. An average that
        `--mode=reconstruct` made is found too, and "best" is what `evaluation.keep_best` kept.
      checkpoint: the step; the newest good one if not given.

    Raises ConfigError if there is no checkpoint, none is good, it belongs to another architecture,
    or the average was not kept.
    """
    found = restore.find_checkpoints(workdir, checkpoint)
    made = folder(workdir, "reconstructed") / (ema or "none")
    if ema == BEST:
        made, ema = folder(workdir, BEST), None
    if made.exists() and (ema is None or ema not in found[0].emas):
        found, damaged = checkpoints.find(made)
        if not found:
            raise restore.none_usable(made, damaged)
    elif made.name == BEST:
        raise ConfigError(f"--ema is {BEST}, but {workdir} has none; see evaluation.keep_best.")
    newest = found[0]
    where = f"checkpoint {newest.step} in {workdir}"
    check_architecture(experiment, newest.config, where)
    name = ema or newest.emas[0]
    if name not in newest.emas:
        raise ConfigError(
            f"--ema is {name}, but {where} has {', '.join(newest.emas)}; choose one of these, or "
            "make another length with --mode=reconstruct."
        )
    wanted = {f"ema_{name}": abstract_params(experiment.rin, mesh)}
    saved, items, _ = restore.load_newest(found, wanted, workdir)
    return Ema(saved.step, name, items[f"ema_{name}"])
