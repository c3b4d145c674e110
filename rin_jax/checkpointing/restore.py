"""Which checkpoints a folder has, and the newest of them that is good.

A checkpoint that is damaged is skipped, with its step and the reason; a run that has checkpoints is
never started afresh because none of them can be used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.checkpointing.checkpoints import DamagedError, Saved, describe_damage, folder
from rin_jax.runtime import console


def find(workdir: str) -> tuple[list[Saved], dict[int, str]]:
    """The checkpoints of a run, newest first, without a device, and why others are damaged.

    ConfigError: all there are are damaged, or one has another format version.
    """
    found, damaged = checkpoints.find(folder(workdir))
    for line in describe_damage(damaged):
        console.say(line)
    if damaged and not found:
        raise none_usable(workdir, damaged)
    return found, damaged


def find_checkpoints(workdir: str, checkpoint: int | None = None) -> list[Saved]:
    """The checkpoints of a run, newest first, or that of a step; ConfigError if there is none."""
    found, _ = find(workdir)
    if not found:
        remedy = "train there first (--mode=train) or name another workdir."
        raise ConfigError(f"no checkpoint in {workdir}; {remedy}")
    chosen = [saved for saved in found if checkpoint in (None, saved.step)]
    if not chosen:
        steps = ", ".join(str(saved.step) for saved in reversed(found))
        raise ConfigError(f"no checkpoint {checkpoint} in {workdir}; there are {steps}.")
    return chosen


def load_newest(
    found: Sequence[Saved], abstract: Mapping[str, Any], where: str | epath.Path
) -> tuple[Saved, dict[str, Any], dict[int, str]]:
    """The newest checkpoint that can be restored, its items, and why newer ones cannot, by step.

    ConfigError: none of those in the folder `where` can.
    """
    damaged: dict[int, str] = {}
    for saved in found:
        try:
            items = checkpoints.load(saved, abstract)
        except DamagedError as error:
            damaged[saved.step] = str(error)
            continue
        for line in describe_damage(damaged):
            console.say(f"{line}; it is skipped")
        return saved, items, damaged
    raise none_usable(where, damaged)


def none_usable(where: str | epath.Path, damaged: Mapping[int, str]) -> ConfigError:
    """The error of a folder whose checkpoints are all damaged."""
    reasons = "; ".join(describe_damage(damaged))
    remedy = "Put a copy of the files back, or name another --workdir."
    return ConfigError(f"no checkpoint in {where} can be used: {reasons}. {remedy}")
