"""The benchmark's figures agree with one another; no absolute time is checked."""

import jax
import pytest

from benchmarks import sizes, step, timing
from benchmarks.parts import PARTS
from rin_jax.experiment import make_experiment
from rin_jax.network.cost import forward_flops
from tests import tiny

BATCH = 2


@pytest.fixture(scope="module")
def report():
    experiment = tiny.experiment(
        model__num_blocks=1,
        model__depth=0,  # a read alone: half the compile time, and no value is looked at
        model__dropout=0.0,
        model__drop_path=0.0,
        train__batch_size=BATCH,
        diffusion__self_cond_rate=1.0,
    )
    sides = (32, 64)
    figures = step.run(experiment, sides, parts=PARTS, repetitions=2, warmup=1)
    return figures | {"forward": forward_flops(experiment.rin)}


def test_counts_four_forward_passes_a_training_step_and_one_a_sampler_step(report):
    parts = report["parts"]
    assert parts["forward_backward"]["flops"] == 4 * BATCH * report["forward"]
    assert parts["training_step"]["flops"] == parts["forward_backward"]["flops"]
    assert parts["sampler_step"]["flops"] == BATCH * report["forward"]
    assert parts["optimizer_update"]["flops"] is None
    assert parts["ema_update"]["flops"] is None


def test_rates_follow_from_the_medians(report):
    ceiling = report["ceiling_gflops_per_second"]
    assert ceiling == max(report["matmul_gflops_per_second"]["float32"].values())
    for part in report["parts"].values():
        assert 0 < part["min_ms"] <= part["median_ms"] <= part["max_ms"]
        if part["flops"] is None:
            assert part["gflops_per_second"] is part["share_of_ceiling"] is None
            assert part["images_per_second"] is None
            continue
        seconds = part["median_ms"] / 1e3
        rate = part["flops"] / seconds / 1e9
        assert part["gflops_per_second"] == pytest.approx(rate)
        assert part["share_of_ceiling"] == pytest.approx(rate / ceiling)
        assert part["images_per_second"] == pytest.approx(BATCH / seconds)


def test_table_has_a_row_for_each_part(report):
    head, rule, *rows = step.table(report).splitlines()
    assert len(rows) == len(report["parts"]) == 5
    assert {line.count("|") for line in (head, rule, *rows)} == {7}


def test_waits_for_the_result_and_drops_the_warm_up():
    """The repetitions hand their result on, and only those after the warm-up are counted."""
    carries = []

    def call(carry):
        carries.append(int(carry))
        return jax.numpy.add(carry, 1)

    seconds = timing.measure((call, jax.numpy.int32(0)), repetitions=3, warmup=2)
    assert carries == [0, 1, 2, 3, 4]
    assert len(seconds) == 3


@pytest.mark.parametrize("size", sizes.SIZES)
def test_sizes_build_with_both_passes_and_ddim(size):
    experiment = make_experiment(sizes.make_config(size, batch=8, dtype="bfloat16"))
    assert experiment.objective.self_cond_rate == 1
    assert experiment.sampler.name == "ddim"
    assert experiment.config.sampler.guidance_scale == 0
    assert experiment.config.train.batch_size == 8
    assert experiment.rin.dtype == "bfloat16"
