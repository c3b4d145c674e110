"""The section `evaluation` of a configuration."""

import dataclasses

from rin_jax import at_least_one


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How samples are drawn to be measured."""

    num_samples: int  # images that are measured
    batch_size: int  # images that are sampled together; it changes none of them

    def __post_init__(self):
        at_least_one("evaluation", self, "num_samples", "batch_size")
