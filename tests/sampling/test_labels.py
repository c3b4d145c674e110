"""Which class each sample is asked for."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.sampling.labels import by_rule

HISTOGRAM = [100, 0, 300]


@pytest.mark.parametrize("rule", ["balanced", "random", "data"])
def test_more_samples_never_change_the_first_labels(rule):
    many = by_rule(rule, 400, 3, 7, HISTOGRAM)
    np.testing.assert_array_equal(by_rule(rule, 31, 3, 7, HISTOGRAM), many[:31])
    assert (many != by_rule(rule, 400, 3, 8, HISTOGRAM)).any()
    assert many.dtype == np.int32


def test_the_rule_data_draws_as_often_as_the_data():
    counts = np.bincount(by_rule("data", 4000, 3, 0, HISTOGRAM), minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] / 4000 - 0.25) < 0.03  # four standard deviations


def test_balanced_is_even_in_each_round_and_random_is_not():
    counts = np.bincount(by_rule("balanced", 300, 3, 0))
    assert counts.tolist() == [100, 100, 100]
    assert np.bincount(by_rule("random", 300, 3, 0)).std() > 0


def test_without_classes_there_are_no_labels():
    assert set(by_rule("random", 5, 0, 0)) == {NO_LABEL}


def test_labels_as_in_data_that_does_not_tell_them_are_refused():
    with pytest.raises(ConfigError, match="evaluation.labels is 'data', but the statistics"):
        by_rule("data", 5, 3, 0, [])
