"""Checkpoints: saved asynchronously, checked, restored on whatever devices are there.

    WORKDIR/checkpoints/STEP/   params, opt_state and every average (ema_NAME), a part each
    WORKDIR/snapshots/STEP/     the power averages alone, for averages of other lengths (ema.py)
    WORKDIR/damaged/STEP...     what was found damaged and moved aside

Every checkpoint carries a format version, facts (the resolved configuration, the number of images
read, ...), a hash of these and a digest of each array (digests.py), all compared when it is
restored. No random state: it follows from the step.
"""

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from rin_jax.checkpointing.checksums import tree_digests
from rin_jax.runtime import processes
from rin_jax.training.state import TrainState

FORMAT = 2


class DamagedError(ValueError):
    """A checkpoint that is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A complete checkpoint in a folder, none of its arrays read yet.

    Attributes:
      step: steps taken.
      path: its folder.
      facts: what was saved with it.
      digests: those of its arrays, by path.
    """

    step: int
    path: epath.Path
    facts: dict[str, Any]
    digests: dict[str, int]

    @property
    def emas(self) -> list[str]:
        """The names of the averages in it."""
        return self.facts["emas"]


class Checkpoints:
    """Saves checkpoints into one folder; a context manager that ends with the last one complete.

    Args:
      path: the folder, local or any that etils.epath knows (gs://...).
      keep: how many of the newest stay; None keeps all.
      keep_every_steps: those of multiples of this step stay too, if given.
      keep_best: how many with the lowest loss given to `save` stay too.
    """

    def __init__(
        self,
        path: epath.Path,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        keep_best: int = 0,
    ):
        policies = ocp.training.preservation_policies
        kept = [policies.PreserveAll() if keep is None else policies.LatestN(keep)]
        if keep_every_steps:
            kept.append(policies.EveryNSteps(keep_every_steps))
        if keep_best:
            loss = operator.itemgetter("loss")
            kept.append(policies.BestN(get_metric_fn=loss, reverse=True, n=keep_best))
        context = ocp.Context()  # processes wait for each other by step; two folders may save one
        context.multiprocessing.barrier_sync_key_prefix = path.name
        self._checkpointer = ocp.training.Checkpointer(
            path,
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()

    def save(
        self,
        step: int,
        parts: Mapping[str, Any],
        facts: Mapping[str, Any],
        loss: float | None = None,
    ) -> None:
        """Starts saving pytrees of arrays by name; waits first for the save before.

        `facts` must be JSON. The arrays may be given away (donated) when this returns.
        """
        self._checkpointer.wait()
        metadata = {"format": FORMAT, "facts": facts, "digests": tree_digests(dict(parts))}
        metadata = json.loads(json.dumps(metadata))  # as of now: it is written later
        self._checkpointer.save_checkpointables_async(
            step,
            dict(parts),
            force=True,
            custom_metadata={**metadata, "sha256": _hash(metadata)},
            metrics=None if loss is None else {"loss": loss},
        )

    def save_state(
        self,
        state: TrainState,
        step: int,
        config: Mapping[str, Any],
        images_read: int,
        window: Mapping[str, Any],
        loss: float | None = None,
    ) -> None:
        """Starts saving the state of a run after `step`, with what it needs to go on.

        Args:
          state: of the run.
          step: steps taken.
          config: the resolved configuration.
          images_read: the position in the data.
          window: what is known of the steps since the last log line (`window.Window.facts`).
          loss: the mean loss, by which the best are kept.
        """
        facts = {
            "config": config,
            "emas": list(state.emas),
            "images_read": images_read,
            "window": window,
        }
        self.save(step, state_parts(state), facts, loss)

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


def state_parts(state: TrainState) -> dict[str, Any]:
    """A state, or its shapes, as the parts of a checkpoint."""
    averages = {f"ema_{name}": params for name, params in state.emas.items()}
    return {"params": state.params, "opt_state": state.opt_state, **averages}


def state_of_parts(parts: Mapping[str, Any], step: int, abstract: TrainState) -> TrainState:
    """The state that `state_parts` took apart."""
    return TrainState(
        step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
        params=parts["params"],
        emas={name: parts[f"ema_{name}"] for name in abstract.emas},
        opt_state=parts["opt_state"],
    )


def find(path: epath.Path) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints in a folder, newest first, and why others there are damaged, by step.

    Nothing is read but their metadata, and no device is used.

    Raises:
      ValueError: one was written by another format version.
    """
    steps = sorted((int(p.name) for p in _entries(path) if p.name.isdigit()), reverse=True)
    found, damaged = [], {}
    for step in steps:
        try:
            found.append(_read_metadata(path / str(step), step))
        except DamagedError as error:
            damaged[step] = str(error)
    return found, damaged


def _entries(path: epath.Path) -> list[epath.Path]:
    return list(path.iterdir()) if path.exists() else []


def _read_metadata(path: epath.Path, step: int) -> Saved:
    try:
        metadata = dict(ocp.checkpointables_metadata(path).custom_metadata or {})
    except Exception as error:  # Orbax has no error of its own for damage
        raise DamagedError(f"its metadata cannot be read ({_first_line(error)})") from error
    if "format" not in metadata:
        raise DamagedError("its metadata has no format version")
    if metadata["format"] != FORMAT:
        raise ValueError(
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
    """Parts of a checkpoint, laid out as the shapes in `abstract` say; all processes together.

    Raises:
      DamagedError: in all processes, if any of them cannot read its share or a digest differs.
    """
    loaded, reason = None, ""
    index = jax.process_index()
    context = ocp.Context()  # alone: a process that fails must not leave the others waiting
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
    try:
        with context:
            loaded = ocp.load_checkpointables(saved.path, dict(abstract))
    except Exception as error:  # Orbax has no error of its own for damage
        reason = f"it cannot be read ({_first_line(error)})"
    reasons = [text for text in processes.gather("reading a checkpoint", reason) if text]
    if reasons:
        raise DamagedError(reasons[0])
    for name, value in tree_digests(loaded).items():
        if saved.digests.get(name) != value:
            raise DamagedError(f"{name} is not what was saved (digest {value})")
    return loaded


def load_newest(
    found: Sequence[Saved], abstract: Mapping[str, Any]
) -> tuple[Saved, dict[str, Any], dict[int, str]]:
    """The newest checkpoint that can be restored, its parts, and why newer ones cannot, by step.

    Raises:
      DamagedError: none can.
    """
    damaged: dict[int, str] = {}
    for saved in found:
        try:
            return saved, load(saved, abstract), damaged
        except DamagedError as error:
            damaged[saved.step] = str(error)
    raise DamagedError("; ".join(describe_damage(damaged)))


def describe_damage(damaged: Mapping[int, str]) -> Iterator[str]:
    """A sentence for each damaged checkpoint."""
    for step, reason in damaged.items():
        yield f"checkpoint {step} is damaged: {reason}"


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
