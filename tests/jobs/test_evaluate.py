"""--mode=evaluate: the same record however it is computed, and what is refused before sampling."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.evaluation import classifier
from rin_jax.experiment import device_mesh
from rin_jax.jobs import evaluate, reference, sample
from rin_jax.sampling import measuring
from tests import tiny
from tests.sampling.test_generate import save

COUNT = 23  # no multiple of any batch
CHANGES = {
    "evaluation__num_samples": COUNT, "sampler__images_per_device": 4, "sampler__num_steps": 2,
    "evaluation__labels": "data",
}  # fmt: skip

pytestmark = pytest.mark.slow


def config(data_dir, **changes):
    return tiny.config(data__data_dir=str(data_dir), **{**CHANGES, **changes})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data_dir):
    """A workdir with a checkpoint, the classifier, the real images' statistics and a record."""
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, config(data_dir))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "EPOCHS", 1)  # it need not be good
        patch.setattr(classifier, "FEWEST_STEPS", 20)
        patch.setattr(classifier, "WARMUP", 5)
        patch.setattr(evaluate, "device_mesh", one_device)
        evaluate.evaluate(config(data_dir), str(workdir))
    return workdir


def one_device(experiment):
    return device_mesh(experiment, jax.devices()[:1])


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One device, for which a program is compiled once."""
    monkeypatch.setattr(evaluate, "device_mesh", one_device)
    monkeypatch.setattr(reference, "device_mesh", one_device)
    monkeypatch.setattr(sample, "device_mesh", one_device)


@pytest.fixture
def workdir(evaluated, tmp_path):
    """The same without the record."""
    shutil.copytree(evaluated, tmp_path / "run")
    (record_path(tmp_path / "run")).unlink()
    return tmp_path / "run"


def record_path(workdir):
    (path,) = (workdir / "evaluation").glob("*.json")
    return path


def record(workdir):
    return json.loads(record_path(workdir).read_text())


def test_the_record_says_what_the_figures_are_of(evaluated, data_dir, capsys):
    found = record(evaluated)
    assert set(found["figures"]) == {"classifier/frechet", "classifier/agreement"}
    assert found["num_samples"] == COUNT
    assert found["labels"] == "data"
    assert found["reference"]["classifier"]["images"] == 64
    assert {"step", "ema", "seed", "weights", "sampler", "versions", "device", "date"} <= set(found)
    assert not (evaluated / "evaluation" / "parts").exists() or not list(
        (evaluated / "evaluation" / "parts").iterdir()
    )
    again = evaluate.evaluate(config(data_dir), str(evaluated))
    assert again == found
    assert "from 23 samples, and is larger than" in capsys.readouterr().out


def test_a_record_that_is_there_is_not_computed_again(evaluated, data_dir, monkeypatch):
    monkeypatch.setattr(measuring, "figures", lambda *_: pytest.fail("it samples"))
    assert evaluate.evaluate(config(data_dir), str(evaluated)) == record(evaluated)


def test_killed_three_times_it_ends_with_the_same_record(
    evaluated, workdir, data_dir, monkeypatch
):
    monkeypatch.setattr(measuring, "WRITE_SECONDS", 0.0)  # after each of six batches
    write, calls = measuring.Parts.write, []

    def dies(parts, batches):
        if len(calls) < 3:
            calls.append(batches)
            if len(calls) % 2:
                raise KeyboardInterrupt
        write(parts, batches)

    monkeypatch.setattr(measuring.Parts, "write", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate(config(data_dir), str(workdir))
    sampled = []
    make = evaluate.make_device_sampler

    def noted(*arguments):
        sample_from = make(*arguments)

        def sampler(params, labels):
            images = sample_from(params, labels)
            return lambda device, rows: sampled.append(len(rows)) or images(device, rows)

        return sampler

    monkeypatch.setattr(evaluate, "make_device_sampler", noted)
    evaluate.evaluate(config(data_dir), str(workdir))
    assert sum(sampled) < COUNT, "it began anew"
    assert record(workdir) == record(evaluated)


def test_three_devices_find_what_one_finds(evaluated, workdir, data_dir, monkeypatch):
    three = jax.devices()[:3]
    monkeypatch.setattr(evaluate, "device_mesh", lambda experiment: device_mesh(experiment, three))
    evaluate.evaluate(config(data_dir), str(workdir))
    assert record(workdir)["figures"] == pytest.approx(record(evaluated)["figures"], rel=1e-6)


def test_a_folder_of_the_same_images_has_the_same_distance(evaluated, workdir, data_dir):
    """Grey PNGs that --mode=sample wrote, measured as if another model had made them."""
    settings = config(data_dir, evaluation__labels="balanced")
    evaluate.evaluate(settings, str(workdir))
    expected = record(workdir)["figures"]["classifier/frechet"]
    flags = COUNT, ["balanced"], None, None, None, False, None, "reset"
    sample.sample(settings, str(workdir), *flags)
    (folder,) = (path for path in (workdir / "samples").iterdir() if path.is_dir())
    found = evaluate.evaluate(settings, str(workdir), samples=str(folder))
    assert found["num_samples"] == COUNT
    assert set(found["figures"]) == {"classifier/frechet"}  # nothing was asked for
    assert found["figures"]["classifier/frechet"] == pytest.approx(expected, rel=1e-5)
    Image.new("L", (9, 8)).save(folder / "wider.png")
    with pytest.raises(ConfigError, match=r"wider\.png is 8 x 9 L, and the real images are 8 x 8"):
        evaluate.evaluate(settings, str(workdir), samples=str(folder))


def test_the_reference_of_another_split_is_named_and_of_another_size_refused(
    evaluated, tmp_path, data_dir
):
    """Statistics by --mode=reference in a folder of their own, used from another workdir."""
    other = tmp_path / "other"
    shutil.copytree(evaluated / "evaluation", other / "evaluation")
    shutil.rmtree(other / "evaluation" / "reference")
    (path,) = reference.reference(config(data_dir), str(other))
    (kept,) = (evaluated / "evaluation" / "reference").iterdir()
    assert path.name == kept.name
    shutil.copytree(evaluated / "checkpoints", other / "checkpoints")
    given = config(data_dir, evaluation__reference=str(path))
    assert evaluate.evaluate(given, str(other))["figures"] == record(evaluated)["figures"]
    arrays = dict(np.load(path))
    description = json.loads(str(arrays["description"])) | {"image_size": 16}
    np.savez(tmp_path / "wrong.npz", **arrays | {"description": json.dumps(description)})
    wrong = config(data_dir, evaluation__reference=str(tmp_path / "wrong.npz"))
    with pytest.raises(ConfigError, match="image_size is 16 there and 8 here"):
        evaluate.evaluate(wrong, str(other))


def test_features_that_are_not_finite_are_said(workdir, data_dir, monkeypatch):
    def extract(params, images):
        found = classifier.extract(params, images)
        return found | {"pool": found["pool"] * jnp.nan}

    open_network = evaluate.real_images.open_network

    def broken(*arguments):
        return open_network(*arguments)._replace(extract=extract)

    monkeypatch.setattr(evaluate.real_images, "open_network", broken)
    with pytest.raises(ConfigError, match="23 of 23 images have NaN or infinity"):
        evaluate.evaluate(config(data_dir), str(workdir))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__num_samples": 0}, "evaluation.num_samples is 0; it must be at least 1"),
        ({"evaluation__networks": ("inception",)}, "evaluation.inception_weights is not set"),
        ({"evaluation__networks": ("inception",), "evaluation__inception_weights": "/no/file"},
         "evaluation.inception_weights is /no/file, which is not there"),
        ({"evaluation__networks": ("inception_v3",)}, "choose one of classifier"),
        ({"evaluation__measures": ("fid",)}, "choose one of frechet"),
        ({"evaluation__measures": ("inception_score",)}, "none that is defined for 'classifier'"),
        ({"evaluation__labels": "sorted"}, "choose one of random, balanced, data"),
        ({"evaluation__reference": "/no/statistics.npz"}, "/no/statistics.npz, which is not there"),
        ({"evaluation__measures": ("kid",)}, "kid needs at least 1,000 real images"),
    ],
)  # fmt: skip
def test_what_is_refused(workdir, data_dir, changes, message):
    before = sorted(path for path in workdir.rglob("*.json"))
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(config(data_dir, **changes), str(workdir))
    assert sorted(path for path in workdir.rglob("*.json")) == before
