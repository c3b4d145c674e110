"""The section `evaluation` of a configuration."""

import dataclasses

from rin_jax import at_least_one


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a run is measured.

    Attributes:
      num_samples: samples that are measured.
      batch_size: samples drawn at a time.
    """

    num_samples: int
    batch_size: int

    def __post_init__(self):
        at_least_one("evaluation", self, "num_samples", "batch_size")
