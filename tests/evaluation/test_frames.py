"""PSNR and SSIM of frames: TensorFlow's, and predictions whose figures are known."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.evaluation import frames


def clips(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(2, 3, 24, 24, 1), (1, 2, 16, 11, 3)])
def test_figures_are_those_of_tensorflow(shape):
    import tensorflow as tf

    truth = clips(shape)
    noise = np.random.default_rng(1).normal(0, 20, shape)
    near = np.clip(np.round(truth + noise), 0, 255).astype(np.uint8)
    for some in (near, clips(shape, 2)):
        flat = [x.reshape(-1, *shape[2:]) for x in (some, truth)]
        theirs = tf.image.psnr(*flat, 255).numpy().reshape(shape[:2])
        np.testing.assert_allclose(frames.psnr(some, truth), theirs, rtol=1e-5)
        theirs = tf.image.ssim(*flat, 255).numpy().reshape(shape[:2])
        np.testing.assert_allclose(frames.ssim(some, truth), theirs, atol=1e-5)


def test_known_figures():
    truth = clips((2, 3, 12, 12, 3))
    assert np.all(np.isinf(frames.psnr(truth, truth)))
    np.testing.assert_allclose(frames.ssim(truth, truth), 1)
    off = np.where(truth > 127, truth - 10.0, truth + 10.0)  # an error of 10 everywhere
    np.testing.assert_allclose(frames.psnr(off, truth), 20 * np.log10(25.5))
    assert frames.ssim(255 - truth, truth).max() < -0.5  # what was light is dark
    white = np.full_like(truth, 255)
    np.testing.assert_allclose(frames.psnr(white, 0 * truth), 0, atol=1e-9)


def test_frames_are_measured_one_by_one():
    truth, some = clips((3, 4, 12, 12, 1)), clips((3, 4, 12, 12, 1), 1)
    for measure in (frames.psnr, frames.ssim):
        whole = measure(some, truth)
        np.testing.assert_array_equal(whole[1:2, 2:3], measure(some[1:2, 2:3], truth[1:2, 2:3]))
        changed = some.copy()
        changed[1, 2, 6, 6] ^= 255
        differ = np.argwhere(measure(changed, truth) != whole)
        np.testing.assert_array_equal(differ, [[1, 2]])


def test_baselines_are_exact_on_what_they_assume():
    first, change = np.full((1, 1, 4, 4, 1), 40), np.arange(16).reshape(1, 1, 4, 4, 1) - 8
    linear = (first + np.arange(6).reshape(1, 6, 1, 1, 1) * change).astype(np.uint8)
    np.testing.assert_array_equal(frames.extrapolated(linear[:, :2], 4), linear[:, 2:])
    still = np.repeat(clips((2, 1, 4, 4, 3)), 5, axis=1)
    np.testing.assert_array_equal(frames.copied(still[:, :1], 4), still[:, 1:])
    np.testing.assert_array_equal(frames.extrapolated(still[:, :1], 4), still[:, 1:])
    assert np.any(frames.copied(linear[:, :2], 4) != linear[:, 2:])


def test_extrapolation_stays_in_the_range_of_pixels():
    given = np.array([100, 200], np.uint8).reshape(1, 2, 1, 1, 1)
    np.testing.assert_array_equal(frames.extrapolated(given, 3).ravel(), [255, 255, 255])
    np.testing.assert_array_equal(frames.extrapolated(given[:, ::-1], 3).ravel(), [0, 0, 0])


def test_frames_that_are_too_small_for_the_window_are_refused():
    small = clips((1, 1, 10, 24, 1))
    with pytest.raises(ConfigError, match="11 x 11 pixels, but the frames have 10"):
        frames.ssim(small, small)
