"""The classifier's verdict on images whose class is known."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rin_jax.evaluation.agreement import label_agreement


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def test_real_digits_agree(digits):
    result = label_agreement(*digits)
    assert result["agreement"] > 0.93  # writers that the classifier has not seen
    assert result["classifier_accuracy"] > 0.97


def test_wrong_labels_and_noise_do_not(digits):
    real, real_labels, images, labels = digits
    wrong = label_agreement(real, real_labels, images, (labels + 1) % 10)
    assert wrong["agreement"] < 0.1
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert label_agreement(real, real_labels, noise, labels)["agreement"] < 0.3
