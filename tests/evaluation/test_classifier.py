"""The classifier's verdict on images whose class is known, and its features."""

import numpy as np

from rin_jax.evaluation.classifier import HIDDEN, Classifier
from rin_jax.evaluation.distances import frechet_distance, moments


def test_real_digits_agree(classifier, digits):
    images, labels = digits
    assert 0.95 < classifier.accuracy < 1  # of images that it has not seen
    assert classifier.agreement(images[:1200], labels[:1200]) > classifier.accuracy
    assert classifier.agreement(images[1200:], labels[1200:]) > 0.88  # of other writers


def test_wrong_labels_and_noise_do_not(classifier, digits):
    images, labels = digits
    assert classifier.agreement(images, (labels + 1) % 10) < 0.05
    half = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % 10)
    assert 0.45 < classifier.agreement(images, half) < 0.52
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert classifier.agreement(noise, labels) < 0.3


def test_features_are_what_the_labels_follow_from(classifier, digits):
    """The verdict of scikit-learn is its last layer's on the features."""
    images, _ = digits
    features = classifier.features(images)
    assert features.shape == (len(images), HIDDEN)
    assert features.min() == 0 < features.std()
    network = classifier._network
    scores = features @ network.coefs_[1] + network.intercepts_[1]
    assert classifier.agreement(images, np.argmax(scores, axis=1)) == 1


def test_a_rare_class_is_learned_from(digits):
    """Held-out images are drawn from each class; drawn from all, these seeds hold out a class."""
    images, labels = digits
    rows = np.concatenate([np.flatnonzero(labels == 0)[:30], np.flatnonzero(labels == 1)[:2]])
    for seed in (59, 75, 98):
        rare = Classifier(images[rows], labels[rows], seed)
        assert rare.agreement(images[labels == 1], labels[labels == 1]) > 0


def test_distances_of_features(classifier, digits):
    """Real digits are near each other; digits of one class, and noise, are further away."""
    images, labels = digits
    target = moments(classifier.features(images))

    def distance(some):
        return frechet_distance(moments(classifier.features(some)), target)

    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    assert distance(images[order[:900]]) < 0.5
    assert distance(images[labels == 3]) > 10
    assert distance(noise) > 10
