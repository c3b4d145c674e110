"""The window of metrics: means, and steps that are skipped."""

import numpy as np
import pytest

from rin_jax.training import metrics as metrics_lib
from rin_jax.training import noise_levels
from rin_jax.training.metrics import Window


def metrics(loss=1.0, finite=True, **grad):
    grad = {"stem": np.float32(1), "readout": np.float32(1), **grad}
    return {
        "levels": np.array([[loss] * 4 + [0] * 4, [1] * 4 + [0] * 4], np.float32),
        "loss": np.float32(loss), "grad_norm": np.float32(2), "update_norm": np.float32(3),
        "param_norm": np.float32(4), "learning_rate": np.float32(0.1), "finite": np.bool_(finite),
        "modules": {"grad": grad},
    }  # fmt: skip


def filled(losses, into):
    for step, loss in enumerate(losses, start=1):
        into.put(step, metrics(loss, np.isfinite(loss)))
    into.read()
    return into


def test_means_are_those_of_the_finite_steps_since_the_last_line():
    losses = np.random.default_rng(0).normal(size=7).astype(np.float32)
    found = filled(losses, Window(3))
    means = found.means()
    assert means["train/loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert found.loss() == means["train/loss"]
    levels = {name: x for name, x in means.items() if name.startswith(noise_levels.PREFIX)}
    assert list(levels) == [f"{noise_levels.PREFIX}{name}" for name in noise_levels.NAMES[:4]]
    assert list(levels.values()) == pytest.approx([losses.mean()] * 4, rel=1e-6)
    found.clear()
    assert found.means() == {"train/skipped_steps": 0.0}
    assert found.loss() == np.inf


def test_skipped_steps_are_told_and_do_not_count(capsys):
    found = filled([1.0, np.nan, 3.0], Window(2))
    assert found.means()["train/loss"] == 2.0
    assert found.means()["train/skipped_steps"] == 1.0
    assert "step 2: loss is nan; all gradients are finite; learning rate 0.1; the step is skipped" \
        in capsys.readouterr().out  # fmt: skip


def test_too_many_in_a_row_end_the_run():
    with pytest.raises(metrics_lib.NotFiniteError, match=r"step 4: .* 3 steps in a row"):
        filled([1.0, np.nan, np.inf, np.nan], Window(3))
    filled([np.nan, np.nan, 1.0, np.nan, np.nan], Window(3))  # not in a row


def test_one_step_is_left_open():
    found = Window(3)
    found.put(1, metrics(5.0))
    assert found.count == 0
    found.put(2, metrics(7.0))
    assert (found.count, found.sums["loss"]) == (1, 5.0)


def test_every_module_that_is_not_finite_is_named(capsys):
    bad = {"stem": np.float32(np.nan), "blocks_0.read": np.float32([1, np.inf]),
           "blocks_0.write": np.float32([1, 1])}  # fmt: skip
    found = Window(3)
    found.put(1, metrics(np.nan, False, **bad))
    found.read()
    said = capsys.readouterr().out
    assert "2 of 4 modules have such gradients: blocks_0.read, stem;" in said
    many = {f"blocks_{i}.read": np.float32(np.nan) for i in range(20)}
    found.put(2, metrics(np.nan, False, **many))
    found.read()
    said = capsys.readouterr().out
    assert "20 of 22 modules" in said
    assert said.count("blocks_") == 8
    assert ", ...; learning rate" in said


def test_figures_of_modules():
    modules = {
        "grad": {"stem": np.float32(3), "blocks_0.read": np.array([3, 4], np.float32)},
        "update": {"stem": np.float32(1), "blocks_0.read": np.array([0.6, 0.8], np.float32)},
        "param": {"stem": np.float32(0), "blocks_0.read": np.array([6, 8], np.float32)},
    }
    figures = metrics_lib.module_figures(modules)
    assert figures == {
        "norms/grad/stem": 3.0,
        "norms/grad/blocks_0.read": 5.0,
        "norms/update_ratio/blocks_0.read": pytest.approx(0.1),
    }
