"""Where a run's parameters come from: its newest good checkpoint, another run, or a fresh start.

A checkpoint that is damaged is skipped, with its step and the reason; never is a run that has
checkpoints started afresh because none of them can be used.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.checkpointing.checkpoints import DamagedError, Saved, describe_damage, folder
from rin_jax.experiment import Experiment, check_architecture, config_errors
from rin_jax.runtime import console, sharding
from rin_jax.training import state
from rin_jax.training.state import TrainState

POSITIONS = ("positions", "table")  # the end of a position table's path
COPIES = "Put a copy of the files back, or name another --workdir."


def find(workdir: str) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints of a run, newest first, without a device, and why others are damaged.

    Raises:
      ConfigError: all there are are damaged, or one has another format version.
    """
    with config_errors():
        found, damaged = checkpoints.find(folder(workdir))
    for line in describe_damage(damaged):
        console.say(line)
    if damaged and not found:
        raise ConfigError(
            f"no checkpoint in {workdir} can be used: {'; '.join(describe_damage(damaged))}. "
            f"{COPIES}"
        )
    return found, damaged


def find_run(experiment: Experiment, workdir: str) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints that a run goes on from, as `find`; none if it is new.

    Raises:
      ConfigError: as `find`; or they belong to another architecture, or lack an average.
    """
    found, damaged = find(workdir)
    if found:
        where = f"checkpoint {found[0].step} in {workdir}"
        check_architecture(experiment.config, found[0].facts["config"], where)
        lacking = [name for name in experiment.averages if name not in found[0].emas]
        if lacking:
            raise ConfigError(
                f"{where} has the averages {', '.join(found[0].emas)}, but section ema also wants "
                f"{', '.join(lacking)}; an average runs from the first step, so leave it out or "
                "name another --workdir."
            )
    return found, damaged


def restore_state(
    experiment: Experiment,
    mesh: Mesh,
    workdir: str,
    found: list[Saved],
    unreadable: dict[int, str],
) -> tuple[TrainState, dict[str, Any]]:
    """(state, facts) of the newest checkpoint that is good; damaged ones met are moved aside.

    `found` and `unreadable` as `find_run` gives them.

    Raises:
      ConfigError: none is good; nothing was moved.
    """
    abstract = state.abstract_state(experiment, mesh)
    try:
        saved, parts, damaged = checkpoints.load_newest(found, checkpoints.state_parts(abstract))
    except DamagedError as error:
        raise ConfigError(f"no checkpoint in {workdir} can be used: {error}. {COPIES}") from error
    for line in describe_damage(damaged):
        console.say(f"{line}; it is skipped")
    if damaged or unreadable:
        aside = checkpoints.move_aside(workdir, [*damaged, *unreadable])
        console.say(f"damaged checkpoints are now in {aside}")
    console.say(f"resumed from checkpoint {saved.step} in {workdir}")
    return checkpoints.state_of_parts(parts, saved.step, abstract), saved.facts


def find_checkpoints(workdir: str, checkpoint: int | None = None) -> list[Saved]:
    """The checkpoints of a run, newest first, or the one of a step.

    Raises:
      ConfigError: there is none, with the steps of those that are; or as `find`.
    """
    found, _ = find(workdir)
    if not found:
        raise ConfigError(
            f"no checkpoint in {workdir}; train there first (--mode=train) or name another "
            "workdir."
        )
    if checkpoint is None:
        return found
    of_step = [saved for saved in found if saved.step == checkpoint]
    if not of_step:
        steps = ", ".join(str(saved.step) for saved in reversed(found))
        raise ConfigError(f"no checkpoint {checkpoint} in {workdir}; there are {steps}.")
    return of_step


def load_ema(
    experiment: Experiment,
    mesh: Mesh,
    workdir: str,
    ema: str | None = None,
    checkpoint: int | None = None,
) -> tuple[int, str, Any]:
    """(step, name, parameters) of an average in a checkpoint.

    Args:
      experiment: whose architecture the checkpoint must have.
      mesh: the devices that get the parameters.
      workdir: the run's folder.
      ema: the name, "decay_0.9999"; the first that the run keeps if not given. An average that
        `--mode=reconstruct` made is found too.
      checkpoint: the step; the newest good one if not given.

    Raises:
      ConfigError: there is no checkpoint, none is good, it belongs to another architecture, or
        the average was not kept.
    """
    found = find_checkpoints(workdir, checkpoint)
    made = folder(workdir, "reconstructed") / (ema or "none")
    if ema and ema not in found[0].emas and made.exists():
        found, _ = checkpoints.find(made)
    newest = found[0]
    where = f"checkpoint {newest.step} in {workdir}"
    check_architecture(experiment.config, newest.facts["config"], where)
    name = ema or newest.emas[0]
    if name not in newest.emas:
        raise ConfigError(
            f"--ema is {name}, but {where} has {', '.join(newest.emas)}; choose one of these, or "
            "make another length with --mode=reconstruct."
        )
    wanted = {f"ema_{name}": state.abstract_params(experiment.rin, mesh)}
    try:
        saved, parts, damaged = checkpoints.load_newest(found, wanted)
    except DamagedError as error:
        raise ConfigError(f"no checkpoint in {workdir} can be used: {error}. {COPIES}") from error
    for line in describe_damage(damaged):
        console.say(f"{line}; it is skipped")
    return saved.step, name, parts[f"ema_{name}"]


def find_beginning(experiment: Experiment) -> list[Saved] | None:
    """The checkpoints that `train.init_from` names, newest first; None if it names nothing.

    Raises:
      ConfigError: there is none.
    """
    path = experiment.config.train.init_from
    if path is None:
        return None
    found, _ = find(path)
    if not found:
        raise ConfigError(f"train.init_from is {path}, but there is no checkpoint in it.")
    return found


def begin(experiment: Experiment, mesh: Mesh, beginning: list[Saved] | None) -> TrainState:
    """The state of a new run, with the parameters of another one where they fit.

    Raises:
      ConfigError: no checkpoint of the other run is good.
    """
    fresh = state.create_state(experiment, mesh, experiment.config.seed)
    if beginning is None:
        return fresh
    shapes = ocp.checkpointables_metadata(beginning[0].path).metadata["params"]
    everywhere = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes
    )
    try:
        saved, parts, _ = checkpoints.load_newest(beginning, {"params": abstract})
    except DamagedError as error:
        path = experiment.config.train.init_from
        raise ConfigError(f"no checkpoint in {path} can be used: {error}.") from error
    params, report = take_over(parts["params"], fresh.params)
    console.say(f"parameters of {saved.path}: {report}")
    return state.state_from(experiment, mesh, params)


def take_over(given: Any, fresh: Any) -> tuple[Any, str]:
    """Parameters of another network where they fit, `fresh` ones elsewhere, and what was done.

    Position tables of another square grid are resized; whatever else has another shape, as the
    label embedding of other classes, is not taken.
    """
    known = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    done: dict[str, list[str]] = {"resized": [], "fresh": []}
    seen = set()

    def choose(path, leaf):
        name = _name(path)
        seen.add(name)
        old = known.get(name)
        if old is not None and old.shape == leaf.shape:
            return old
        shapes = f"{name} {leaf.shape}" + ("" if old is None else f" from {old.shape}")
        if old is not None and tuple(name.split("/")[-2:]) == POSITIONS:
            resized = resize_positions(old, leaf.shape)
            if resized is not None:
                done["resized"].append(shapes)
                return resized
        done["fresh"].append(shapes)
        return leaf

    params = jax.tree_util.tree_map_with_path(choose, fresh)
    unused = sorted(set(known) - seen)
    taken = len(seen) - len(done["resized"]) - len(done["fresh"])
    lines = [f"{taken} of {len(seen)} arrays are taken over"]
    for what, names in (*done.items(), ("not used", unused)):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return params, "\n".join(lines)


def resize_positions(table: jax.Array, shape: tuple[int, int]) -> jax.Array | None:
    """A position table [n^2, D] for a grid of another side; None if the grids are not square."""
    sides = [math.isqrt(length) for length in (table.shape[0], shape[0])]
    square = [side**2 for side in sides] == [table.shape[0], shape[0]]
    if not square or table.shape[1] != shape[1]:
        return None
    old, new = sides
    grid = table.reshape(old, old, -1)
    return jax.image.resize(grid, (new, new, grid.shape[-1]), "bicubic").reshape(shape)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
