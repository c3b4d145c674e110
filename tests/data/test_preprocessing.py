"""Pixels: the square, the resizes, and image files of every kind."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.data import preprocessing
from tests import reference
from tests.data import awkward, oracle


@reference.needed
@pytest.mark.parametrize("name", ["tall", "wide", "even"])
def test_reference_images(name):
    arrays, _ = reference.load("data")
    crop = preprocessing.centre_square(arrays[f"image/{name}"])
    np.testing.assert_array_equal(crop, arrays[f"image/{name}/crop"])
    expected = arrays[f"image/{name}/center8"]
    assert reference.error(preprocessing.resize_bicubic(crop, 8) / 255, expected) < 1e-6
    rounded = preprocessing.preprocess(arrays[f"image/{name}"], 8, 3)
    assert np.abs(rounded / 255 - expected).max() < 0.501 / 255


@reference.needed
def test_reference_image_of_the_right_size_is_left_alone():
    arrays, _ = reference.load("data")
    expected = arrays["image/none/out"] * 255
    np.testing.assert_allclose(
        preprocessing.preprocess(arrays["image/none"], 8, 3), expected, rtol=1e-6
    )


@reference.needed
def test_reference_video():
    arrays, _ = reference.load("data")
    frames = arrays["video/center"].astype(np.float32) / 255
    square = preprocessing.resize_area(preprocessing.centre_square(frames), 8)
    assert reference.error(square, arrays["video/center/out8"]) < 1e-6
    assert reference.error(preprocessing.resize_area(frames, 10), arrays["video/area10"]) < 1e-6


@pytest.mark.parametrize("image_size", [4, 8, 12])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((12, 12, 3), 3), ((12, 19, 3), 3), ((20, 13, 1), 1), ((20, 13, 1), 3), ((5, 4, 1), 1)],
)
def test_preprocess_crops_and_resizes(shape, image_size, channels):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = oracle.training_image(image, image_size)
    result = preprocessing.preprocess(image, image_size, channels)
    assert (result.shape, result.dtype) == ((image_size, image_size, channels), np.uint8)
    assert np.abs(result - np.broadcast_to(expected, result.shape)).max() < 0.501


@pytest.mark.parametrize("shape", [(9, 20, 3), (20, 9, 1), (7, 8, 3), (6, 6, 1), (4, 9, 20, 3)])
def test_a_padded_image_is_whole_and_in_the_middle(shape):
    """At its own size no pixel is lost or changed, and all the others are white."""
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    side = max(shape[-3:-1])
    result = preprocessing.preprocess(image, side, shape[-1], "pad")
    assert result.shape == (*shape[:-3], side, side, shape[-1])
    inside = (result != 255).all(axis=-1).reshape(-1, side, side)[0]
    np.testing.assert_array_equal(result[..., inside, :].reshape(shape), image)
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    assert abs(rows[0] - (side - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (side - 1 - columns[-1])) <= 1


def test_padding_comes_before_the_resize():
    image = np.random.default_rng(0).integers(0, 256, (10, 24, 3), np.uint8)
    padded = np.pad(image, ((7, 7), (0, 0), (0, 0)), constant_values=255)
    expected = oracle.training_image(padded, 8)
    assert np.abs(preprocessing.preprocess(image, 8, 3, "pad") - expected).max() < 0.501


def test_preprocess_leaves_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    assert np.shares_memory(preprocessing.preprocess(image, 8, 1), image)
    grey = preprocessing.preprocess(image, 8, 3)
    np.testing.assert_array_equal(grey, np.concatenate([image] * 3, axis=-1))


@pytest.mark.parametrize(("stored", "channels"), [(3, 1), (1, 2), (4, 4), (4, 3)])
def test_preprocess_refuses_channels(stored, channels):
    with pytest.raises(ConfigError, match=rf"data\.channels={channels} .* stored with {stored}"):
        preprocessing.preprocess(np.zeros((8, 8, stored), np.uint8), 8, channels)


def test_area_resize_keeps_the_mean_and_bicubic_keeps_a_ramp():
    video = np.random.default_rng(0).random((2, 9, 14, 3))
    np.testing.assert_allclose(
        preprocessing.resize_area(video, 5).mean((1, 2)), video.mean((1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(  # the two ways of `resize_area` agree
        preprocessing.resize_area(video[0], 7),
        preprocessing._enlarge_area(video[0].astype(np.float32), 7),
        rtol=1e-5,
    )
    ramp = np.tile(np.arange(32.0)[:, None, None], (1, 32, 3))
    result = preprocessing.resize_bicubic(ramp, 8)
    centres = 4 * np.arange(8) + 1.5
    np.testing.assert_allclose(result[2:-2, :, 0], np.tile(centres[2:-2, None], 8), atol=1e-4)


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image_size", "part"), [(160, 1), (81, 1), (80, 2), (41, 2), (40, 4), (21, 4), (20, 8), (4, 8)]
)
def test_a_large_jpeg_is_decoded_at_a_fraction_for_training(channels, image_size, part):
    """The smallest fraction of 320 pixels that leaves twice the training size."""
    scene = awkward.scene(320, 448)
    encoded = jpeg(scene if channels == 3 else scene[..., 0])
    whole = preprocessing.decode(encoded, channels)
    assert whole.shape == (320, 448, channels)
    reduced = preprocessing.decode(encoded, channels, image_size)
    assert reduced.shape == (320 // part, 448 // part, channels)
    exact = preprocessing.preprocess(whole, image_size, channels).astype(int)
    error = np.abs(preprocessing.preprocess(reduced, image_size, channels) - exact).mean()
    one_pixel = np.abs(np.roll(exact, 1, axis=1) - exact).mean()
    assert error < min(2, one_pixel / 20)


def test_only_a_jpeg_is_decoded_at_a_fraction():
    encoded = preprocessing.encode(awkward.scene(300, 420))
    assert preprocessing.decode(encoded, 3, 4).shape == (300, 420, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stored_image_is_not_turned(channels):
    """The pixels of a data set are those stored, whatever the camera says, as TensorFlow reads."""
    turned = Image.Exif()
    turned[0x0112] = 6
    scene = awkward.scene(80, 112)[..., :channels].squeeze()
    straight, exif = jpeg(scene), jpeg(scene, exif=turned)
    for image_size in (None, 4, 10, 20):
        np.testing.assert_array_equal(
            preprocessing.decode(exif, channels, image_size),
            preprocessing.decode(straight, channels, image_size),
        )
    assert preprocessing.read_any(io.BytesIO(exif), channels).shape == (112, 80, channels)


def test_every_kind_of_file_reads_as_an_independent_library_reads_it(tmp_path):
    awkward.save_all(tmp_path)
    files = sorted(path for path in tmp_path.iterdir())
    assert len(files) == 14
    for path in files:
        for channels in (1, 3):
            image = preprocessing.read_any(path, channels)
            expected = oracle.read(path, channels)
            assert (image.shape, image.dtype) == (expected.shape, np.uint8), path.name
            # CMYK has no one conversion to RGB; JPEG decoders and alpha round at several places
            limit = 3 if path.suffix == ".jpg" else 1.5
            assert np.abs(image - expected).max() <= limit, path.name


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for number, kind in enumerate((257 * levels, 257 * levels + 128 * (levels < 255))):
        Image.fromarray(kind.astype(np.uint16)).save(tmp_path / f"{number}.png")
        image = preprocessing.read_any(tmp_path / f"{number}.png", 1)
        np.testing.assert_array_equal(image[..., 0], levels)


def test_decoding_leaves_the_threads_to_the_pipeline():
    assert cv2.getNumThreads() == 1


def test_pixels_without_a_scale_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="'F' have no known scale"):
        preprocessing.read_any(tmp_path / "float.tif", 3)
    (tmp_path / "half.png").write_bytes(preprocessing.encode(awkward.scene())[:300])
    with pytest.raises(OSError, match="truncated"):
        preprocessing.read_any(tmp_path / "half.png", 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    image = awkward.scene()[..., :channels]
    encoded = preprocessing.encode(image)
    np.testing.assert_array_equal(preprocessing.decode(encoded, channels), image)
    assert len(encoded) > image.nbytes  # not compressed, which ArrayRecord does


def test_transparency_that_is_not_declared_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(awkward.scene()).convert("RGBA").save(buffer, "PNG")
    image = preprocessing.decode(buffer.getvalue(), None)
    np.testing.assert_array_equal(image[..., :3], awkward.scene())
    with pytest.raises(ConfigError, match="stored with 4"):
        preprocessing.preprocess(image, 8, 3)
