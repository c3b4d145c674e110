"""The metrics of steps between two log lines, and what is said of a step that is skipped."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rin_jax.runtime import console
from rin_jax.training import noise_levels

# A metric of a step -> the curve of its mean over the steps between two log lines.
SCALARS = {
    "loss": "train/loss", "grad_norm": "norms/grad", "update_norm": "norms/update",
    "param_norm": "norms/param",
}  # fmt: skip
MOST_NAMED = 8  # modules in a message


class NotFiniteError(FloatingPointError):
    """Too many steps in a row were not finite: the run ends, with exit code 3."""


@dataclasses.dataclass
class Window:
    """Metrics since the last log line, or since the run resumed."""

    limit: int  # skipped steps in a row after which the run ends
    count: int = 0  # steps with finite numbers
    skipped: int = 0  # steps without
    in_a_row: int = 0  # steps skipped last, one after the other
    # of the SCALARS of the finite steps
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SCALARS, 0.0))
    levels: np.ndarray | float = 0.0  # likewise of `noise_levels.by_level`
    _open: tuple[int, Mapping[str, Any]] | None = None  # the newest step, not read yet

    def put(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a step that may still run, and reads the one before: two are in flight at most."""
        self.read()
        self._open = (step, metrics)

    def read(self) -> None:
        """Reads the newest step; NotFiniteError if `limit` steps in a row were not finite."""
        if self._open is None:
            return
        (step, metrics), self._open = self._open, None
        values = jax.device_get({n: x for n, x in metrics.items() if n != "modules"})
        if values["finite"]:
            self.count, self.in_a_row = self.count + 1, 0
            for name in SCALARS:
                self.sums[name] += float(values[name])
            self.levels = self.levels + values["levels"].astype(np.float64)
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        text = describe_skipped(step, values, jax.device_get(metrics["modules"]["grad"]))
        if self.in_a_row < self.limit:
            console.say(f"{text}; the step is skipped")
            return
        raise NotFiniteError(
            f"{text}. {self.in_a_row} steps in a row were not finite and changed nothing; "
            "training stops, the last checkpoint is kept. Lower optimizer.learning_rate or set "
            "optimizer.clip_norm, then run the same command again."
        )

    def means(self) -> dict[str, float]:
        """Curves of the means of the finite steps and the number of skipped ones; all are read."""
        curves = {SCALARS[name]: total / self.count for name, total in self.sums.items()
                  if self.count}  # fmt: skip
        levels = noise_levels.figures(self.levels) if self.count else {}
        return {**curves, **levels, "train/skipped_steps": float(self.skipped)}

    def loss(self) -> float:
        """The mean loss, infinite if there is none; all steps are read."""
        return self.sums["loss"] / self.count if self.count else np.inf

    def clear(self) -> None:
        """Begins anew after a log line."""
        self.count, self.skipped, self.sums = 0, 0, dict.fromkeys(SCALARS, 0.0)
        self.levels = 0.0


def describe_skipped(step: int, values: Mapping, gradients: Mapping[str, np.ndarray]) -> str:
    """What was not finite in a step, and which modules have gradients that are not."""
    bad = [f"{name} is {values[name]}" for name in SCALARS if not np.isfinite(values[name])]
    modules = [name for name, norm in gradients.items() if not np.isfinite(norm).all()]
    where = "all gradients are finite"
    if modules:
        shown = ", ".join(modules[:MOST_NAMED]) + (", ..." if len(modules) > MOST_NAMED else "")
        where = f"{len(modules)} of {len(gradients)} modules have such gradients: {shown}"
    rate = float(values["learning_rate"])
    return f"step {step}: {', '.join(bad)}; {where}; learning rate {rate:.4g}"


def module_figures(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of each module the gradient's norm and the update's over the parameters', if finite."""

    def norm(tree, name):
        return float(np.sqrt(np.sum(np.square(tree[name], dtype=np.float64))))

    figures = {}
    for name in modules["grad"]:
        figures[f"norms/grad/{name}"] = norm(modules["grad"], name)
        size = norm(modules["param"], name)
        if size:
            figures[f"norms/update_ratio/{name}"] = norm(modules["update"], name) / size
    return {name: value for name, value in figures.items() if np.isfinite(value)}
