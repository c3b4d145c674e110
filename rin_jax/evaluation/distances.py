"""Frechet distance between two sets of features, each taken as a normal distribution.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)

Source: arXiv 1706.08500 section 3, with the symmetric form of the last root. All float64.
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean [F] and covariance [F, F] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Moments of features [N, F], N > 1; the covariance is divided by N - 1."""
    features = np.asarray(features, np.float64)
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared distance of two normal distributions; 0 if they are equal, up to rounding."""
    root = _square_root(first.covariance)
    mixed = np.linalg.eigvalsh(root @ second.covariance @ root)
    means = np.sum(np.square(first.mean - second.mean))
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(means + traces - 2 * np.sum(np.sqrt(np.maximum(mixed, 0.0))))


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
