"""The window of metrics: means that an interruption does not change, and steps that are skipped."""

import json

import numpy as np
import pytest

from rin_jax.training import metrics as metrics_lib
from rin_jax.training.metrics import Window


def metrics(loss=1.0, finite=True, **grad):
    grad = {"stem": np.float32(1), "readout": np.float32(1), **grad}
    return {
        "loss": np.float32(loss), "grad_norm": np.float32(2), "update_norm": np.float32(3),
        "param_norm": np.float32(4), "learning_rate": np.float32(0.1), "finite": np.bool_(finite),
        "modules": {"grad": grad},
    }  # fmt: skip


def filled(losses, into):
    for step, loss in enumerate(losses, start=1):
        into.put(step, metrics(loss, np.isfinite(loss)))
    into.read()
    return into


def test_means_do_not_depend_on_where_the_run_was_interrupted():
    losses = np.random.default_rng(0).normal(size=7).astype(np.float32)
    whole = filled(losses, Window(3))
    first = filled(losses[:4], Window(3))
    facts = json.loads(json.dumps(first.facts()))
    resumed = filled(losses[4:], Window(3, **facts))
    assert resumed.means() == whole.means()
    assert whole.means()["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert whole.loss() == whole.means()["loss"]
    whole.clear()
    assert whole.means() == {"skipped_steps": 0.0}
    assert whole.loss() == np.inf


def test_skipped_steps_are_told_and_do_not_count(capsys):
    found = filled([1.0, np.nan, 3.0], Window(2))
    assert found.means()["loss"] == 2.0
    assert found.means()["skipped_steps"] == 1.0
    assert "step 2: loss is nan; all gradients are finite; learning rate 0.1; the step is skipped" \
        in capsys.readouterr().out  # fmt: skip


def test_too_many_in_a_row_end_the_run_even_across_an_interruption():
    first = filled([1.0, np.nan, np.nan], Window(3))
    with pytest.raises(FloatingPointError, match=r"step 1: .* 3 steps in a row"):
        filled([np.inf], Window(3, **first.facts()))
    filled([np.nan, np.nan, 1.0, np.nan, np.nan], Window(3))  # not in a row


def test_one_step_is_left_open():
    found = Window(3)
    found.put(1, metrics(5.0))
    assert found.count == 0
    found.put(2, metrics(7.0))
    assert (found.count, found.sums["loss"]) == (1, 5.0)


def norms(**bad):
    fine = {
        "stem": np.ones(()), "latents": np.ones(()), "readout": np.ones(()),
        "prev_latent_norm": np.ones(()), "blocks_0.read": np.ones(3), "blocks_0.write": np.ones(3),
        "blocks_0.compute": np.ones((3, 2)), "blocks_1.read": np.ones(1),
        "blocks_1.compute": np.ones((1, 4)), "blocks_1.write": np.ones(1),
    }  # fmt: skip
    for name, index in bad.items():
        fine[name.replace("__", ".")][index] = np.nan
    return fine


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({}, None),
        ({"readout": (), "blocks_1__write": 0}, "readout"),
        ({"blocks_0__write": slice(0, 2), "stem": ()}, "blocks_0.write[1]"),
        ({"blocks_0__read": 2, "blocks_0__compute": (1, 1)}, "blocks_0.read[2]"),
        ({"blocks_0__read": 1, "blocks_0__compute": (1, slice(None))}, "blocks_0.compute[1, 1]"),
        ({"blocks_0__write": slice(None), "blocks_1__read": 0}, "blocks_1.read[0]"),
        ({"stem": (), "prev_latent_norm": ()}, "prev_latent_norm"),
    ],
)
def test_the_first_in_the_backward_pass_is_named(bad, expected):
    assert metrics_lib.first_nonfinite(norms(**bad)) == expected


def test_figures_of_modules():
    modules = {
        "grad": {"stem": np.float32(3), "blocks_0.read": np.array([3, 4], np.float32)},
        "update": {"stem": np.float32(1), "blocks_0.read": np.array([0.6, 0.8], np.float32)},
        "param": {"stem": np.float32(0), "blocks_0.read": np.array([6, 8], np.float32)},
    }
    figures = metrics_lib.module_figures(modules)
    assert figures == {
        "grad_norm/stem": 3.0,
        "grad_norm/blocks_0.read": 5.0,
        "update_ratio/blocks_0.read": pytest.approx(0.1),
    }
