"""Precision, recall and KID against torch-fidelity and sets whose figures are known."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.evaluation import neighbours
from tests.evaluation import peers

pytestmark = pytest.mark.slow  # imports what it compares with


@pytest.fixture(scope="module")
def sets():
    """Features of 1,203 real images and 1,101 samples: shifted, narrower, and not at the origin."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(1203, 8)) + 5, 0.7 * rng.normal(size=(1101, 8)) + 5.4


def test_precision_and_recall_of_torch_fidelity(sets):
    peers.import_torchvision()
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, samples = sets
    for k in (3, 5):
        theirs = prc_features_to_metric(
            torch.tensor(samples), torch.tensor(real), prc_neighborhood=k,
            prc_batch_size=10_000, save_cpu_ram=False, verbose=False,
        )  # fmt: skip
        expected = theirs["precision"], theirs["recall"]
        assert neighbours.precision_recall(real, samples, k) == pytest.approx(expected, rel=1e-6)
        assert 0.1 < expected[1] < expected[0] - 0.1 < 0.9


def test_precision_and_recall_that_are_known():
    """A set has all of itself; one mode of two has half of the other; far sets share nothing."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(300, 4))
    both = np.concatenate([one, one + 100])
    assert neighbours.precision_recall(both, both) == (1, 1)
    assert neighbours.precision_recall(both, one) == (1, 0.5)
    assert neighbours.precision_recall(one, both) == (0.5, 1)
    assert neighbours.precision_recall(one, one + 100) == (0, 0)


def test_a_ball_reaches_to_the_kth_other_row():
    """On a line: of rows 0, 1, 3, 7 the ball around 0 has radius 1, 3 or 7 for k = 1, 2, 3."""
    real = np.array([[0.0], [1], [3], [7]])
    samples = np.array([[-0.9], [-2.9], [-6.9], [-7.1]])
    precise = [neighbours.precision_recall(real, samples, k)[0] for k in (1, 2, 3)]
    assert precise == [0.25, 0.5, 0.75]


def test_kid_of_torch_fidelity(sets, monkeypatch):
    """Its subsets are drawn from the samples first, which sets of two sizes show.

    Ten of its hundred are enough to see which.
    """
    peers.import_torchvision()
    import torch
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.metric_kid import kid_features_to_metric

    wanted = DEFAULTS["kid_subsets"], DEFAULTS["kid_subset_size"], DEFAULTS["rng_seed"]
    assert wanted == (neighbours._SUBSETS, neighbours.SUBSET, neighbours._SEED)
    monkeypatch.setattr(neighbours, "_SUBSETS", 10)
    real, samples = sets
    theirs = kid_features_to_metric(
        torch.tensor(samples), torch.tensor(real), kid_subsets=10, verbose=False
    )
    keys = "kernel_inception_distance_mean", "kernel_inception_distance_std"
    expected = tuple(theirs[key] for key in keys)
    assert neighbours.kid(real, samples) == pytest.approx(expected, rel=1e-9)
    assert neighbours.kid(samples, real)[0] != pytest.approx(expected[0], rel=1e-5)


def test_kid_of_halves_of_one_set_is_small_and_may_be_negative(sets, monkeypatch):
    monkeypatch.setattr(neighbours, "_SUBSETS", 10)
    rows = np.random.default_rng(1).normal(size=(4000, 8))
    far, halves = neighbours.kid(*sets)[0], neighbours.kid(rows[:2000], rows[2000:])[0]
    assert far > 10 * abs(halves)
    assert halves < 0


def test_sets_that_are_too_small_or_not_finite():
    rows = np.zeros((999, 2))
    with pytest.raises(ConfigError, match="KID needs at least 1,000 real images.* 1,998 and 999"):
        neighbours.kid(np.zeros((1998, 2)), rows)
    with pytest.raises(ConfigError, match="at least 4 real images and as many samples.* 3 and 999"):
        neighbours.precision_recall(rows[:3], rows)
    rows[5, 1] = np.nan
    with pytest.raises(ConfigError, match="1 of 999 images have NaN"):
        neighbours.precision_recall(rows, rows)
