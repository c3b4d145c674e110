"""The section `evaluation`."""

import pytest

from rin_jax import ConfigError
from rin_jax.evaluation.protocol import Evaluation


@pytest.mark.parametrize("field", ["num_samples", "batch_size"])
def test_counts_are_at_least_one(field):
    fields = {"num_samples": 1, "batch_size": 1}
    assert Evaluation(**fields).num_samples == 1
    with pytest.raises(ConfigError, match=rf"evaluation\.{field} is 0; it must be at least 1\."):
        Evaluation(**(fields | {field: 0}))
