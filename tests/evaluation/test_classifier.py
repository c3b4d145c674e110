"""The classifier's verdict on images whose class is known, its features and its cache."""

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.evaluation import classifier
from rin_jax.evaluation.distances import frechet_distance, moments

pytestmark = pytest.mark.slow  # compiles a network


def features(params, images):
    return classifier.extract(params, images.astype(np.float32))["pool"]


def test_real_digits_are_read(trained, digits):
    images, labels = digits
    assert classifier.accuracy(trained, images[:1200], labels[:1200]) > 0.99
    assert classifier.accuracy(trained, images[1200:], labels[1200:]) > 0.95  # of other writers


def test_labels_that_are_not_those_of_the_images_are_not(trained, digits):
    images, labels = digits
    assert classifier.accuracy(trained, images, (labels + 1) % 10) < 0.02
    half = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % 10)
    assert 0.47 < classifier.accuracy(trained, images, half) < 0.52
    permuted = np.random.default_rng(0).permutation(labels)
    assert 0.07 < classifier.accuracy(trained, images, permuted) < 0.13  # chance
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert classifier.accuracy(trained, noise, labels) < 0.3


def test_nothing_is_learned_from_permuted_labels(digits, monkeypatch):
    monkeypatch.setattr(classifier, "FEWEST_STEPS", 100)
    images, labels = digits
    permuted = np.random.default_rng(0).permutation(labels)
    params = classifier.train(images[:1200], permuted[:1200], 10)
    assert classifier.accuracy(params, images[1200:], labels[1200:]) < 0.3


def test_the_seed_decides_every_bit(digits, monkeypatch):
    monkeypatch.setattr(classifier, "FEWEST_STEPS", 3)
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    images, labels = (array[:384] for array in digits)
    seen = []
    first = classifier.train(images, labels, 10, 7, lambda *done: seen.append(done))
    again, other = (classifier.train(images, labels, 10, seed) for seed in (7, 8))
    assert seen == [(0, 3), (3, 3)]
    for one, two, three in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)


@pytest.mark.parametrize(("size", "channels", "num_classes"), [(28, 1, 10), (32, 3, 1000)])
def test_features_have_one_size_and_logits_one_for_each_class(size, channels, num_classes):
    images = np.full((2, size, size, channels), 7, np.float32)
    network = classifier._Network(num_classes)
    params = jax.jit(network.init)(jax.random.key(0), images)["params"]
    found = jax.eval_shape(classifier.extract, params, images)
    assert found["pool"].shape == (2, classifier.FEATURES)
    assert found["logits"].shape == (2, num_classes)


@pytest.mark.parametrize("stride", [1, 2])
def test_products_of_patches_are_convolutions(stride):
    """Those of XLA, with one pixel of zeros around the image; 9 C inputs are in its order."""
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 5)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = classifier._patches(x, stride) @ kernel.reshape(27, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_distances_of_features(trained, digits):
    """Real digits are near each other; digits of one class, and noise, are further away."""
    images, labels = digits
    target = moments(features(trained, images))

    def distance(some):
        return frechet_distance(moments(features(trained, some)), target)

    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    near = distance(images[order[:900]])
    assert distance(images[labels == 3]) > 20 * near
    assert distance(noise) > 20 * near


def test_the_cache_is_of_one_recipe_and_one_data_set(trained, digits, tmp_path, monkeypatch):
    images, labels = (array[:1200] for array in digits)
    path = tmp_path / "classifier.npz"
    mark = classifier.fingerprint(images, labels, 10)
    assert classifier.load(path, mark) is None
    classifier.save(path, trained, mark)
    jax.tree.map(np.testing.assert_array_equal, classifier.load(path, mark), trained)
    changed = images.copy()
    changed[1199, 7, 7, 0] += 1
    others = {
        classifier.fingerprint(changed, labels, 10),
        classifier.fingerprint(images[:1199], labels[:1199], 10),
        classifier.fingerprint(images.reshape(1200, 4, 16, 1), labels, 10),
        classifier.fingerprint(images, (labels + 1) % 10, 10),
        classifier.fingerprint(images, labels, 11),
        classifier.fingerprint(images, labels, 10, seed=1),
    }
    monkeypatch.setattr(classifier, "RECIPE", 0)
    others.add(classifier.fingerprint(images, labels, 10))
    assert len(others) == 7
    assert all(classifier.load(path, other) is None for other in others)
    path.write_bytes(path.read_bytes()[:1000])
    assert classifier.load(path, mark) is None


def test_what_is_not_learned_from():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    with pytest.raises(ConfigError, match="there are none"):
        classifier.train(images[:0], np.zeros(0, np.int64), 10)
    for labels, words in (([0, 1, 2], "0 to 2"), ([-1, 0, 1], "-1 to 1")):
        with pytest.raises(ConfigError, match=f"are {words}; for data.num_classes 2 .* 0 to 1"):
            classifier.train(images, np.array(labels), 2)


def moving_bars(count, seed):
    """Clips uint8 [count, 6, 12, 12, 1] of a bar that goes left (0) or right (1), and labels."""
    rng = np.random.default_rng(seed)
    labels, start = rng.integers(0, 2, count), rng.integers(0, 12, count)
    column = start[:, None] + np.arange(6) * (2 * labels - 1)[:, None]
    seen = np.arange(12) == column[..., None] % 12
    clips = np.broadcast_to(seen[:, :, None, :, None] * 255, (count, 6, 12, 12, 1))
    return clips.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained_on_clips():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FEWEST_STEPS": 100, "EPOCHS": 1, "BATCH": 32}.items():
            patch.setattr(classifier, name, value)
        return classifier.train(*moving_bars(512, 0), 2)


def test_clips_are_read_by_the_order_of_their_frames(trained_on_clips):
    """No single frame tells the label."""
    clips, labels = moving_bars(200, 1)
    assert classifier.accuracy(trained_on_clips, clips, labels) > 0.95
    assert classifier.accuracy(trained_on_clips, clips[:, ::-1], 1 - labels) > 0.95


def test_distances_of_clips_see_the_order_of_frames(trained_on_clips):
    clips, _ = moving_bars(200, 1)
    rng = np.random.default_rng(0)
    shuffled = np.stack([clip[rng.permutation(len(clip))] for clip in clips])
    target = moments(features(trained_on_clips, clips))

    def distance(some):
        return frechet_distance(moments(features(trained_on_clips, some)), target)

    assert distance(clips) < 1e-6 * distance(shuffled)
    assert distance(shuffled) > 5 * distance(moving_bars(200, 2)[0])


@pytest.mark.parametrize("strides", [(2, 2, 2), (2, 1, 1)])
def test_products_of_patches_of_clips_are_convolutions(strides):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 7, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, strides, [(1, 1)] * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    found = classifier._patches(x, strides) @ kernel.reshape(81, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
