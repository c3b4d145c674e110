"""Conditions: hidden per example, null, and what of a batch is one."""

import numpy as np

from rin_jax.network import conditioning


def test_only_the_examples_that_are_not_kept_lose_their_condition():
    cond = {"label": np.int32([3, 1, 4])}
    kept = conditioning.drop(cond, np.array([True, False, True]))
    np.testing.assert_array_equal(kept["label"], [3, conditioning.NO_LABEL, 4])
    everything = conditioning.drop(cond, np.zeros(3, bool))
    np.testing.assert_array_equal(everything["label"], conditioning.null(cond)["label"])


def test_every_entry_has_its_null_and_is_dropped_with_the_others():
    rng = np.random.default_rng(0)
    cond = {
        "label": np.int32([3, 1]),
        "frames": rng.normal(size=(2, 1, 2, 2, 1)).astype(np.float32),
        "sequence": rng.normal(size=(2, 4, 3)).astype(np.float32),
    }
    assert set(cond) == set(conditioning.ENTRIES)
    null = conditioning.null(cond)
    np.testing.assert_array_equal(null["label"], 2 * [conditioning.NO_LABEL])
    assert not null["frames"].any()
    assert not null["sequence"].any()
    kept = conditioning.drop(cond, np.array([False, True]))
    for name, values in kept.items():
        assert values.dtype == cond[name].dtype
        np.testing.assert_array_equal(values[0], null[name][0])
        np.testing.assert_array_equal(values[1], cond[name][1])


def test_an_unconditional_network_has_the_empty_condition():
    assert conditioning.of_labels(np.int32([1]), 0) == {}
    assert conditioning.abstract(4, 0, None, None) == conditioning.null({}) == {}
    assert conditioning.drop({}, np.array([False])) == {}


def test_a_batch_holds_its_condition_beside_its_examples():
    batch = {"image": np.zeros((2, 4, 4, 1)), "label": np.int32([1, 2])}
    assert list(conditioning.of_batch(batch)) == ["label"]
    shapes = conditioning.abstract(2, 5, None, None)
    assert {k: (v.shape, v.dtype) for k, v in shapes.items()} == {
        k: (v.shape, v.dtype) for k, v in conditioning.of_batch(batch).items()
    }
