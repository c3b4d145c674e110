"""The section `evaluation`."""

import dataclasses

import pytest

from rin_jax import ConfigError
from rin_jax.evaluation.protocol import Evaluation
from tests import tiny

EVALUATION = Evaluation(**tiny.TINY["evaluation"])


@pytest.mark.parametrize("field", ["num_samples", "trend_samples", "every_steps"])
def test_counts_are_at_least_one(field):
    assert getattr(dataclasses.replace(EVALUATION, **{field: 1}), field) == 1
    with pytest.raises(ConfigError, match=rf"evaluation\.{field} is 0; it must be at least 1\."):
        dataclasses.replace(EVALUATION, **{field: 0})


def test_inception_is_the_default_as_soon_as_its_weights_are_named():
    silent = dataclasses.replace(EVALUATION, networks=None)
    assert silent.chosen == ("efficientnet",)
    assert dataclasses.replace(silent, inception_weights="file").chosen == ("inception",)


def test_each_network_has_the_measures_that_are_defined_for_it():
    measures = ("frechet", "spatial_frechet", "inception_score", "agreement")
    networks = ("classifier", "inception", "dinov2")
    all_of_them = dataclasses.replace(EVALUATION, networks=networks, measures=measures)
    assert all_of_them.measures_of("classifier") == ["frechet", "agreement"]
    assert all_of_them.measures_of("inception") == ["frechet", "spatial_frechet", "inception_score"]
    assert all_of_them.measures_of("dinov2") == ["frechet"]
    assert all_of_them.outputs_of("inception") == ["logits", "pool", "spatial"]
