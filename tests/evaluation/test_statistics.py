"""Moments and Inception scores of streams against NumPy, torch-fidelity and closed forms."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.evaluation.distances import frechet_distance, moments
from rin_jax.evaluation.statistics import SPLIT_RULES, InceptionScore, Sums, caution
from tests import reference
from tests.evaluation import peers


def sums(features: np.ndarray, size: int) -> Sums:
    result = Sums()
    for start in range(0, len(features), size):
        result.add(features[start : start + size])
    return result


@pytest.mark.parametrize("mean", [0.0, 3e4])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_moments_are_numpys_for_any_blocks(mean, size):
    """Also where the mean is 30,000 times the spread, which sums around zero do not survive."""
    rng = np.random.default_rng(0)
    features = mean + rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    result, expected = sums(features, size).moments(), np.cov(features, rowvar=False)
    np.testing.assert_allclose(result.mean, features.mean(0), rtol=1e-10, atol=1e-12)
    assert np.abs(result.covariance - expected).max() < 1e-10 * np.abs(expected).max()
    if mean:
        naive = features.T @ features - 500 * np.outer(features.mean(0), features.mean(0))
        assert np.abs(naive / 499 - expected).max() > 1e-9 * np.abs(expected).max()


def test_too_few_and_not_finite():
    result = Sums()
    with pytest.raises(ConfigError, match="at least 2 samples; there are 0"):
        result.moments()
    result.add(np.ones((1, 3)))
    with pytest.raises(ConfigError, match="there are 1"):
        result.moments()
    for bad in (np.nan, np.inf, -np.inf):
        rows = np.ones((4, 3), np.float32)
        rows[2, 1] = bad
        with pytest.raises(ConfigError, match="1 of 4 images have NaN or infinity"):
            result.add(rows)
        with pytest.raises(ConfigError, match="1 of 4 images have NaN or infinity"):
            InceptionScore(4, "one").add(0, rows)
    assert result.count == 1


@reference.needed
def test_distances_of_the_reference_and_of_two_mistakes():
    """A covariance divided by N, or a tail that is dropped, does not give these distances."""
    arrays, _ = reference.load("fid")
    expected = float(arrays["fid/real_gen"])
    real, samples = arrays["real"], arrays["gen"]

    def distance(rows, factor=1.0):
        result = sums(rows, 7).moments()
        return frechet_distance(
            moments(real), result._replace(covariance=factor * result.covariance)
        )

    def close(value):
        return value == pytest.approx(expected, rel=1e-5)

    count = len(samples)
    assert count % 7  # the last block is smaller
    assert close(distance(samples))
    assert not close(distance(samples, (count - 1) / count))
    assert not close(distance(samples[: count // 7 * 7]))


def score(logits: np.ndarray, rule: str, size: int = 64) -> tuple[float, float]:
    result = InceptionScore(len(logits), rule)
    for start in reversed(range(0, len(logits), size)):
        result.add(start, logits[start : start + size])
    return result.value()


def test_inception_score_of_torch_fidelity():
    """1,003 samples, which 10 does not divide, in any order of blocks."""
    peers.import_torchvision()
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * np.random.default_rng(0).normal(size=(1003, 20))
    theirs = isc_features_to_metric(torch.tensor(logits))
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert score(logits, "shuffled_10") == pytest.approx(expected, rel=1e-10)
    theirs = isc_features_to_metric(torch.tensor(logits), splits=1)
    assert score(logits, "one") == pytest.approx((theirs["inception_score_mean"], 0), rel=1e-10)
    assert score(logits, "one")[0] != pytest.approx(expected[0], rel=1e-3)


def test_inception_scores_that_are_known():
    """As many as classes if each sample is certain and all are as frequent; 1 if all agree."""
    certain = 1000.0 * np.eye(8)[np.arange(800) % 8]  # other probabilities are 0 in float64
    for rule in SPLIT_RULES:
        assert score(np.ones((800, 8)), rule) == pytest.approx((1, 0))
    assert score(certain, "one") == pytest.approx((8, 0))
    assert score(certain[:, :4], "one") == pytest.approx((2, 0))  # half of them know nothing


def test_consecutive_splits_see_the_order_of_the_samples():
    """Splits of 5,000, and one of the 1,000 that are left, each with one class."""
    logits = 1000.0 * np.eye(3)[np.repeat([0, 1, 2], [5000, 5000, 1000])]
    assert score(logits, "consecutive_5000", 1000) == pytest.approx((1, 0))
    logits[10_500:] = 1000.0 * np.eye(3)[0]
    mean, std = score(logits, "consecutive_5000", 1000)
    assert (mean, std) == pytest.approx((4 / 3, np.sqrt(2) / 3))


def test_what_an_inception_score_refuses():
    with pytest.raises(ConfigError, match="choose one of one, consecutive_5000, shuffled_10"):
        InceptionScore(100, "ten")
    with pytest.raises(ConfigError, match="at least 10 samples; there are 9"):
        InceptionScore(9, "shuffled_10")
    partial = InceptionScore(100, "one")
    partial.add(0, np.ones((60, 3)))
    with pytest.raises(ValueError, match="60 of 100 samples"):
        partial.value()


def test_what_a_count_means_is_said():
    assert caution(50_000, 2048) == ""
    few = caution(49_999, 2048)
    assert "49,999 samples" in few
    assert "rank" not in few
    assert "2,048 features" in caution(2048, 2048)
    assert "rank" not in caution(2049, 2048)
