"""Checkpoints of a run: saved asynchronously, restored on whatever devices are there.

WORKDIR/checkpoints/STEP/ holds `ema_params` (all that sampling needs), `train` (parameters and
the optimizer's state) and, as metadata, the resolved configuration and a format version. No
random state and no data position: both follow from the step.
"""

from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from rin_jax.state import TrainState

FORMAT = 1


class Checkpoints:
    """The checkpoints of one workdir; a context manager that ends with the last save complete.

    Args:
      workdir: the run's folder; local or any path that etils.epath knows (gs://...).
      keep: how many of the newest checkpoints stay; None keeps all.
    """

    def __init__(self, workdir: str, keep: int | None = None):
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            folder(workdir),
            preservation_policy=policies.PreserveAll() if keep is None else policies.LatestN(keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()

    def save(self, state: TrainState, config: dict[str, Any]) -> None:
        """Starts saving a state under its step; waits first for the save before."""
        step = int(state.step)
        self._checkpointer.wait()
        self._checkpointer.save_checkpointables_async(
            step,
            {
                "ema_params": state.ema_params,
                "train": {"params": state.params, "opt_state": state.opt_state},
            },
            force=True,
            custom_metadata={"format": FORMAT, "config": config},
        )

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state saved at `step`, laid out as `abstract` says."""
        loaded = self._checkpointer.load_checkpointables(
            step,
            {
                "ema_params": abstract.ema_params,
                "train": {"params": abstract.params, "opt_state": abstract.opt_state},
            },
        )
        return TrainState(
            step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
            ema_params=loaded["ema_params"],
            **loaded["train"],
        )

    def restore_ema(self, abstract_ema: Any, step: int) -> Any:
        """Only the averaged parameters saved at `step`."""
        return self._checkpointer.load_checkpointables(step, {"ema_params": abstract_ema})[
            "ema_params"
        ]


def folder(workdir: str) -> epath.Path:
    """Where the checkpoints of a run are: an absolute path, as Orbax wants it, or a URL."""
    path = epath.Path(workdir) / "checkpoints"
    return path if "://" in str(workdir) else path.absolute()


def latest(workdir: str) -> tuple[int, dict[str, Any]] | None:
    """(step, configuration) of the newest complete checkpoint, read without a device.

    Raises:
      ValueError: it was written by another format version.
    """
    if not folder(workdir).exists():
        return None
    with ocp.training.Checkpointer(folder(workdir)) as checkpointer:
        if checkpointer.latest is None:
            return None
        step = checkpointer.latest.step
        saved = checkpointer.checkpointables_metadata(step).custom_metadata or {}
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {step} in {workdir} has format {saved.get('format')}; this version "
            f"reads format {FORMAT}. Use the version of rin_jax that wrote it."
        )
    return step, saved["config"]
