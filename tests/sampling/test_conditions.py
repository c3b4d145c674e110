"""Conditions: the frames and the class of sample i are those of record i of held-out clips."""

import numpy as np
import pytest

from rin_jax.network.conditioning import NO_LABEL
from rin_jax.sampling.conditions import make_conditions
from tests import tiny
from tests.data import small_sets
from tests.sampling import videos

CLIP = {"frames": 4, "cond_frames": 2, "stride": 1, "window": "first"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return videos.prepare(tmp_path_factory.mktemp("videos"))


def test_sample_i_continues_record_i_of_the_test_split(data_dir):
    experiment = videos.experiment(data_dir, data__num_classes=10, diffusion__input_scale=0.5)
    test = small_sets.opened("moving_digits", "test", data_dir, 16, 1, clip=CLIP)
    conditions = make_conditions(experiment, np.full(20, 3))
    assert (len(conditions), conditions.cond_frames) == (20, 2)
    indices = np.array([0, 6, 7, 13, 2])  # there are 7
    cond, truth = conditions.of(indices), conditions.truth(indices)
    assert set(cond) == {"label", "frames"}
    assert cond["frames"].dtype == np.float32
    for row, index in enumerate([0, 6, 0, 6, 2]):
        record = test[index]
        expected = 0.5 * (record["frames"] / 127.5 - 1)
        np.testing.assert_allclose(cond["frames"][row], expected, atol=1e-6)
        whole = np.concatenate([record["frames"], record["image"]])
        np.testing.assert_array_equal(truth[row], whole)
        assert cond["label"][row] == record["label"] == conditions.labels[indices[row]]
    assert len(set(conditions.labels)) > 1  # not the 3 that was asked for


def test_a_network_without_classes_is_not_told_that_of_the_clip(data_dir):
    """It is known all the same, so that what is predicted can be compared with it."""
    test = small_sets.opened("moving_digits", "test", data_dir, 16, 1, clip=CLIP)
    conditions = make_conditions(videos.experiment(data_dir), np.full(9, NO_LABEL))
    assert set(conditions.of(np.arange(9))) == {"frames"}
    expected = [test.label(i % len(test)) for i in range(9)]
    np.testing.assert_array_equal(conditions.labels, expected)


def test_a_part_of_the_test_split_is_continued_itself(data_dir):
    experiment = videos.experiment(data_dir, data__split="test[3:]", data__num_classes=10)
    test = small_sets.opened("moving_digits", "test", data_dir, 16, 1, clip=CLIP)
    conditions = make_conditions(experiment, np.zeros(4))
    np.testing.assert_array_equal(conditions.truth(np.array([0]))[0, :2], test[3]["frames"])


def test_without_given_frames_labels_are_as_asked_and_no_data_are_needed():
    for experiment in (
        tiny.experiment(data__data_dir="/nowhere"),
        videos.experiment("/nowhere", data__clip__cond_frames=0, data__num_classes=10),
    ):
        conditions = make_conditions(experiment, np.array([4, 1, 4]))
        cond = conditions.of(np.array([2, 1]))
        assert set(cond) == {"label"}
        np.testing.assert_array_equal(cond["label"], [4, 1])
        assert cond["label"].dtype == np.int32
