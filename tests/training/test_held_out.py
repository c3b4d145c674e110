"""The held-out loss: of each other example once, as it is, and the same each time."""

import jax
import numpy as np
import pytest

from rin_jax.diffusion.objective import Objective
from rin_jax.runtime import sharding
from rin_jax.training import curves
from rin_jax.training.held_out import HeldOut
from tests import tiny

COUNT = 21  # more than a batch of 16


class Source:
    """Random examples as its split "test"."""

    def __init__(self, experiment):
        self.data = experiment.data
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 10}

    def other_split(self, name):
        assert name == "test"
        return self


def measured(workdir, devices=1, **changes) -> float:
    experiment = tiny.experiment(**changes)
    mesh = sharding.make_mesh(devices, 1, 1, jax.devices()[:devices])
    held_out = HeldOut(experiment, Source(experiment), str(workdir), mesh)
    params = tiny.state(experiment, mesh).params
    figures = held_out.measure(params)
    assert held_out.measure(params) == figures
    assert held_out.lacks(1)
    return figures[curves.HELD_OUT]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_example_counts_once_and_is_not_mirrored(
    tmp_path, monkeypatch, devices, accumulation
):
    monkeypatch.setattr(Objective, "errors", lambda *arguments: arguments[4][:, 0, 0, 0])
    found = measured(tmp_path, devices, train__accumulation_steps=accumulation)
    corner = Source(tiny.experiment()).images[:, 0, 0, 0] / 127.5 - 1
    assert found == pytest.approx(corner.mean(), abs=1e-6)


def test_nothing_is_dropped_and_devices_do_not_matter(tmp_path):
    found = measured(tmp_path, model__dropout=0.5, model__drop_path=0.5)
    assert found == measured(tmp_path, model__dropout=0.0, model__drop_path=0.0)
    assert measured(tmp_path, devices=8) == pytest.approx(found, rel=1e-5)
    assert measured(tmp_path, seed=1) != pytest.approx(found, rel=1e-2)


def test_a_data_set_without_that_split_has_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Source, "other_split", lambda self, name: None)
    experiment = tiny.experiment()
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    held_out = HeldOut(experiment, Source(experiment), str(tmp_path), mesh)
    assert "digits has no other split 'test'; there is no held-out loss" in capsys.readouterr().out
    assert held_out.measure({}) == {}
    assert not held_out.lacks(1)
