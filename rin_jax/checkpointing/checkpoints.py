"""Checkpoints: saved asynchronously, checked, restored on whatever devices are there.

    WORKDIR/checkpoints/STEP/   params, opt_state and every average (ema_NAME), an item each
    WORKDIR/snapshots/STEP/     the power averages alone, from which others can be computed
    WORKDIR/damaged/STEP...     what was found damaged and moved aside

Every checkpoint has metadata (the resolved configuration, the number of examples read, ...) with a
format version, its step, a checksum of each array and a hash of all this, which are compared when
it is restored. There is no random state in it: that follows from the step.
"""

import dataclasses
import hashlib
import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from rin_jax import ConfigError, at_least_one
from rin_jax.checkpointing import reading
from rin_jax.checkpointing.checksums import tree_checksums
from rin_jax.runtime import console, files, processes, retries
from rin_jax.runtime.retries import ReadError

FORMAT = 2
COMMITTED = "commit_success.txt"  # Orbax writes it last, in buckets alone
STEPS = 2**31  # the step of a state is int32


@dataclasses.dataclass(frozen=True)
class Policy:
    """The section `checkpoint` of a configuration: when checkpoints are saved, and which stay."""

    every_steps: int  # steps between two checkpoints
    keep: int  # how many of the newest checkpoints stay
    keep_every_steps: int | None  # checkpoints at multiples of this stay too; None: none of them
    keep_best: int  # how many checkpoints with the lowest mean loss stay too

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
    None keeps all, or with `only_best` the one of the lowest loss. Those whose loss cannot be read
    stay too, as those that have none.
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
        _drop_odd_losses(path)
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
        custom = {"format": FORMAT, "step": step, "facts": metadata}
        custom["digests"] = tree_checksums(dict(items))
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
    return path if files.is_bucket(workdir) else path.absolute()


def _steps(path: epath.Path) -> list[int]:
    """The steps that the names in a folder are, newest first; ConfigError: it is a file."""

    def listing() -> list[str]:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, not a folder of checkpoints; move it away.")
        entries = path.iterdir() if path.exists() else ()
        # in a bucket a save that was not finished has the name of one that was
        saved = (x for x in entries if not files.is_bucket(path) or (x / COMMITTED).exists())
        return [entry.name for entry in saved]

    names = retries.read(lambda: str(path), listing)
    steps = (int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))  # as Orbax
    return sorted(steps, reverse=True)


def _drop_odd_losses(path: epath.Path) -> None:
    """Removes what is not a loss from checkpoints, where Orbax would fail at it; by process 0."""
    for step in _steps(path) if jax.process_index() == 0 else ():
        metrics = path / str(step) / "metrics"
        try:
            text = retries.read(lambda path=metrics: str(path), (metrics / "metrics").read_bytes)
            if math.isfinite(json.loads(text)["loss"]):
                continue
        except (FileNotFoundError, NotADirectoryError):  # Orbax takes them as none
            continue
        except (IsADirectoryError, ValueError, LookupError, TypeError, OverflowError,
                RecursionError):  # fmt: skip
            pass
        metrics.rmtree()
        console.say(f"the loss of checkpoint {step} in {path} cannot be read and is removed")
    processes.agree(f"reading the losses in {path.name}")


def find(path: epath.Path) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints in a folder, newest first, and why others there are damaged, by step.

    Nothing is read but their metadata, and no device is used. ConfigError: one was written by
    another format version, or `path` is a file. ReadError: one is out of reach.
    """
    found, damaged = [], {}
    for step in _steps(path):
        try:
            found.append(_read_metadata(path / str(step), step))
        except DamagedError as error:
            damaged[step] = str(error)
    return found, damaged


def _read_metadata(path: epath.Path, step: int) -> Saved:
    file = path / "_CHECKPOINT_METADATA"  # Orbax would open every array for it
    try:
        text = retries.read(lambda: str(file), file.read_bytes)
        metadata = dict(json.loads(text)["custom_metadata"])
    except ReadError:
        raise
    except Exception as error:  # whatever a file system or a parser says
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
    own = metadata.get("step", step)  # older ones do not have it
    if own != step:
        raise DamagedError(f"its folder was renamed or copied: it was saved at step {own}")
    if step >= STEPS:
        raise DamagedError(f"its folder was renamed or copied: steps are below {STEPS}")
    return Saved(step, path, metadata["facts"], metadata["digests"])


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # Orbax wraps what TensorStore says
        error = error.__cause__
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"


def load(saved: Saved, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint, laid out as the shapes in `abstract` say; all processes together.

    DamagedError, in all processes: one of them cannot read its part, or a checksum differs.
    ReadError, which ends them all: a part is out of reach.
    """
    loaded, reason = None, ""
    index = jax.process_index()
    context = ocp.Context()  # alone: a process that fails must not leave the others waiting
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
    several = jax.process_count() > 1
    wanted = reading.in_parts(dict(abstract)) if several else dict(abstract)
    try:
        with context:
            loaded = retries.read(
                lambda: str(saved.path), lambda: ocp.load_checkpointables(saved.path, wanted)
            )
    except ReadError:
        raise
    except Exception as error:  # Orbax has no error of its own for damage
        reason = f"it cannot be read ({_first_line(error)})"
    reasons = [text for text in processes.gather("reading a checkpoint", reason) if text]
    if reasons:
        raise DamagedError(reasons[0])
    if several:
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
        names = {path.name for path in target.iterdir()} if target.exists() else set()
        for step in steps:
            number = next(n for n in range(len(names) + 1) if f"{step}-{n}" not in names)
            files.move(folder(workdir) / str(step), target / f"{step}-{number}")
    processes.agree("moving damaged checkpoints")
    return target


def remove(path: epath.Path) -> None:
    """Removes one checkpoint, if it is there; by process 0."""
    if jax.process_index() == 0 and path.exists():
        path.rmtree()
    processes.agree(f"removing {path.name}")
