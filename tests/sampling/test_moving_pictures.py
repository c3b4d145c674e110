"""Pictures of clips: every frame lies where it should, and its edge says where it comes from."""

import io

import numpy as np
import pytest
from PIL import Image

from rin_jax.runtime import files
from rin_jax.sampling import moving_pictures
from rin_jax.sampling.moving_pictures import EDGE, MADE, REAL

SIDE = 48 + 2 * EDGE
rng = np.random.default_rng(0)
TRUTH = rng.integers(0, 256, (10, 5, 8, 8, 1), dtype=np.uint8)
SAMPLES = rng.integers(0, 256, (10, 7, 8, 8, 1), dtype=np.uint8)  # longer than what is known


class Given:
    """As `Conditions` of clips whose first two frames are given."""

    cond_frames = 2

    def truth(self, indices):
        return TRUTH[indices]


class Nothing:
    cond_frames = 0


def inside(frame):
    """The small frame [8, 8] that was enlarged to [52, 52, 3]."""
    assert frame.shape == (SIDE, SIDE, 3)
    pixels = frame[EDGE:-EDGE, EDGE:-EDGE].reshape(8, 6, 8, 6, 3)
    assert (pixels == pixels[:, :1, :, :1, :1]).all()
    return pixels[:, 0, :, 0, 0]


def edge(frame):
    edges = frame[0], frame[-1], frame[:, 0], frame[:, -1]
    assert all((one == frame[0, 0]).all() for one in edges)
    return tuple(frame[0, 0])


def test_made_and_real_frames():
    made, real = moving_pictures.strips(SAMPLES[[4, 1]], Given(), np.array([4, 1]))
    assert made.shape == real.shape == (2, 9, SIDE, SIDE, 3)
    for row, index in enumerate((4, 1)):
        for t in range(9):
            expected = TRUTH[index, t] if t < 2 else SAMPLES[index, t - 2]
            np.testing.assert_array_equal(inside(made[row, t]), expected[..., 0])
            assert edge(made[row, t]) == (REAL if t < 2 else MADE)
        for t in range(5):
            np.testing.assert_array_equal(inside(real[row, t]), TRUTH[index, t, ..., 0])
            assert edge(real[row, t]) == REAL
        assert (real[row, 5:] == 255).all()


def test_without_given_frames_there_is_no_truth():
    (made,) = moving_pictures.strips(SAMPLES, Nothing(), np.arange(10))
    assert made.shape == (10, 7, SIDE, SIDE, 3)
    assert edge(made[3, 0]) == MADE
    np.testing.assert_array_equal(moving_pictures.beside([made]), made)
    colour = rng.integers(0, 256, (1, 3, 60, 60, 3), dtype=np.uint8)
    (made,) = moving_pictures.strips(colour, Nothing(), np.arange(1))
    np.testing.assert_array_equal(made[:, :, EDGE:-EDGE, EDGE:-EDGE], colour)


def test_still_and_moving_pictures():
    strips = moving_pictures.strips(SAMPLES, Given(), np.arange(10))
    still, cell = moving_pictures.still(strips), SIDE + 2
    assert still.shape == (16 * cell + 2, 9 * cell + 2, 3)  # eight clips, two rows each
    for row, expected in ((6, TRUTH[3, 4]), (7, SAMPLES[3, 2])):
        frame = still[row * cell + 2 :, 4 * cell + 2 :][:SIDE, :SIDE]
        np.testing.assert_array_equal(inside(frame), expected[..., 0])
    pictures = moving_pictures.moving(strips)
    assert len(pictures) == 9
    corner = pictures[4][cell + 2 :, 2 * SIDE + 4 :]  # clip 6: second row, second column
    np.testing.assert_array_equal(inside(corner[:SIDE, :SIDE]), SAMPLES[6, 2, ..., 0])
    np.testing.assert_array_equal(inside(corner[:SIDE, SIDE : 2 * SIDE]), TRUTH[6, 4, ..., 0])
    captioned = moving_pictures.moving(strips, ["a"] * 10)
    assert captioned[0].shape[0] > pictures[0].shape[0]
    long = moving_pictures.still([np.repeat(strips[0], 5, axis=1)])
    assert long.shape == (8 * cell + 2, 16 * cell + 2, 3)


def test_a_gif_has_the_pictures(tmp_path):
    grey = [np.full((9, 7, 1), 30 * t, np.uint8) for t in range(6)]
    files.write_gif(tmp_path / "deep" / "a.gif", grey)
    assert (tmp_path / "deep" / "a.gif").read_bytes() == files.encode_gif(grey)
    gif = Image.open(io.BytesIO(files.encode_gif(grey)))
    assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (7, 9), 0)
    for t in range(6):
        gif.seek(t)
        assert gif.info["duration"] == (1500 if t == 5 else 80)
        assert (np.asarray(gif.convert("L")) == 30 * t).all()


def test_an_mp4_has_the_pictures(tmp_path):
    av = pytest.importorskip("av")
    pictures = np.zeros((8, 53, 104, 3), np.uint8)  # an odd height
    for t in range(8):
        pictures[t, :, : 13 * (t + 1)] = 220
    files.write_mp4(tmp_path / "a.mp4", pictures)
    with av.open(tmp_path / "a.mp4") as container:
        frames = [x.to_ndarray(format="rgb24") for x in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 12.5
    assert len(frames) == 8
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.shape == (54, 104, 3)
        assert np.abs(frame[:53].astype(int) - picture).mean() < 4
