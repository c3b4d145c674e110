"""The sampling benchmarks: figures that agree with one another; no absolute time is checked."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import rollout, sampling, sampling_quality
from rin_jax.data.moving_digits import MovingDigits
from rin_jax.experiment import make_experiment
from tests import tiny


def test_times_every_sampler(monkeypatch):
    monkeypatch.setattr(
        sampling, "SAMPLERS", {name: sampling.SAMPLERS[name] for name in ("ddim", "heun")}
    )
    config = tiny.config(model__num_blocks=1, sampler__images_per_device=2)
    rows = sampling.run(config, steps=[2, 3], repetitions=2, warmup=1)
    assert {name: row["evaluations"] for name, row in rows.items()} == {
        "ddim | 2": 2, "ddim | 3": 3, "heun | 2": 3, "heun | 3": 5,
    }  # fmt: skip
    for row in rows.values():
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["median_ms"])
    assert sampling.table(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize("name", ["digits", "imagenet64"])
def test_samplers_build(name):
    config = sampling.make_config(name, batch=3, dtype="bfloat16")
    for changes in sampling.SAMPLERS.values():
        changed = config.copy_and_resolve_references()
        changed.sampler.update(changes)
        assert make_experiment(changed).config.sampler.images_per_device == 3


def test_settings_of_the_quality_tables_build(tmp_path):
    rows = sampling_quality.settings(str(tmp_path))
    for name, changes in rows.items():
        config = sampling_quality.changed(tiny.config(), changes)
        evaluations = make_experiment(config).sampler.num_evaluations
        assert evaluations >= config.sampler.num_steps, name
    assert len(rows) > 45


def test_a_line_has_mean_and_range():
    row = {"evaluations": 9, "agreement": [0.9, 0.95, 1.0], "distance": [1.0, 2.0, 3.0]}
    line = sampling_quality.line("DDIM | 5", row)
    assert line == "| DDIM | 5 | 9 | 95.0 (90.0 to 100.0) | 2.00 (1.00 to 3.00) |"


def test_the_clips_of_a_roll_out_are_those_of_the_data_set_continued(tmp_path):
    builder = MovingDigits(16, 5, data_dir=tmp_path)
    stored = next(builder._generate_examples("test"))[1]["video"]
    clips = rollout.draw(2, 12, 16)
    assert clips.shape == (2, 12, 16, 16, 1)
    for frame, png in zip(clips[0, :5, ..., 0], stored, strict=True):
        np.testing.assert_array_equal(frame, Image.open(png))
