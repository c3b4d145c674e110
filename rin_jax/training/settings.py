"""The section `train` of a configuration."""

import dataclasses

from rin_jax import ConfigError, at_least_one


@dataclasses.dataclass(frozen=True)
class Train:
    """How long a run trains and what it leaves on the way.

    Attributes:
      batch_size: examples of a step, over all devices and micro-batches.
      num_steps: steps of the whole run.
      accumulation_steps: micro-batches of a step, whose gradients are averaged; a divisor of
        batch_size.
      max_skipped_steps: steps in a row that are not finite, after which training stops.
      init_from: workdir of another run whose parameters this one starts from; None: fresh ones.
      log_every_steps: steps between two log lines.
      sample_every_steps: steps between two grids of samples.
    """

    batch_size: int
    num_steps: int
    accumulation_steps: int
    max_skipped_steps: int
    init_from: str | None
    log_every_steps: int
    sample_every_steps: int

    def __post_init__(self):
        at_least_one(
            "train", self, "batch_size", "num_steps", "accumulation_steps", "max_skipped_steps",
            "log_every_steps", "sample_every_steps",
        )  # fmt: skip
        if self.batch_size % self.accumulation_steps:
            raise ConfigError(
                f"train.batch_size {self.batch_size} is not divisible by train.accumulation_steps "
                f"{self.accumulation_steps}; choose a divisor."
            )
