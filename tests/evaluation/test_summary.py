"""Figures from blocks of features: whatever the blocks are, with each kind of bad input said."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from rin_jax import ConfigError
from rin_jax.evaluation import neighbours, protocol, real_statistics, summary
from rin_jax.evaluation.distances import frechet_distance, moments
from rin_jax.evaluation.protocol import Evaluation
from tests import tiny

COUNT, FEATURES, CLASSES = 1203, 8, 3
DESCRIPTION = {"features": {"network": "inception", "protocol": "adm"}, "image_size": 8}
EVALUATION = Evaluation(
    **{
        **tiny.TINY["evaluation"], "networks": ("inception",), "inception_weights": "given",
        "measures": ("frechet", "spatial_frechet", "inception_score", "kid", "precision_recall"),
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(neighbours, "_SUBSETS", 2)


def features(seed, count=COUNT, shift=0.0):
    rng = np.random.default_rng(seed)
    return {
        "inception/pool": rng.normal(shift, 1, (count, FEATURES)).astype(np.float32),
        "inception/spatial": rng.normal(shift, 2, (count, FEATURES + 1)).astype(np.float32),
        "inception/logits": rng.normal(0, 1, (count, 5)).astype(np.float32),
        "label": rng.integers(0, CLASSES, count).astype(np.int32),
    }


def blocks(arrays, size):
    count = len(arrays["label"])
    for first in range(0, count, size):
        yield {name: array[first : first + size] for name, array in arrays.items()}


def real(size=250, seed=0, count=COUNT):
    return summary.of_real(
        "inception", DESCRIPTION, blocks(features(seed, count), size), count, CLASSES
    )


def figures(arrays, size, reference=None):
    count = len(arrays["label"])
    measures = summary.Measures(EVALUATION, {"inception": reference or real()}, count)
    return measures.figures(blocks(arrays, size))


def test_figures_do_not_depend_on_the_blocks():
    samples = features(1, shift=0.2)
    once = figures(samples, COUNT)
    assert set(once) == {
        f"inception/{name}"
        for name in ("frechet", "spatial_frechet", "inception_score", "kid", "precision", "recall")
    }
    for size in (1, 17, 1000):
        assert figures(samples, size) == pytest.approx(once, rel=1e-9)


def test_frechet_distances_are_those_of_all_samples_at_once():
    samples, whole = features(1, shift=0.2), features(0)
    found = figures(samples, 100)
    for name, output in (("frechet", "pool"), ("spatial_frechet", "spatial")):
        key = f"inception/{output}"
        expected = frechet_distance(moments(samples[key]), moments(whole[key]))
        assert found[f"inception/{name}"] == pytest.approx(expected, rel=1e-9)
    assert figures(features(0), 100)["inception/frechet"] == pytest.approx(0, abs=1e-9)


def test_the_floor_is_the_distance_between_images_of_even_and_odd_index():
    arrays = features(0)
    for size in (250, 7):  # odd blocks begin at either kind
        floor = real(size).floor
        for output in ("pool", "spatial"):
            x = arrays[f"inception/{output}"]
            expected = frechet_distance(moments(x[::2]), moments(x[1::2]))
            assert floor[output] == pytest.approx(expected, rel=1e-9)


def test_a_spread_of_the_real_images_is_kept_and_all_labels_are_counted(monkeypatch):
    monkeypatch.setattr(summary, "NEIGHBOURS", 300)  # every fifth of 1203
    for size in (250, 7):
        found = real(size)
        np.testing.assert_array_equal(found.features, features(0)["inception/pool"][::5])
        np.testing.assert_array_equal(found.histogram, np.bincount(features(0)["label"]))


def test_statistics_are_read_back_as_they_were_written(tmp_path):
    path = epath.Path(tmp_path) / "real.npz"
    real().save(path)
    found = real_statistics.load(path)
    assert found.sha256 == real().sha256
    assert found.description == DESCRIPTION
    assert figures(features(1), 100, found) == figures(features(1), 100)
    assert dataclasses.replace(found, floor={"pool": 0.5}).sha256 != found.sha256


def test_statistics_of_adms_evaluator(tmp_path):
    path = epath.Path(tmp_path) / "VIRTUAL.npz"
    whole = features(0)
    pool, spatial = (moments(whole[f"inception/{x}"]) for x in ("pool", "spatial"))
    np.savez(path, mu=pool.mean, sigma=pool.covariance, mu_s=spatial.mean,
             sigma_s=spatial.covariance, arr_0=np.zeros((2, 4, 4, 3), np.uint8))  # fmt: skip
    found = real_statistics.load(path)
    real_statistics.check(path, found, DESCRIPTION | {"channels": 3, "preprocessing": "any"})
    only = dataclasses.replace(EVALUATION, measures=("frechet", "spatial_frechet"))
    got = summary.Measures(only, {"inception": found}, COUNT).figures(blocks(features(1), 100))
    expected = figures(features(1), 100)
    assert got == pytest.approx({name: expected[name] for name in got}, rel=1e-9)
    with pytest.raises(ConfigError, match="no features of single images"):
        summary.Measures(EVALUATION, {"inception": found}, COUNT)
    other = {"features": {"network": "inception", "protocol": "rin_tfgan"}}
    with pytest.raises(ConfigError, match="protocol is 'adm' there and 'rin_tfgan' here"):
        real_statistics.check(path, found, DESCRIPTION | other)


def test_files_that_are_no_statistics(tmp_path):
    for name, content in {"text": b"text", "cut": None}.items():
        path = epath.Path(tmp_path) / f"{name}.npz"
        if content is None:
            real().save(path)
            content = path.read_bytes()[:-100]
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not a file of statistics, or damaged"):
            real_statistics.load(path)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ConfigError, match=r"has \['weights'\], and no statistics"):
        real_statistics.load(epath.Path(tmp_path) / "other.npz")


def test_two_descriptions_differ_by_name():
    first = {"a": 1, "inner": {"b": 2, "c": 3}}
    assert protocol.differences(first, first) == []
    lines = protocol.differences(first, {"a": 1, "inner": {"b": 2, "c": 4}, "d": 5})
    assert lines == ["d is 5 there and None here", "inner.c is 4 there and 3 here"]
    assert protocol.digest(first) == protocol.digest(dict(reversed(first.items())))
    assert protocol.digest(first) != protocol.digest({**first, "a": 2})


def test_a_sample_that_is_not_finite_is_said():
    samples = features(1)
    samples["inception/pool"][7, 3] = np.inf
    with pytest.raises(ConfigError, match="1 of 100 images have NaN or infinity"):
        figures(samples, 100)
