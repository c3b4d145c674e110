"""The section `evaluation` of a configuration."""

import dataclasses

from rin_jax import ConfigError


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
        for field in ("num_samples", "batch_size"):
            if not getattr(self, field) >= 1:
                raise ConfigError(
                    f"evaluation.{field} is {getattr(self, field)}; it must be at least 1."
                )
