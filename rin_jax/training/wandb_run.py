"""The curves of a run in Weights & Biases, which follows the event files: the extra `wandb`."""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from rin_jax import ConfigError


def check(project: str | None) -> None:
    """Raises ConfigError if `train.wandb` is set and the package is not installed."""
    found = importlib.util.find_spec("wandb")  # a folder wandb/ of runs has no origin
    if project is not None and not (found and found.origin):
        raise ConfigError(
            f"train.wandb is {project!r}, but wandb cannot be imported; install the extra wandb, "
            "pip install -e '.[wandb]', or leave the field out."
        )


@contextlib.contextmanager
def following(project: str | None, workdir: str, config: Mapping[str, Any]) -> Iterator[None]:
    """What event files get inside goes to a run of `project` too; None: it does not.

    The run belongs to the workdir, so that one that resumes goes on in it. ConfigError: Weights &
    Biases does not start.
    """
    if project is None:
        yield
        return
    import wandb

    path = workdir if "://" in workdir else os.path.abspath(workdir)
    try:
        run = wandb.init(
            project=project, name=epath.Path(path).name, config=dict(config), resume="allow",
            id=hashlib.sha256(path.encode()).hexdigest()[:16], sync_tensorboard=True,
        )  # fmt: skip
    except wandb.Error as error:
        raise ConfigError(
            f"train.wandb is {project!r}, but Weights & Biases does not start: {error}; run wandb "
            "login, or set WANDB_MODE=offline."
        ) from error
    try:
        yield
    finally:
        run.finish()
