"""--mode=evaluate of videos: which frames are compared, and predictions with the truth."""

import json
import shutil

import jax
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.data import moving_digits
from rin_jax.data.source import open_source
from rin_jax.evaluation import classifier, frames
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.jobs import evaluate
from rin_jax.sampling import measuring
from rin_jax.sampling.conditions import make_conditions
from rin_jax.sampling.generate import make_generate
from rin_jax.sampling.weights import load_ema
from rin_jax.training.trend import Trend
from tests import tiny
from tests.sampling.test_generate import save

FRAMES, GIVEN, COUNT, TEST_CLIPS = 5, 2, 11, 8
CLIP = {"frames": FRAMES, "cond_frames": GIVEN, "stride": 1, "window": "first"}
CHANGES = {
    "data__name": "moving_digits", "data__split": "train", "data__image_size": 12,
    "data__num_classes": 0, "data__clip": CLIP,
    "model__video": {"patch_frames": 3, "positions": "before", "written": True},
    "evaluation__measures": ("frechet", "agreement", "psnr", "ssim"),
    "evaluation__num_samples": COUNT, "evaluation__trend_samples": COUNT,
    "evaluation__real_samples": 7, "sampler__images_per_device": 4, "sampler__num_steps": 2,
}  # fmt: skip
OF_FRAMES = {
    f"{measure}{prediction}/{which}"
    for measure in ("psnr", "ssim")
    for prediction in ("", "_copied", "_extrapolated")
    for which in ("first", "last", "mean")
}

pytestmark = pytest.mark.slow


def config(data_dir, **changes):
    return tiny.config(data__data_dir=str(data_dir), **{**CHANGES, **changes})


def one_device(experiment):
    return device_mesh(experiment, jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few clips, one device and a classifier that need not be good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "CLIPS", {"train": 40, "test": TEST_CLIPS})
        patch.setattr(evaluate, "device_mesh", one_device)
        for name, value in {"EPOCHS": 1, "FEWEST_STEPS": 5, "BATCH": 8}.items():
            patch.setattr(classifier, name, value)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data_dir):
    """(workdir with a checkpoint, what it needs to be measured and a record; the record)."""
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, config(data_dir))
    return workdir, evaluate.evaluate(config(data_dir), str(workdir))


@pytest.fixture
def workdir(evaluated, tmp_path):
    """The same without the record."""
    shutil.copytree(evaluated[0], tmp_path / "run")
    for path in (tmp_path / "run" / "evaluation").glob("*.json"):
        path.unlink()
    return tmp_path / "run"


def test_frames_are_measured_without_a_network(evaluated, workdir, data_dir):
    alone = config(data_dir, evaluation__networks=(), evaluation__measures=("psnr", "ssim"))
    record = evaluate.evaluate(alone, str(workdir))
    assert record["figures"] == {name: evaluated[1]["figures"][name] for name in OF_FRAMES}


def test_the_record_says_which_clips_and_frames_are_compared(evaluated):
    _, record = evaluated
    assert set(record["figures"]) == {"classifier/frechet", "classifier/agreement"} | OF_FRAMES
    assert record["num_samples"] == COUNT
    clip = record["clip"]
    assert {name: clip[name] for name in CLIP} == CLIP
    assert clip["image_size"] == 12
    assert clip["count_cond_frames"] is True
    assert clip["given_split"] == "test"
    reference = record["reference"]["classifier"]
    assert (reference["split"], reference["images"]) == ("test", 7)
    assert reference["clip"] == {"frames": [0, FRAMES], "stride": 1, "window": "first"}
    json.dumps(record, allow_nan=False)


def test_frames_are_compared_with_those_that_followed(evaluated, data_dir):
    """The same by another path: all samples, then the measures."""
    workdir, record = evaluated
    experiment = make_experiment(config(data_dir))
    mesh = one_device(experiment)
    conditions = make_conditions(experiment, np.zeros(COUNT, np.int32))
    indices = np.arange(COUNT)
    params = load_ema(experiment, mesh, str(workdir)).params
    predicted = make_generate(experiment, mesh, 0)(params, indices, conditions.of(indices))
    data = make_experiment(config(data_dir, data__split="test")).data
    source = open_source(data)
    truth = np.stack([source[i % TEST_CLIPS]["image"] for i in range(COUNT)])
    for name, measure in {"psnr": frames.psnr, "ssim": frames.ssim}.items():
        expected = measure(predicted, truth).mean(0)
        assert record["figures"][f"{name}/first"] == pytest.approx(expected[0], rel=1e-6)
        assert record["figures"][f"{name}/last"] == pytest.approx(expected[-1], rel=1e-6)
        assert record["figures"][f"{name}/mean"] == pytest.approx(expected.mean(), rel=1e-6)
    given = np.stack([source[i % TEST_CLIPS]["frames"][-1:] for i in range(COUNT)])
    copied = frames.psnr(np.repeat(given, FRAMES - GIVEN, axis=1), truth).mean(0)
    assert record["figures"]["psnr_copied/last"] == pytest.approx(copied[-1], rel=1e-6)


def test_killed_it_ends_with_the_same_figures(evaluated, workdir, data_dir, monkeypatch):
    monkeypatch.setattr(measuring, "WRITE_SECONDS", 0.0)  # after each batch
    write, calls = measuring.Parts.write, []

    def dies(parts, batches):
        calls.append(batches)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(parts, batches)

    monkeypatch.setattr(measuring.Parts, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(config(data_dir), str(workdir))
    assert evaluate.evaluate(config(data_dir), str(workdir)) == evaluated[1]
    assert len(calls) == 4, "it began anew"


def test_given_frames_are_left_out_of_what_is_compared(evaluated, workdir, data_dir, capsys):
    found = evaluate.evaluate(
        config(data_dir, evaluation__count_cond_frames=False), str(workdir)
    )
    before = evaluated[1]
    assert found["figures"]["classifier/frechet"] != before["figures"]["classifier/frechet"]
    for name in OF_FRAMES:
        assert found["figures"][name] == before["figures"][name]
    assert found["clip"]["count_cond_frames"] is False
    assert found["reference"]["classifier"]["clip"]["frames"] == [GIVEN, FRAMES]
    assert "Compared are frames 3 to 5 of clips" in capsys.readouterr().out


def test_the_trend_is_what_an_evaluation_finds(evaluated, workdir, data_dir):
    experiment = make_experiment(config(data_dir))
    mesh, source = one_device(experiment), open_source(experiment.data)
    params = load_ema(experiment, mesh, str(workdir)).params
    with Trend(experiment, source, str(workdir), mesh) as trend:
        found = trend.figures(1, {"mine": params})
    expected = {f"samples/{name}/mine/n{COUNT}": x for name, x in evaluated[1]["figures"].items()}
    assert found == pytest.approx(expected, rel=1e-9)


def test_generated_clips_are_compared_with_those_of_the_split(tmp_path, data_dir, capsys):
    """No frames are given, so that there are none to compare predictions with."""
    changes = {"data__clip": CLIP | {"cond_frames": 0}, "data__num_classes": 10}
    changes["model__video"] = CHANGES["model__video"] | {"patch_frames": 5}
    generated = config(data_dir, **changes)
    save(tmp_path, generated)
    record = evaluate.evaluate(generated, str(tmp_path))
    assert set(record["figures"]) == {"classifier/frechet", "classifier/agreement"}
    assert record["reference"]["classifier"]["split"] == "train"
    assert record["labels"] == "balanced"
    out = capsys.readouterr().out
    assert "psnr and ssim of evaluation.measures are left out: the network is given no" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__networks": ("inception",)}, "does not see clips; choose of classifier, i3d"),
        ({"evaluation__networks": ("i3d",)}, "needs clips of 9 frames, but 5 are compared"),
        ({"data__image_size": 8}, "11 x 11 pixels, but the frames have 8: leave 'ssim' out"),
        ({"evaluation__count_cond_frames": 1}, "count_cond_frames is 1; it must be True or False"),
        ({"evaluation__real_samples": 0}, "evaluation.real_samples is 0; it must be at least 1"),
    ],
)
def test_what_is_refused(workdir, data_dir, changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(config(data_dir, **changes), str(workdir))


def test_a_folder_is_one_of_images(workdir, data_dir):
    with pytest.raises(ConfigError, match="meant for a folder of images, but data.clip is set"):
        evaluate.evaluate(config(data_dir), str(workdir), samples=str(workdir))
