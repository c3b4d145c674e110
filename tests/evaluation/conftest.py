"""Real digits and the classifier that learned from them, once a session."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rin_jax.evaluation import classifier


@pytest.fixture(scope="session")
def digits():
    """(images [1797, 8, 8, 1], labels)."""
    images, labels = load_digits(return_X_y=True)
    return np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1), labels


@pytest.fixture(scope="session")
def trained(digits):
    """Parameters of the classifier after 400 steps on the first 1,200 digits."""
    images, labels = digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "FEWEST_STEPS", 400)
        return classifier.train(images[:1200], labels[:1200], 10)
