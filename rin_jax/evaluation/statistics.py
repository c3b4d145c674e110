"""What streams over features and logits, block by block: moments and the Inception score.

All sums are float64 on the host.
"""

from collections.abc import Callable, Mapping

import numpy as np

from rin_jax import ConfigError, one_of
from rin_jax.evaluation.distances import Moments

COMPARABLE = 50_000  # samples of which published distances are computed
_SPLIT, _SPLITS, _SEED = 5000, 10, 2020


class Sums:
    """Sums over features [B, F] of any number of blocks.

    They are taken around the mean of the first block: a mean that is large beside the spread would
    leave too few digits for the covariance.
    """

    def __init__(self):
        self.count = 0
        self._centre = self._total = self._outer = None

    def add(self, features: np.ndarray) -> None:
        """Adds a block [B, F], B > 0; ConfigError if a value is not finite."""
        rows = finite(features)
        if self._centre is None:
            self._centre = rows.mean(0)
            self._total = np.zeros_like(self._centre)
            self._outer = np.zeros((rows.shape[1], rows.shape[1]))
        rows = rows - self._centre
        self.count += len(rows)
        self._total += rows.sum(0)
        self._outer += rows.T @ rows

    def moments(self) -> Moments:
        """Mean and covariance (divided by count - 1); ConfigError for fewer than 2 samples."""
        if self.count < 2:
            raise ConfigError(f"A covariance needs at least 2 samples; there are {self.count}.")
        spread = self._outer - np.outer(self._total, self._total) / self.count
        return Moments(self._centre + self._total / self.count, spread / (self.count - 1))


def _one(count: int) -> np.ndarray:
    return np.zeros(count, np.int64)


def _consecutive(count: int) -> np.ndarray:
    return np.arange(count) // _SPLIT


def _shuffled(count: int) -> np.ndarray:
    """Place i of the shuffled samples is in split s if s count // 10 <= i < (s + 1) count // 10."""
    if count < _SPLITS:
        text = f"The Inception score over {_SPLITS} splits needs at least {_SPLITS} samples"
        raise ConfigError(f"{text}; there are {count}.")
    bounds = np.arange(1, _SPLITS) * count // _SPLITS
    splits = np.empty(count, np.int64)
    order = np.random.RandomState(_SEED).permutation(count)
    splits[order] = np.searchsorted(bounds, np.arange(count), side="right")
    return splits


# How samples are split: number of samples -> split of each sample.
SPLIT_RULES: Mapping[str, Callable[[int], np.ndarray]] = {
    "one": _one,  # TF-GAN's, which the RIN code uses
    "consecutive_5000": _consecutive,  # ADM's evaluator; the last split may be smaller
    "shuffled_10": _shuffled,  # torch-fidelity's defaults
}


class InceptionScore:
    """exp of the mean over samples of KL(p(y | x) | p(y)), for each split of `count` samples.

    Source: arXiv 1606.03498 section 4. ConfigError if `rule` is not a key of SPLIT_RULES, and for
    fewer than 10 samples with "shuffled_10".
    """

    def __init__(self, count: int, rule: str):
        one_of("the split rule of the Inception score", rule, SPLIT_RULES)
        self._splits = SPLIT_RULES[rule](count)
        self._counts = np.bincount(self._splits)
        self._added = np.zeros_like(self._counts)
        self._negentropy = np.zeros(len(self._counts))
        self._probability = None

    def add(self, first_index: int, logits: np.ndarray) -> None:
        """Adds logits [B, K] of the samples first_index, first_index + 1, ..., each once.

        ConfigError if a value is not finite.
        """
        logits = finite(logits)
        logits = logits - logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        if self._probability is None:
            self._probability = np.zeros((len(self._counts), logits.shape[1]))
        splits = self._splits[first_index : first_index + len(logits)]
        np.add.at(self._probability, splits, p)
        np.add.at(self._negentropy, splits, np.sum(p * log_p, axis=1))
        np.add.at(self._added, splits, 1)

    def value(self) -> tuple[float, float]:
        """Mean and standard deviation (ddof 0) over the splits; ValueError if samples lack."""
        if not np.array_equal(self._added, self._counts):
            text = f"{self._added.sum()} of {self._counts.sum()} samples were added."
            raise ValueError(f"The Inception score is of all samples, and {text}")
        q = self._probability / self._counts[:, None]
        entropy = -np.sum(q * np.log(np.where(q > 0, q, 1.0)), axis=1)
        scores = np.exp(entropy + self._negentropy / self._counts)
        return float(scores.mean()), float(scores.std())


def finite(features: np.ndarray) -> np.ndarray:
    """Features or logits [B, F] as float64; ConfigError if a value is not finite."""
    rows = np.asarray(features, np.float64)
    bad = int(np.sum(~np.isfinite(rows).all(1)))
    if bad:
        raise ConfigError(
            f"{bad:,} of {len(rows):,} images have NaN or infinity in their features: look at the "
            "images, and at the weights that made them."
        )
    return rows


def caution(count: int, num_features: int) -> str:
    """What is said beside a Frechet distance from `count` samples; "" if nothing need be.

    The fewer samples, the larger the expected distance: arXiv 1801.01401 section 4.
    """
    if count >= COMPARABLE:
        return ""
    text = (
        f"The distance is from {count:,} samples, and is larger than one from "
        f"{COMPARABLE:,}, as published distances are, would be"
    )
    if count <= num_features:
        text += f"; the covariance of {num_features:,} features is not of full rank from so few"
    return f"{text}."
