"""moving_digits: digits that stay inside, keep their speed between bounces and show their label."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.data import catalog, moving_digits, pipeline
from tests.data import small_sets

CLIP = {"frames": 16, "cond_frames": 5, "stride": 1, "window": "first"}
SIZE = 24


def opened(data_dir, split="train", size=SIZE, **changes):
    clip = {**CLIP, **changes}
    return small_sets.opened("moving_digits", split, data_dir, size, 1, clip=clip)


@pytest.fixture(scope="module")
def moving_dir(tmp_path_factory):
    """Few clips, rendered as they are opened for the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "CLIPS", {"train": 60, "test": 30})
        data_dir = tmp_path_factory.mktemp("moving")
        opened(data_dir)
        yield data_dir


def whole(record):
    return np.concatenate([record["frames"], record["image"]])


def scenes(split, count, size=SIZE):
    shapes = moving_digits.load_shapes(split)
    numbers = [len(kind) for kind in shapes]
    return [moving_digits.draw_scene(split, index, size, numbers) for index in range(count)]


def test_paths_are_straight_between_bounces_at_the_edges():
    for scene in scenes("train", 200):
        path = scene.path(60)
        assert path.shape == (60, 2, 2)
        assert path.min() >= 0
        assert path.max() <= SIZE - 8
        speed = np.linalg.norm(scene.velocity, axis=1)
        assert (speed >= 1).all()
        assert (speed <= 2).all()
        steps = np.diff(path, axis=0)
        straight = np.isclose(np.abs(steps), np.abs(scene.velocity))
        assert straight.mean() > 0.7
        # where it is not, the step goes to an edge and back: the two parts add up to the speed
        near = np.minimum(path[:-1] + path[1:], 2 * (SIZE - 8) - path[:-1] - path[1:])
        speeds = np.broadcast_to(np.abs(scene.velocity), steps.shape)
        np.testing.assert_allclose(near[~straight], speeds[~straight], atol=1e-9)


def test_rendered_between_pixels_the_brighter_one_on_top():
    pair = np.random.default_rng(0).integers(1, 256, (2, 8, 8), np.uint8)
    path = np.array([[[0, 0], [16, 16]], [[2, 4], [5, 7]], [[3.25, 0], [16, 8.5]]])
    first, second, third = moving_digits.render(pair, path, SIZE)[..., 0].astype(int)
    np.testing.assert_array_equal(first[:8, :8], pair[0])
    np.testing.assert_array_equal(first[16:, 16:], pair[1])
    assert first.sum() == pair.sum(dtype=int)
    layers = np.zeros((2, SIZE, SIZE), int)
    layers[0, 2:10, 4:12], layers[1, 5:13, 7:15] = pair
    np.testing.assert_array_equal(second, layers.max(axis=0))
    one, other = np.pad(pair.astype(float), [(0, 0), (1, 1), (1, 1)])
    np.testing.assert_allclose(third[3:12, :8], 0.75 * one[1:, 1:-1] + 0.25 * one[:-1, 1:-1],
                               atol=0.5)  # fmt: skip
    np.testing.assert_allclose(third[16:, 8:17], (other[1:-1, 1:] + other[1:-1, :-1]) / 2, atol=0.5)
    assert third[:, 17:].sum() == third[:3].sum() == 0


def test_records_are_the_scenes(moving_dir):
    shapes = moving_digits.load_shapes("train")
    source = opened(moving_dir)
    assert len(source) == 60
    assert source.info.example_shape == (16, 24, 24, 1)
    for index, scene in enumerate(scenes("train", 60)):
        pair, path = shapes[scene.label][list(scene.shapes)], scene.path(16)
        np.testing.assert_array_equal(whole(source[index]), moving_digits.render(pair, path, 24))
        assert source[index]["label"] == scene.label
        assert scene.shapes[0] != scene.shapes[1]


def test_digits_of_a_class_and_of_a_split():
    from sklearn import datasets

    known = datasets.load_digits()
    images = np.rint(known.images * 255 / 16).astype(np.uint8)
    seen = []
    for split, count in (("train", 1500), ("test", 297)):
        shapes = moving_digits.load_shapes(split)
        assert [len(kind) > 20 for kind in shapes] == [True] * 10
        assert sum(map(len, shapes)) == count
        labels = {image.tobytes(): label for image, label in zip(images, known.target, strict=True)}
        for label, kind in enumerate(shapes):
            assert {labels[image.tobytes()] for image in kind} == {label}
        seen.append({image.tobytes() for kind in shapes for image in kind})
    assert not set.intersection(*seen)


def test_a_clip_depends_on_its_split_and_number_alone(moving_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(moving_digits, "CLIPS", {"train": 12, "test": 5})
    again, source = opened(tmp_path), opened(moving_dir)
    for index in range(12):
        np.testing.assert_array_equal(whole(again[index]), whole(source[index]))
    longer = opened(tmp_path, frames=20)
    np.testing.assert_array_equal(whole(longer[3])[:16], whole(source[3]))
    test = source.other_split("test")
    clips = {whole(record).tobytes() for one in (source, test) for record in map(one.__getitem__,
             range(len(one)))}  # fmt: skip
    assert len(clips) == 60 + 30
    labels = [scene.label for scene in scenes("train", 2000)]
    assert np.bincount(labels).min() > 150


def test_batches_and_what_is_filled_in(moving_dir):
    batch = next(pipeline.train_batches(opened(moving_dir), 16, seed=0, start=0))
    assert batch["image"].shape == (16, 11, 24, 24, 1)
    assert batch["frames"].shape == (16, 5, 24, 24, 1)
    data = small_sets.section("moving_digits", "train", moving_dir, None, None, clip=CLIP)
    data = data.resolved()
    assert (data.image_size, data.channels, data.num_classes) == (24, 1, 10)
    info = catalog.describe("moving_digits", "test", str(moving_dir), None, frames=16)
    assert info.example_shape == (16, 24, 24, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 11}, r"data\.image_size is 11, but 'moving_digits' shows digits of 8 pixels"),
        ({"stride": 2}, r"data\.clip\.stride is 2, but 'moving_digits' .* prepared with 1; set"),
        ({"window": "random"}, r"data\.clip\.window is 'random', but 'moving_digits'"),
        ({"split": "validation"}, r"data\.split: 'validation' is not a split .* has train, test"),
    ],
)
def test_mistakes(moving_dir, changes, message):
    with pytest.raises(ConfigError, match=message):
        opened(moving_dir, **changes)
