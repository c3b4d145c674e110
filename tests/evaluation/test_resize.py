"""The explicit bilinear resizes against TensorFlow's, the rules' values by hand, and RIN's own."""

import jax
import numpy as np
import pytest

from rin_jax.evaluation import inception, resize
from tests import reference

pytestmark = pytest.mark.slow  # imports what it compares with

SIZES = [((32, 32), (299, 299)), ((512, 300), (299, 299)), ((7, 20), (20, 7)), ((5, 5), (5, 5))]


@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_agrees_with_tensorflow(source, target, half_pixel):
    import tensorflow as tf

    images = np.random.default_rng(0).uniform(0, 255, (2, *source, 3)).astype(np.float32)
    theirs = tf.compat.v1.image.resize_bilinear(
        images, target, align_corners=False, half_pixel_centers=half_pixel
    )
    ours = resize.bilinear(images, target, half_pixel)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=255e-5)
    if source != target:  # the other rule is seen
        assert np.abs(resize.bilinear(images, target, not half_pixel) - theirs).max() > 10


def test_rules_by_hand():
    np.testing.assert_array_equal(
        resize.matrix(2, 4, half_pixel=False), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    )
    np.testing.assert_array_equal(
        resize.matrix(2, 4, half_pixel=True), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    # no antialiasing: each row of a shrinking matrix reads at most two pixels
    assert np.count_nonzero(resize.matrix(512, 299, half_pixel=False), axis=1).max() == 2


@reference.needed
def test_rins_protocol_agrees_with_the_authors_code(monkeypatch):
    """Their images leave 0..1, and are clipped after the resize."""
    arrays, _ = reference.load("fid")
    monkeypatch.setattr(inception, "SIZE", arrays["preprocess/out21"].shape[1])
    ours = inception.normalized(255 * arrays["preprocess/images01"], "rin_tfgan")
    np.testing.assert_allclose(ours, arrays["preprocess/out21"], rtol=0, atol=1e-5)


def test_products_have_full_precision():
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
    for half_pixel in (False, True):
        resized = jax.jit(lambda x, rule=half_pixel: resize.bilinear(x, (20, 20), rule))
        text = resized.lower(images).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) == 2
        assert all("[HIGHEST, HIGHEST]" in line for line in products)
