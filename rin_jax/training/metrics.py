"""The metrics of steps between two log lines, and what is said of a step that is skipped.

Means run from one log line to the next, wherever the run was interrupted: a checkpoint keeps the
sums so far.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rin_jax.runtime import console

SCALARS = ("loss", "grad_norm", "update_norm", "param_norm")  # of which the log shows means
BACKWARD = ("readout", "blocks", "prev_latent_norm", "prev_latent_mlp")  # other modules come after
BLOCK_BACKWARD = ("write", "compute", "read")


@dataclasses.dataclass
class Window:
    """Metrics since the last log line.

    Attributes:
      limit: skipped steps in a row after which the run ends.
      count, skipped: steps with finite numbers and without.
      in_a_row: steps skipped last, one after the other.
      sums: of the SCALARS of the finite steps.
    """

    limit: int
    count: int = 0
    skipped: int = 0
    in_a_row: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SCALARS, 0.0))
    _open: tuple[int, Mapping[str, Any]] | None = None  # the newest step, not read yet

    @classmethod
    def resumed(cls, limit: int, facts: Mapping[str, Any]) -> "Window":
        """The window that `facts` of a checkpoint tell of."""
        return cls(limit, **facts)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps; all steps are read."""
        return {
            "count": self.count,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "sums": self.sums,
        }

    def put(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a step that may still run, and reads the one before: two are in flight at most."""
        self.read()
        self._open = (step, metrics)

    def read(self) -> None:
        """Reads the newest step.

        Raises:
          FloatingPointError: `limit` steps in a row were not finite.
        """
        if self._open is None:
            return
        (step, metrics), self._open = self._open, None
        wanted = (*SCALARS, "learning_rate", "finite")
        values = jax.device_get({name: metrics[name] for name in wanted})
        if values["finite"]:
            self.count, self.in_a_row = self.count + 1, 0
            for name in SCALARS:
                self.sums[name] += float(values[name])
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        text = describe_skipped(step, values, jax.device_get(metrics["modules"]["grad"]))
        if self.in_a_row < self.limit:
            console.say(f"{text}; the step is skipped")
            return
        raise FloatingPointError(
            f"{text}. {self.in_a_row} steps in a row were not finite and changed nothing; "
            "training stops, the last checkpoint is kept. Lower optimizer.learning_rate or set "
            "optimizer.clip_norm, then run the same command again."
        )

    def means(self) -> dict[str, float]:
        """Means of the finite steps and the number of skipped ones; all steps are read."""
        means = {name: total / self.count for name, total in self.sums.items() if self.count}
        return {**means, "skipped_steps": float(self.skipped)}

    def loss(self) -> float:
        """The mean loss, infinite if there is none; all steps are read."""
        return self.sums["loss"] / self.count if self.count else np.inf

    def clear(self) -> None:
        """Begins anew after a log line."""
        self.count, self.skipped, self.sums = 0, 0, dict.fromkeys(SCALARS, 0.0)


def describe_skipped(step: int, values: Mapping, gradients: Mapping[str, np.ndarray]) -> str:
    """What was not finite in a step, and where in the backward pass that began."""
    bad = [f"{name} is {values[name]}" for name in SCALARS if not np.isfinite(values[name])]
    module = first_nonfinite(gradients)
    if module:
        where = f"the first gradient that is not finite is that of {module}"
    else:
        where = "all gradients are finite"
    rate = float(values["learning_rate"])
    return f"step {step}: {', '.join(bad)}; {where}; learning rate {rate:.4g}"


def first_nonfinite(norms: Mapping[str, np.ndarray]) -> str | None:
    """The module and layer, nearest to the loss, whose norm is not finite; None if all are."""

    def rank(place):
        module, layer = place
        head, _, part = module.partition(".")
        kind = head.partition("_")[0] if part else head
        depth = BACKWARD.index(kind) if kind in BACKWARD else len(BACKWARD)
        inner = BLOCK_BACKWARD.index(part) if part in BLOCK_BACKWARD else len(BLOCK_BACKWARD)
        group = -int(head.partition("_")[2]) if part else 0
        block, *within = layer or (0,)
        return depth, group, -block, inner, [-index for index in within]

    places = [
        (module, tuple(map(int, layer)))
        for module, norm in norms.items()
        for layer in np.argwhere(~np.isfinite(norm))
    ]
    if not places:
        return None
    module, layer = min(places, key=rank)
    return f"{module}[{', '.join(map(str, layer))}]" if layer else module


def module_figures(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of each module the gradient's norm and the update's over the parameters', if finite."""

    def norm(tree, name):
        return float(np.sqrt(np.sum(np.square(tree[name], dtype=np.float64))))

    figures = {}
    for name in modules["grad"]:
        figures[f"grad_norm/{name}"] = norm(modules["grad"], name)
        size = norm(modules["param"], name)
        if size:
            figures[f"update_ratio/{name}"] = norm(modules["update"], name) / size
    return {name: value for name, value in figures.items() if np.isfinite(value)}
