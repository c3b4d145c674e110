"""Grids, captions and bars: every pixel lies where it should."""

import numpy as np

from rin_jax.sampling import grids


def test_grid_places_every_image_once():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 60, 60, 3), np.uint8)
    grid = grids.grid(images, 3)
    assert grid.shape == (2 * 62 + 2, 3 * 62 + 2, 3)
    centres = [[int(grid[32 + 62 * row, 32 + 62 * column, 0]) for column in range(3)]
               for row in range(2)]  # fmt: skip
    assert centres == [[0, 1, 2], [3, 4, 255]]
    assert [(grid == i).all(-1).sum() for i in range(5)] == [3600] * 5


def test_small_images_are_enlarged():
    grid = grids.grid(np.zeros((1, 8, 8, 1), np.uint8), 1)
    assert grid.shape == (52, 52, 1)


def test_captions_lie_below_their_images():
    images = np.full((3, 96, 96, 1), 7, np.uint8)
    picture = grids.captioned_grid(images, ["one", "", "three"], columns=2)
    assert picture.shape == (2 * (96 + 14 + 2) + 2, 2 * 98 + 2, 3)
    captions = [picture[98:112, 2:98], picture[98:112, 100:196], picture[210:224, 2:98]]
    assert [bool((caption < 128).any()) for caption in captions] == [True, False, True]
    for top, left in ((2, 2), (2, 100), (114, 2)):
        assert (picture[top : top + 96, left : left + 96] == 7).all()


def test_histogram_has_a_bar_a_class():
    counts = np.array([10, 0, 5])
    bars = grids.histogram(counts, "title")[16:, :600]
    heights = [int((bars[:, 200 * k + 100, 0] == 90).sum()) for k in range(3)]
    assert heights == [120, 0, 60]
    assert grids.histogram(np.arange(1000), "many").shape[1] == 1000
