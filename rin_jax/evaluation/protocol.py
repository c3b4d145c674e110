"""The section `evaluation` of a configuration."""

import dataclasses

from rin_jax import ConfigError


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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"evaluation.{field.name} is {value}; it must be at least 1.")
