"""Where the state of a run comes from: its newest good checkpoint, another run, or nowhere."""

import math
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints, restore
from rin_jax.checkpointing.checkpoints import Saved
from rin_jax.configuration.stored import check_architecture
from rin_jax.experiment import Experiment
from rin_jax.network import partitioning
from rin_jax.runtime import console, sharding
from rin_jax.training import state
from rin_jax.training.state import TrainState

FOLDERS = "checkpoints", "snapshots", "best", "damaged", "events", "progress"  # of a workdir
CURVES = "metrics.jsonl", "events"


def check_names(workdir: str) -> None:
    """Raises ConfigError where a file has the name of a folder of a run, or the other way round."""
    for name in (*FOLDERS, "metrics.jsonl"):
        path = epath.Path(workdir) / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            is_now, should = ("a file", "folder") if name in FOLDERS else ("a folder", "file")
            raise ConfigError(f"{path} is {is_now}, but a run has a {should} there; move it away.")


def mark_of_unsaved(workdir: str) -> epath.Path:
    """A file that is there from before the curves of a run begin until it has a checkpoint."""
    return epath.Path(workdir) / "unsaved"


def check_curves(workdir: str) -> None:
    """Raises ConfigError if a new run would take the place of curves whose checkpoints are lost."""
    curves = [name for name in CURVES if (epath.Path(workdir) / name).exists()]
    if curves and not mark_of_unsaved(workdir).exists():
        raise ConfigError(
            f"{workdir} has {' and '.join(curves)} of a run, but none of its checkpoints. Put "
            "them back; or, to start anew, name another --workdir or delete these curves."
        )


def find_run(experiment: Experiment, workdir: str) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints that a run goes on from, as `restore.find`; none if it is new.

    Raises ConfigError as `check_names`, `restore.find` and `check_curves`, or if they belong to
    another architecture or optimizer, or lack an average.
    """
    check_names(workdir)
    found, damaged = restore.find(workdir)
    if not found:
        check_curves(workdir)
    else:
        where = f"checkpoint {found[0].step} in {workdir}"
        check_architecture(experiment, found[0].config, where)
        before, now = found[0].config["optimizer"]["name"], experiment.config.optimizer.name
        if before != now:
            raise ConfigError(
                f"optimizer.name is {now!r}, but {where} has the state of {before!r}; set it back, "
                "or start from its parameters in another --workdir with --config.train.init_from."
            )
        lacking = [name for name in experiment.averages if name not in found[0].emas]
        if lacking:
            raise ConfigError(
                f"{where} has the averages {', '.join(found[0].emas)}, but section ema also wants "
                f"{', '.join(lacking)}; an average runs from the first step, so leave it out or "
                "name another --workdir."
            )
    return found, damaged


def restore_state(
    experiment: Experiment, mesh: Mesh, workdir: str, found: list[Saved], unreadable: dict[int, str]
) -> tuple[TrainState, dict[str, Any]]:
    """(state, metadata) of the newest checkpoint that is good; damaged ones are moved aside.

    `found` and `unreadable` as `find_run` gives them. Raises ConfigError if none is good; then
    nothing was moved.
    """
    abstract = state.abstract_state(experiment, mesh)
    saved, items, damaged = restore.load_newest(found, state.items_of(abstract), workdir)
    if damaged or unreadable:
        aside = checkpoints.move_aside(workdir, [*damaged, *unreadable])
        console.say(f"damaged checkpoints are now in {aside}")
    console.say(f"resumed from checkpoint {saved.step} in {workdir}")
    return state.state_of(items, saved.step, abstract), saved.metadata


def find_beginning(experiment: Experiment) -> list[Saved] | None:
    """The checkpoints in `train.init_from`, newest first (ConfigError: none); None if not set."""
    path = experiment.train.init_from
    if path is None:
        return None
    found, _ = restore.find(path)
    if not found:
        raise ConfigError(
            f"train.init_from is {path}, but there is no checkpoint in it; name the workdir of a "
            "run, or leave the field out."
        )
    return found


def begin(experiment: Experiment, mesh: Mesh, beginning: list[Saved] | None) -> TrainState:
    """A new run's state, with another's parameters where they fit; ConfigError: all are damaged."""
    fresh = state.create_state(experiment, mesh, experiment.config.seed)
    if beginning is None:
        return fresh
    shapes = ocp.checkpointables_metadata(beginning[0].path).metadata["params"]
    whole = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes
    )
    wanted, path = {"params": abstract}, experiment.train.init_from
    saved, items, _ = restore.load_newest(beginning, wanted, path)
    params, report = take_over(items["params"], fresh.params)
    console.say(f"parameters of {saved.path}: {report}")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, fresh)
    return jax.jit(lambda p: state.new_state(experiment, p), out_shardings=shardings)(params)


def take_over(given: Any, fresh: Any) -> tuple[Any, str]:
    """Parameters of another network where they fit, `fresh` ones elsewhere, and what was done.

    Position tables of another square grid are resized; whatever else has another shape, as the
    label embedding of other classes, is not taken.
    """
    known = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    done: dict[str, list[str]] = {"resized": [], "fresh": []}
    count = len(jax.tree.leaves(fresh))

    def choose(path, leaf):
        name = _name(path)
        old = known.pop(name, None)
        if old is not None and old.shape == leaf.shape:
            return old
        shapes = f"{name} {leaf.shape}" + ("" if old is None else f" from {old.shape}")
        if old is not None and partitioning.is_interface_positions(partitioning.names(path)):
            resized = resize_positions(old, leaf.shape)
            if resized is not None:
                done["resized"].append(shapes)
                return resized
        done["fresh"].append(shapes)
        return leaf

    params = jax.tree_util.tree_map_with_path(choose, fresh)
    taken = count - len(done["resized"]) - len(done["fresh"])
    lines = [f"{taken} of {count} arrays are taken over"]
    done["not used"] = sorted(known)
    lines += [f"  {what}: {', '.join(names)}" for what, names in done.items() if names]
    return params, "\n".join(lines)


def resize_positions(table: jax.Array, shape: tuple[int, int]) -> jax.Array | None:
    """A position table [n^2, D] for a grid of another side; None if the grids are not square."""
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    if (old**2, new**2, table.shape[1]) != (table.shape[0], *shape):
        return None
    grid = table.reshape(old, old, -1)
    return jax.image.resize(grid, (new, new, shape[1]), "bicubic").reshape(shape)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
