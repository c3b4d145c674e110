"""The section `evaluation` of a configuration."""

import dataclasses

from rin_jax import at_least_one


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How samples are drawn to be measured.

    Attributes:
      num_samples: images that are measured.
      batch_size: images that are sampled together; it changes none of them.
    """

    num_samples: int
    batch_size: int

    def __post_init__(self):
        at_least_one("evaluation", self, "num_samples", "batch_size")
