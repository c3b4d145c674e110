"""Checkpoints: saved asynchronously, checked, restored on whatever devices are there.

    WORKDIR/checkpoints/STEP/   params, opt_state and every average (ema_NAME), an item each
    WORKDIR/snapshots/STEP/     the power averages alone, from which others can be computed
    WORKDIR/damaged/STEP...     what was found damaged and moved aside

Every checkpoint has metadata (the resolved configuration, the number of examples read, ...) with a
format version, a checksum of each array and a hash of all this, which are compared when it is
restored. There is no random state in it: that follows from the step.
"""

import dataclasses
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from rin_jax import ConfigError, at_least_one
from rin_jax.checkpointing import reading
from rin_jax.checkpointing.checksums import tree_checksums
from rin_jax.runtime import processes

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Policy:
    """The section `checkpoint` of a configuration: when checkpoints are saved, and which stay."""

    every_steps: int  # steps between two checkpoints
    keep: int  # how many of the newest stay
    keep_every_steps: int | None  # those of multiples of this step stay too; None: none of them
    keep_best: int  # how many with the lowest mean loss stay too

    def __post_init__(self):
        at_least_one("checkpoint", self, "every_steps", "keep")


class DamagedError(ValueError):
    """A checkpoint that is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A complete checkpoint in a folder, none of its arrays read yet."""

    step: int  # steps taken
    path: epath.Path  # its folder
    metadata: dict[str, Any]  # what was saved with it
    checksums: dict[str, int]  # those of its arrays, by path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run."""
        return self.metadata["config"]

    @property
    def emas(self) -> list[str]:
        """The names of the averages in it."""
        return self.metadata["emas"]


class Checkpoints:
    """Saves checkpoints into one folder; a context manager that ends with the last one complete.

    `path` is local or any that etils.epath knows (gs://...). `policy` says which checkpoints stay;
    None keeps all, or with `only_best` the one of the lowest loss.
    """

    def __init__(self, path: epath.Path, policy: Policy | None = None, only_best: bool = False):
        policies = ocp.training.preservation_policies
        number = policy.keep_best if policy else int(only_best)
        loss = operator.itemgetter("loss")
        best = [policies.BestN(get_metric_fn=loss, reverse=True, n=number)] if number else []
        kept = [] if only_best else [policies.PreserveAll()]
        if policy:
            kept = [policies.LatestN(policy.keep)]
        if policy and policy.keep_every_steps:
            kept.append(policies.EveryNSteps(policy.keep_every_steps))
        context = ocp.Context()  # processes wait for each other by step; two folders may save one
        context.multiprocessing.barrier_sync_key_prefix = path.name
        context.array.saving.max_replicas_for_replica_parallel = reading.PARTS
        self._checkpointer = ocp.training.Checkpointer(
            path,
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(kept + best),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()

    def save(
        self, step: int, items: Mapping[str, Any], metadata: Mapping, loss: float | None = None
    ) -> None:
        """Starts saving pytrees of arrays by name; waits first for the save before.

        `metadata` is JSON; `loss` the mean, by which the best are kept. The arrays may be given
        away (donated) when this returns.
        """
        self._checkpointer.wait()
        # "facts" and "digests" are format 2's names of metadata and checksums
        custom = {"format": FORMAT, "facts": metadata, "digests": tree_checksums(dict(items))}
        custom = json.loads(json.dumps(custom))  # as of now: it is written later
        self._checkpointer.save_checkpointables_async(
            step,
            dict(items),
            force=True,
            custom_metadata={**custom, "sha256": _hash(custom)},
            metrics=None if loss is None else {"loss": loss},
        )

    def has(self, step: int) -> bool:
        """Whether that step is there, complete."""
        return any(saved.step == step for saved in self._checkpointer.checkpoints)

    def wait(self) -> None:
        """Until the last save is complete; may be called from any thread."""
        self._checkpointer.wait()


def _hash(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def folder(workdir: str, name: str = "checkpoints") -> epath.Path:
    """A folder of a run as an absolute path, as Orbax wants it, or a URL."""
    path = epath.Path(workdir) / name
    return path if "://" in str(workdir) else path.absolute()


def find(path: epath.Path) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints in a folder, newest first, and why others there are damaged, by step.

    Nothing is read but their metadata, and no device is used. ConfigError: one was written by
    another format version.
    """
    entries = path.iterdir() if path.exists() else ()
    steps = sorted((int(entry.name) for entry in entries if entry.name.isdigit()), reverse=True)
    found, damaged = [], {}
    for step in steps:
        try:
            found.append(_read_metadata(path / str(step), step))
        except DamagedError as error:
            damaged[step] = str(error)
    return found, damaged


def _read_metadata(path: epath.Path, step: int) -> Saved:
    try:
        metadata = dict(ocp.checkpointables_metadata(path).custom_metadata or {})
    except Exception as error:  # Orbax has no error of its own for damage
        raise DamagedError(f"its metadata cannot be read ({_first_line(error)})") from error
    if "format" not in metadata:
        raise DamagedError("its metadata has no format version")
    if metadata["format"] != FORMAT:
        raise ConfigError(
            f"{path} has checkpoint format {metadata['format']}; this version reads format "
            f"{FORMAT}. Use the version of rin_jax that wrote it."
        )
    if metadata.pop("sha256", None) != _hash(metadata):
        raise DamagedError("its metadata was changed after it was saved")
    return Saved(step, path, metadata["facts"], metadata["digests"])


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"


def load(saved: Saved, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint, laid out as the shapes in `abstract` say; all processes together.

    DamagedError, in all processes: one of them cannot read its part, or a checksum differs.
    """
    loaded, reason = None, ""
    index = jax.process_index()
    context = ocp.Context()  # alone: a process that fails must not leave the others waiting
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
    wanted = reading.in_parts(dict(abstract)) if jax.process_count() > 1 else dict(abstract)
    try:
        with context:
            loaded = ocp.load_checkpointables(saved.path, wanted)
    except Exception as error:  # Orbax has no error of its own for damage
        reason = f"it cannot be read ({_first_line(error)})"
    reasons = [text for text in processes.gather("reading a checkpoint", reason) if text]
    if reasons:
        raise DamagedError(reasons[0])
    loaded = reading.gather(loaded, dict(abstract))
    for name, value in tree_checksums(loaded).items():
        if saved.checksums.get(name) != value:
            raise DamagedError(f"{name} is not what was saved (checksum {value})")
    return loaded


def describe_damage(damaged: Mapping[int, str]) -> list[str]:
    """A sentence for each damaged checkpoint."""
    return [f"checkpoint {step} is damaged: {reason}" for step, reason in damaged.items()]


def move_aside(workdir: str, steps: Sequence[int]) -> epath.Path:
    """Moves checkpoints out of the way of new ones, to WORKDIR/damaged; by process 0."""
    target = folder(workdir, "damaged")
    if jax.process_index() == 0:
        target.mkdir(parents=True, exist_ok=True)
        for step in steps:
            names = {path.name for path in target.iterdir()}
            number = next(n for n in range(len(names) + 1) if f"{step}-{n}" not in names)
            (folder(workdir) / str(step)).rename(target / f"{step}-{number}")
    processes.agree("moving damaged checkpoints")
    return target


def remove(path: epath.Path) -> None:
    """Removes one checkpoint, if it is there; by process 0."""
    if jax.process_index() == 0 and path.exists():
        path.rmtree()
    processes.agree(f"removing {path.name}")
