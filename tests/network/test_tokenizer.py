"""Patch order, the stem as a convolution, and the readout."""

import jax
import numpy as np
import pytest

from rin_jax.network.tokenizer import PatchStem, Readout, patchify, unpatchify
from tests.network.small import distance, fill


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 4, 6, 3), 2), ((1, 6, 2, 1), 2), ((3, 3, 9, 2), 3), ((2, 4, 4, 1), 1)]
)
def test_round_trip(shape, patch):
    images = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    patches = patchify(images, patch)
    assert patches.shape == (
        shape[0], shape[1] * shape[2] // patch**2, patch, patch, shape[3]
    )  # fmt: skip
    np.testing.assert_array_equal(unpatchify(patches, *shape[1:3]), images)
    if shape[1] != shape[2]:
        assert distance(unpatchify(patches, shape[2], shape[1]).ravel(), images.ravel()) > 0


def test_patches_run_row_by_row():
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    patches = patchify(images, 2)
    for row in range(2):
        for col in range(3):
            expected = images[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            np.testing.assert_array_equal(patches[:, 3 * row + col], expected)


def test_readout_features_run_row_column_channel():
    readout = Readout(2, (4, 6, 3), np.float32)
    tokens = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    params = fill(jax.eval_shape(readout.init, jax.random.key(0), tokens)["params"])
    params["out"] = {"kernel": np.zeros((8, 12), np.float32), "bias": np.arange(12.0)}
    images = readout.apply({"params": params}, tokens)
    for (row, col, channel), value in np.ndenumerate(images[0]):
        assert value == 6 * (row % 2) + 3 * (col % 2) + channel


def test_stem_is_a_normalised_convolution_plus_positions():
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    stem = PatchStem(2, 8, "learned", 1.0, np.float32)
    params = fill(jax.eval_shape(stem.init, jax.random.key(0), images)["params"])
    conv = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = np.asarray(conv, np.float64).reshape(2, 6, 8) + params["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = x * params["norm"]["scale"] + params["norm"]["bias"] + params["positions"]["table"]
    assert distance(stem.apply({"params": params}, images), expected) < 1e-5
