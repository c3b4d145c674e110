"""Patch order of all kinds of examples, padding, the stem as a convolution, and the readout."""

import jax
import numpy as np
import pytest

from rin_jax import ConfigError, of_mapping
from rin_jax.network.tokenizer import PatchStem, Readout, Video, grid_of, patchify, unpatchify
from tests.network.small import distance, fill

VIDEO = Video(patch_frames=2, positions="after", written=True)


def numbered(*shape) -> np.ndarray:
    """An array whose values tell where they are."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 4, 6, 3), (2, 2)), ((1, 6, 2, 1), (2, 2)), ((3, 3, 9, 2), (3, 3)),
        ((2, 4, 4, 1), (1, 1)), ((2, 7, 3), ()), ((2, 4, 6, 2, 3), (2, 2, 2)),
        ((1, 3, 4, 2, 2), (1, 2, 1)), ((2, 5, 2, 6, 1), (2, 2, 3)), ((1, 1, 2, 2, 1), (2, 1, 1)),
    ],
)  # fmt: skip
def test_round_trip(shape, patch):
    x, size = numbered(*shape), shape[1:-1]
    patches = patchify(x, patch)
    assert patches.shape == (shape[0], np.prod(grid_of(size, patch)), *patch, shape[-1])
    np.testing.assert_array_equal(unpatchify(patches, size), x)
    if size != size[::-1] and len(size) == 2:
        assert distance(unpatchify(patches, size[::-1]).ravel(), x.ravel()) > 0


@pytest.mark.parametrize("patch", [(2, 3), (2, 2, 3)])
def test_patches_and_their_values_run_over_the_axes_in_order(patch):
    """Frames, then rows, then columns; the channels of a value stay together."""
    size = (4, 6) if len(patch) == 2 else (4, 6, 9)
    x = numbered(2, *size, 2)
    patches = patchify(x, patch)
    for token, start in enumerate(np.ndindex(*(n // p for n, p in zip(size, patch, strict=True)))):
        for offset in np.ndindex(*patch):
            at = tuple(s * p + o for s, p, o in zip(start, patch, offset, strict=True))
            np.testing.assert_array_equal(patches[(slice(None), token, *offset)], x[(0, *at)][None]
                                          + np.float32([[0], [x[0].size]]))  # fmt: skip


def test_missing_frames_are_zeros_as_a_convolution_pads():
    """One is missing: at the end. Two: one at each end."""
    x = numbered(1, 5, 2, 2, 1)
    patches = patchify(x, (2, 2, 2))
    assert patches.shape == (1, 3, 2, 2, 2, 1)
    np.testing.assert_array_equal(patches[:, 2, 0], x[:, 4])
    assert not patches[:, 2, 1].any()
    patches = patchify(x[:, :2], (4, 2, 2))
    np.testing.assert_array_equal(patches[:, 0, 1:3], x[:, :2])
    assert not patches[:, 0, ::3].any()
    np.testing.assert_array_equal(unpatchify(patches, (2, 2, 2)), patches[:, 0, :2])


def test_readout_features_run_row_column_channel():
    readout = Readout((2, 2), (4, 6, 3), np.float32)
    tokens = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    params = fill(jax.eval_shape(readout.init, jax.random.key(0), tokens)["params"])
    params["out"] = {"kernel": np.zeros((8, 12), np.float32), "bias": np.arange(12.0)}
    images = readout.apply({"params": params}, tokens)
    for (row, col, channel), value in np.ndenumerate(images[0]):
        assert value == 6 * (row % 2) + 3 * (col % 2) + channel


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 4, 6, 3), (2, 2)), ((2, 5, 4, 6, 3), (2, 2, 2)), ((2, 6, 2, 2, 1), (4, 2, 1)),
     ((2, 7, 3), ())],
)  # fmt: skip
def test_stem_is_a_normalised_convolution_plus_positions(shape, patch):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stem = PatchStem(patch, 8, "learned", 1.0, VIDEO if len(patch) == 3 else None, np.float32)
    params = fill(jax.eval_shape(stem.init, jax.random.key(0), x)["params"])
    kernel = params["kernel"].reshape(*(patch or (1,)), shape[-1], 8)
    axes = "THW"[-len(shape) + 2 :]
    tokens = jax.lax.conv_general_dilated(
        x, kernel, kernel.shape[:-2], "SAME",
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )  # fmt: skip
    tokens = np.asarray(tokens, np.float64).reshape(2, -1, 8) + params["bias"]
    spread = np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / spread
    expected = tokens * params["norm"]["scale"] + params["norm"]["bias"]
    expected = expected + params["positions"]["table"]
    assert distance(stem.apply({"params": params}, x)[0], expected) < 1e-5


def test_frames_before_and_after_differ_by_the_order_of_the_table():
    """Three frames are denoised and three given: two times of two tokens each."""
    rng = np.random.default_rng(0)
    x, frames = (rng.normal(size=(2, 3, 2, 4, 1)).astype(np.float32) for _ in range(2))

    def tokens(positions, kind, rows=slice(None)):
        video = Video(patch_frames=2, positions=positions, written=True)
        stem = PatchStem((2, 2, 2), 8, kind, 5.0, video, np.float32)
        params = fill(jax.eval_shape(stem.init, jax.random.key(0), x, frames)["params"])
        if "positions" in params:
            table = params["positions"]["table"]
            assert table.shape == (8, 8)
            params["positions"] = {"table": table[rows]}
        return stem.apply({"params": params}, x, frames)

    swapped = np.roll(np.arange(8), 4)
    assert distance(tokens("before", "learned"), tokens("after", "learned", swapped)) == 0
    assert distance(tokens("before", "learned"), tokens("after", "learned")) > 1e-1
    assert distance(tokens("before", "sin_cos"), tokens("after", "sin_cos")) == 0  # no time in it


def test_fixed_codes_of_a_video_are_those_of_each_of_its_frames():
    x = np.ones((1, 3, 2, 4, 1), np.float32)
    video = Video(patch_frames=1, positions="after", written=True)
    stem = PatchStem((1, 1, 1), 8, "sin_cos", 5.0, video, np.float32)
    params = fill(jax.eval_shape(stem.init, jax.random.key(0), x)["params"])
    tokens = stem.apply({"params": params}, x)[0].reshape(3, 8, 8)
    assert distance(tokens[1:], tokens[:2]) < 1e-6
    assert distance(tokens[:, 1:], tokens[:, :-1]) > 1e-1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_frames": 0}, "model.video.patch_frames"),
        ({"positions": "between"}, "model.video.positions is 'between'"),
        ({"written": "yes"}, "model.video.written is 'yes'; it must be True or False"),
    ],
)
def test_a_wrong_field_of_a_video_is_named(changes, words):
    fields = {"patch_frames": 1, "positions": "after", "written": True} | changes
    with pytest.raises(ConfigError, match=words):
        of_mapping("model.video", Video, fields)
