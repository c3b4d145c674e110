"""Figures while a run trains: in the curves, ranked, not needed for the run to go on."""

import json
import shutil

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.evaluation import classifier
from rin_jax.experiment import device_mesh
from rin_jax.jobs import evaluate, train
from rin_jax.sampling.weights import load_ema
from tests import tiny

CHANGES = {
    "evaluation__every_steps": 3, "evaluation__keep_best": True, "sampler__images_per_device": 10,
    "sampler__num_steps": 2,
}  # fmt: skip
AVERAGES = "decay_0.9", "power_0.1"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module in (train, evaluate):
        monkeypatch.setattr(module, "device_mesh", lambda x: device_mesh(x, jax.devices()[:1]))
    for name, value in {"EPOCHS": 1, "FEWEST_STEPS": 20, "WARMUP": 5}.items():
        monkeypatch.setattr(classifier, name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "device_mesh", lambda x: device_mesh(x, jax.devices()[:1]))
        for name, value in {"EPOCHS": 1, "FEWEST_STEPS": 20, "WARMUP": 5}.items():
            patch.setattr(classifier, name, value)
        train.train(tiny.config(data__data_dir=data_dir, **CHANGES), str(workdir))
    return workdir


def trend_of(workdir) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    found = {}
    for line in lines:
        figures = {name: x for name, x in line.items() if name.startswith("samples/")}
        if figures:
            assert line["step"] not in found
            found[line["step"]] = figures
    return found


def test_every_average_is_measured_at_the_cadence_and_after_the_last_step(trained):
    names = {f"samples/classifier/{measure}/{average}/n20"
             for measure in ("frechet", "agreement") for average in AVERAGES}  # fmt: skip
    found = trend_of(trained)
    assert {step: set(figures) for step, figures in found.items()} == {3: names, 6: names}
    assert not list((trained / "evaluation" / "parts").glob("*"))


def test_the_trend_is_what_an_evaluation_of_as_many_samples_finds(trained, data_dir):
    config = tiny.config(data__data_dir=data_dir, evaluation__num_samples=20, **CHANGES)
    record = evaluate.evaluate(config, str(trained))
    trend = trend_of(trained)[6]
    for name, value in record["figures"].items():
        assert trend[f"samples/{name}/decay_0.9/n20"] == pytest.approx(value, rel=1e-9)


def test_the_average_with_the_lowest_distance_is_kept(trained, data_dir, tmp_path):
    distances = {
        (step, name.split("/")[3]): value
        for step, figures in trend_of(trained).items()
        for name, value in figures.items()
        if "/frechet/" in name
    }
    step, average = min(distances, key=distances.get)
    (kept,) = checkpoints.find(trained / "best")[0]
    assert (kept.step, kept.emas) == (step, [average])
    experiment = tiny.experiment(data__data_dir=data_dir, **CHANGES)
    mesh = device_mesh(experiment, jax.devices()[:1])
    best = load_ema(experiment, mesh, str(trained), "best")
    assert (best.step, best.name) == (step, average)
    if step == 6:
        expected = load_ema(experiment, mesh, str(trained), average).params
        jax.tree.map(np.testing.assert_array_equal, best.params, expected)
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="--ema is best, but .* has none"):
        load_ema(experiment, mesh, str(tmp_path), "best")


def test_a_finished_run_that_lacks_its_last_figures_makes_them(trained, data_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    curves = tmp_path / "run" / "metrics.jsonl"
    lines = curves.read_text().splitlines()
    kept = [x for x in lines if not (json.loads(x)["step"] == 6 and '"samples/' in x)]
    assert len(kept) == len(lines) - 1
    curves.write_text("".join(f"{x}\n" for x in kept))
    train.train(tiny.config(data__data_dir=data_dir, **CHANGES), str(tmp_path / "run"))
    assert trend_of(tmp_path / "run") == trend_of(trained)


def test_training_goes_on_without_a_network_that_lacks_its_weights(data_dir, tmp_path, capsys):
    changes = CHANGES | {"evaluation__networks": ("inception",)}
    train.train(tiny.config(data__data_dir=data_dir, **changes), str(tmp_path))
    out = capsys.readouterr().out
    (said,) = [line for line in out.splitlines() if "training goes on without" in line]
    assert "evaluation.inception_weights is not set; set it to a copy of" in said
    assert "6726825d" in said
    assert trend_of(tmp_path) == {}
    train.train(tiny.config(data__data_dir=data_dir, **changes), str(tmp_path))
    assert "is trained to step 6" in capsys.readouterr().out
