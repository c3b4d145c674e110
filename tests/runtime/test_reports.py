"""Grids, progress lines and what resuming does to the curves."""

import json

import numpy as np
import pytest

from rin_jax.runtime import reports


def test_grid_places_every_image_once():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 60, 60, 3), np.uint8)
    grid = reports.grid(images, 3)
    assert grid.shape == (2 * 62 + 2, 3 * 62 + 2, 3)
    centres = [[int(grid[32 + 62 * row, 32 + 62 * column, 0]) for column in range(3)]
               for row in range(2)]  # fmt: skip
    assert centres == [[0, 1, 2], [3, 4, 255]]
    assert [(grid == i).all(-1).sum() for i in range(5)] == [3600] * 5


def test_small_images_are_enlarged():
    grid = reports.grid(np.zeros((1, 8, 8, 1), np.uint8), 1)
    assert grid.shape == (52, 52, 1)


def test_duration():
    assert [reports.duration(s) for s in (0, 59.6, 61, 3600, 36061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_progress_says_where_the_time_went(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(reports.time, "monotonic", lambda: now[0])
    progress = reports.Progress(0, 100, batch_size=10)
    with progress.spending("input_wait"):
        now[0] = 2.0
    now[0] = 5.0
    with progress.spending("samples"):
        now[0] = 20.0
    figures = progress.update(20)
    assert figures == {
        "images_per_second": 20 * 10 / 5.0,  # samples are not training
        "time_input_wait": 0.1, "time_samples": 0.75, "time_step": pytest.approx(0.15),
    }  # fmt: skip
    assert progress.line({"loss": 0.5}) == "step 20/100 (20.0 %)  loss 0.5  0:20 left"
    now[0] = 30.0
    assert progress.update(30) == {"images_per_second": 10.0, "time_step": 1.0}


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path):
    writer = reports.Writer(str(tmp_path), 0, active=True)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": float(step)})
    writer.close()
    writer = reports.Writer(str(tmp_path), 2, active=True)
    writer.scalars(3, {"loss": 30.0})
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": s, "loss": v} for s, v in ((1, 1.0), (2, 2.0), (3, 30.0))]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = reports.Writer(str(tmp_path), 2, active=True)
    writer.scalars(3, {"loss": 3.0})
    writer.close()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]


def test_other_processes_write_nothing(tmp_path):
    writer = reports.Writer(str(tmp_path / "run"), 0, active=False)
    writer.scalars(1, {"loss": 1.0})
    writer.image(1, "progress", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    assert not (tmp_path / "run").exists()


def test_captions_lie_below_their_images():
    images = np.full((3, 96, 96, 1), 7, np.uint8)
    picture = reports.captioned_grid(images, ["one", "", "three"], columns=2)
    assert picture.shape == (2 * (96 + 14 + 2) + 2, 2 * 98 + 2, 3)
    captions = [picture[98:112, 2:98], picture[98:112, 100:196], picture[210:224, 2:98]]
    assert [bool((caption < 128).any()) for caption in captions] == [True, False, True]
    for top, left in ((2, 2), (2, 100), (114, 2)):
        assert (picture[top : top + 96, left : left + 96] == 7).all()


def test_histogram_has_a_bar_a_class():
    counts = np.array([10, 0, 5])
    bars = reports.histogram(counts, "title")[16:, :600]
    heights = [int((bars[:, 200 * k + 100, 0] == 90).sum()) for k in range(3)]
    assert heights == [120, 0, 60]
    assert reports.histogram(np.arange(1000), "many").shape[1] == 1000
