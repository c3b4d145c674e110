"""Arrays kept as files: any order of writing reads back in the order of the images."""

import numpy as np
import pytest
from etils import epath

from rin_jax.evaluation import parts
from rin_jax.evaluation.parts import Parts, missing, runs


def rows(first, stop):
    numbers = np.arange(first, stop, dtype=np.float32)
    return {"net/pool": numbers[:, None] * [1.0, 10.0], "label": numbers.astype(np.int32)}


def batch(first, stop):
    return np.arange(first, stop), rows(first, stop)


def test_files_in_any_order_are_read_in_the_order_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BLOCK", 4)
    kept = Parts(epath.Path(tmp_path) / "parts")
    assert kept.ranges() == []
    for first, stop in ((7, 11), (0, 3), (3, 7)):
        kept.write([batch(first, stop)])
    assert kept.ranges() == [(0, 3), (3, 7), (7, 11)]
    blocks = list(kept.blocks(10))
    assert [len(block["label"]) for block in blocks] == [4, 4, 2]  # whatever the files were
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for name, expected in rows(0, 10).items():
        np.testing.assert_array_equal(whole[name], expected)


def test_images_that_two_evaluations_wrote_count_once(tmp_path):
    kept = Parts(epath.Path(tmp_path))
    for first, stop in ((0, 6), (2, 5), (4, 9)):
        kept.write([batch(first, stop)])
    (block,) = kept.blocks(9)
    np.testing.assert_array_equal(block["label"], np.arange(9))


def test_a_gap_is_not_read_over(tmp_path):
    kept = Parts(epath.Path(tmp_path))
    kept.write([batch(0, 3)])
    kept.write([batch(5, 8)])
    with pytest.raises(AssertionError, match=r"nothing of images 3\.\.4"):
        list(kept.blocks(8))
    kept.write([batch(3, 5)])
    with pytest.raises(AssertionError, match=r"nothing of images 8\.\.9"):
        list(kept.blocks(10))


def test_a_write_that_was_cut_off_is_no_file(tmp_path):
    kept = Parts(epath.Path(tmp_path))
    kept.write([batch(0, 3)])
    (tmp_path / "000000003-000000006.draft").write_bytes(b"half")
    assert kept.ranges() == [(0, 3)]


def test_batches_with_a_gap_between_them_are_two_files(tmp_path):
    kept = Parts(epath.Path(tmp_path))
    kept.write([batch(0, 2), batch(2, 3), batch(7, 9)])
    assert kept.ranges() == [(0, 3), (7, 9)]
    kept.write([batch(3, 7)])
    np.testing.assert_array_equal(next(kept.blocks(9))["net/pool"], rows(0, 9)["net/pool"])


def test_the_joined_file_is_the_one_that_numpy_writes(tmp_path):
    """Also of rows with several axes, and of images that two jobs wrote."""
    kept, rng = Parts(epath.Path(tmp_path) / "parts"), np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 4, 3, 1), np.uint8)
    frames = rng.normal(size=(9, 2)).astype(np.float32)
    for first, stop in ((6, 9), (0, 4), (3, 6)):
        piece = {"images": images[first:stop], "frames": frames[first:stop]}
        kept.write([(np.arange(first, stop), piece)])
    more = {"labels": np.arange(8, dtype=np.int32), "seed": 3}
    kept.join(epath.Path(tmp_path) / "joined.npz", 8, ["images", "frames"], more)
    np.savez(tmp_path / "numpy.npz", images=images[:8], frames=frames[:8], **more)
    assert (tmp_path / "joined.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_missing_images_and_their_runs():
    todo = missing([(0, 3), (5, 8)], 12)
    assert todo.tolist() == [3, 4, 8, 9, 10, 11]
    assert [run.tolist() for run in runs(todo)] == [[3, 4], [8, 9, 10, 11]]
    assert missing([(0, 20)], 12).size == 0
