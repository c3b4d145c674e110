"""The Frechet distance against its closed forms and the reference."""

import numpy as np
import pytest
from scipy import linalg

from rin_jax.evaluation.distances import Moments, frechet_distance, moments
from tests import reference


def test_numbers_on_a_line():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    first = Moments(np.array([1.0]), np.array([[4.0]]))
    second = Moments(np.array([-2.0]), np.array([[0.25]]))
    assert frechet_distance(first, second) == pytest.approx(9 + 1.5**2)


def test_axes_add_up_and_a_rotation_changes_nothing():
    rng = np.random.default_rng(0)
    means, stds = rng.normal(size=(2, 5)), rng.uniform(0.1, 2, size=(2, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    expected = np.sum((means[0] - means[1]) ** 2 + (stds[0] - stds[1]) ** 2)
    for matrix in (np.eye(5), turn):
        first, second = (
            Moments(matrix @ m, matrix @ np.diag(s**2) @ matrix.T)
            for m, s in zip(means, stds, strict=True)
        )
        assert frechet_distance(first, second) == pytest.approx(expected)
        assert frechet_distance(second, first) == pytest.approx(expected)
        assert frechet_distance(first, first) == pytest.approx(0, abs=1e-10)


def test_moments_of_few_features_are_singular_and_fine():
    features = np.random.default_rng(0).normal(size=(4, 9))
    mean, covariance = moments(features)
    centred = features - features.mean(0)
    np.testing.assert_allclose(covariance, centred.T @ centred / 3)
    moved = moments(features + 2)
    assert frechet_distance(Moments(mean, covariance), moved) == pytest.approx(36)


@pytest.mark.parametrize("samples", [1000, 20])  # 20 of 40 features: not of full rank
def test_the_root_of_the_product_is_scipys(samples):
    """Another way to the same trace: the general root of C1 C2, which is not symmetric."""
    rng = np.random.default_rng(samples)
    first, second = (
        moments(rng.normal(size=(samples, 40)) @ rng.normal(size=(40, 40)) + shift)
        for shift in (0, 1)
    )
    product = linalg.sqrtm(first.covariance @ second.covariance)
    expected = np.sum((first.mean - second.mean) ** 2) + np.trace(
        first.covariance + second.covariance - 2 * product.real
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    scale = np.trace(first.covariance)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6 * scale)


def test_an_eigenvalue_that_rounding_made_negative_is_zero():
    """Of either covariance; its root taken of the absolute value would weigh a thousandfold."""
    below, unit, zero = np.diag([1.0, -1e-6]), np.eye(2), np.zeros(2)
    for pair in ((below, unit), (unit, below)):
        first, second = (Moments(zero, covariance) for covariance in pair)
        assert frechet_distance(first, second) == pytest.approx(1.0, abs=2e-6)


@reference.needed
def test_distances_of_the_reference():
    arrays, _ = reference.load("fid")
    sets = {name: moments(arrays[name]) for name in ("real", "gen", "low")}
    np.testing.assert_allclose(sets["real"].mean, arrays["stats/real_mu"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        sets["real"].covariance, arrays["stats/real_cov"], rtol=1e-5, atol=1e-6
    )
    for first, second in (("real", "gen"), ("low", "gen"), ("low", "real"), ("real", "real")):
        distance = frechet_distance(sets[first], sets[second])
        assert distance == pytest.approx(float(arrays[f"fid/{first}_{second}"]), rel=1e-5, abs=1e-5)
