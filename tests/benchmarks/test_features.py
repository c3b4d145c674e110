"""The benchmark of feature networks: figures that agree; no absolute time is checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import features
from rin_jax.evaluation import inception

SMALL = features.Network(
    shape=(4, 4, 3),
    flops=2e3,
    arrays=lambda: {"weight": np.ones((48, 5), np.float32)},
    params_of=lambda arrays: jnp.asarray(arrays["weight"]),
    extract=lambda params, images: {"pool": images.reshape(len(images), -1) @ params},
    peer=lambda arrays: lambda images: images.reshape(len(images), -1) @ arrays["weight"],
)


def test_figures_follow_from_the_medians():
    report = features.run(SMALL, batch=2, repetitions=3, warmup=1)
    assert set(report["rows"]) == {"rin_jax", "PyTorch"}
    for row in report["rows"].values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["median_ms"])
        assert row["gflops_per_second"] == pytest.approx(2 * 2e3 / row["median_ms"] / 1e6)
    assert features.table(report).count("\n") == 3


def test_calls_take_turns_and_the_warm_up_is_left_out():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = features.time_in_turn(calls, repetitions=2, warmup=1)
    assert order == list("ababab")
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_inceptions_flops_agree_with_xlas_count():
    """XLA leaves out products with padding, some per cent, and counts elementwise work."""
    network = features.NETWORKS["inception"]
    params = jax.eval_shape(lambda: network.params_of(network.arrays()))
    images = jax.ShapeDtypeStruct((1, inception.SIZE, inception.SIZE, 3), jnp.float32)
    counted = jax.jit(inception.features).lower(params, images).cost_analysis()["flops"]
    assert counted == pytest.approx(network.flops, rel=0.05)
