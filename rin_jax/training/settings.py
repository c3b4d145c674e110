"""The section `train` of a configuration."""

import dataclasses

from rin_jax import ConfigError, at_least_one


@dataclasses.dataclass(frozen=True)
class Train:
    """How long a run trains and what it leaves on the way."""

    batch_size: int  # examples of a step, over all devices and micro-batches
    num_steps: int  # steps of the whole run
    accumulation_steps: int  # micro-batches whose gradients are averaged; divides batch_size
    max_skipped_steps: int  # steps in a row that are not finite, after which training stops
    init_from: str | None  # workdir of a run whose parameters this one starts from; None: fresh
    log_every_steps: int  # steps between two log lines
    sample_every_steps: int  # steps between two grids of samples
    wandb: str | None  # project of Weights & Biases that gets the curves too; None: no such one

    def __post_init__(self):
        at_least_one(
            "train", self, "batch_size", "num_steps", "accumulation_steps", "max_skipped_steps",
            "log_every_steps", "sample_every_steps",
        )  # fmt: skip
        if self.num_steps >= 2**31:
            raise ConfigError(
                f"train.num_steps is {self.num_steps}; steps are counted in int32, so it must be "
                "less than 2147483648."
            )
        if self.batch_size % self.accumulation_steps:
            raise ConfigError(
                f"train.batch_size {self.batch_size} is not divisible by train.accumulation_steps "
                f"{self.accumulation_steps}; choose a divisor."
            )
