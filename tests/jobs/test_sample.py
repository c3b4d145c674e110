"""The job that samples: labels, files, and mistakes before anything is loaded."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.evaluation import sample_files
from rin_jax.experiment import device_mesh
from rin_jax.interop import export_format
from rin_jax.jobs import export, sample
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.sampling.labels import choose as choose_labels
from tests import tiny
from tests.interop import exports
from tests.sampling.test_generate import save

LINEAR = {"name": "linear"}
SMALL = {"sampler__images_per_device": 4, "sampler__num_steps": 2}


def run(config, workdir, **flags):
    plain = {
        "num": 6, "classes": [], "ema": None, "checkpoint": None, "export": None, "show": False,
        "windows": None, "rollout_latents": "reset",
    }  # fmt: skip
    return sample.sample(config, str(workdir), **plain | flags)


@pytest.mark.parametrize("rule", [["3", "7"], ["5"], ["all"], ["balanced"], ["random"], []])
def test_more_images_keep_the_labels_of_the_first(rule):
    many = choose_labels(rule, 230, 23, seed=1)
    assert many.dtype == np.int32
    np.testing.assert_array_equal(choose_labels(rule, 31, 23, seed=1), many[:31])
    assert 0 <= many.min() < many.max() < 23 or rule == ["5"]


def test_rules_of_labels():
    np.testing.assert_array_equal(choose_labels(["3", "7"], 5, 10, 0), [3, 7, 3, 7, 3])
    np.testing.assert_array_equal(choose_labels(["all"], 5, 3, 0), [0, 1, 2, 0, 1])
    assert len(choose_labels(["all"], None, 23, 0)) == 115  # whole rounds, a hundred at least
    assert len(choose_labels([], None, 23, 0)) == 100
    assert len(set(choose_labels([], None, 1000, 0))) == 10
    balanced = choose_labels(["balanced"], 60, 20, 0)
    for first in (0, 20, 40):
        np.testing.assert_array_equal(np.sort(balanced[first : first + 20]), np.arange(20))
    assert (balanced[:20] != balanced[20:40]).any()
    assert (balanced != choose_labels(["balanced"], 60, 20, 1)).any()
    names = ["Town", "River", "1"]  # a number is a number where it is a name too
    np.testing.assert_array_equal(choose_labels(["River", " 0", "1"], 3, 3, 0, names), [1, 0, 1])
    draws = choose_labels(["random"], 4000, 20, 0)
    counts = np.bincount(draws, minlength=20)
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)  # uniform,
    assert np.bincount(draws[:20]).max() > 1  # and not by turns
    assert (choose_labels([], 5, 0, 0) == NO_LABEL).all()


@pytest.mark.parametrize(
    ("classes", "num", "num_classes", "words"),
    [
        (["3", "10"], 4, 10, r"--classes has 10, but the model knows 10 classes: 0\.\.9"),
        (["-1"], 4, 10, r"--classes has -1, .* 0\.\.9"),
        (["cat"], 4, 10, r"--classes has cat, .* one of all, balanced, random alone"),
        (["all", "3"], 4, 10, r"--classes has all, .* alone"),
        (["3"], 4, 0, r"--classes has 3, but the model knows 0 classes"),
        (["all"], 4, 10, r"--num is 4, but --classes=all needs an image of each of 10"),
        ([], 0, 10, r"--num is 0; it must be at least 1"),
    ],
)
def test_labels_that_cannot_be(classes, num, num_classes, words):
    with pytest.raises(ConfigError, match=words):
        choose_labels(classes, num, num_classes, 0)


def test_a_name_that_is_not_known():
    words = r"--classes has Twon, .* 0\.\.2 \(Town, River\); .* alone; did you mean Town\?"
    with pytest.raises(ConfigError, match=words):
        choose_labels(["Twon"], 4, 3, 0, ["Town", "River", "2"])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save(path, tiny.config(), steps=(1, 3))
    return path


def test_files(workdir):
    """The same pictures as PNGs, arrays and grid; more images and another part size change none."""
    config = tiny.config(**SMALL)
    written = run(config, workdir, classes=["7", "2"])
    assert written.name.startswith("00000003-decay_0.9-ddim_2-guidance_0-seed_0-n6-")
    arrays = dict(np.load(written / "samples.npz"))
    assert arrays["images"].shape == (6, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"], [7, 2] * 3)
    np.testing.assert_array_equal(arrays["indices"], np.arange(6))
    assert arrays["seed"] == config.seed
    for i, image in enumerate(arrays["images"]):
        alone = np.asarray(Image.open(written / f"{i:06d}.png"))
        np.testing.assert_array_equal(alone, image[..., 0])
    grid = np.asarray(Image.open(f"{written}.png"))
    first = arrays["images"][1, :, :, 0]  # class 2 comes first
    np.testing.assert_array_equal(grid[2:98:12, 2:98:12, 0], first)
    record = json.loads((written / "record.json").read_text())
    assert record["sampler"]["num_steps"] == record["evaluations"] == 2
    assert record["class_names"] == [str(i) for i in range(10)]

    more = dict(np.load(run(config, workdir, classes=["7", "2"], num=9) / "samples.npz"))
    np.testing.assert_array_equal(more["images"][:6], arrays["images"])
    other = run(config, workdir, classes=["7", "2"], checkpoint=1)
    assert other.name.startswith("00000001-")
    assert (np.load(other / "samples.npz")["images"] != arrays["images"]).any()


def contents(folder):
    """The bytes of every file below a folder, by its path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_nothing_is_written_over(workdir, tmp_path, monkeypatch):
    """Images that are made otherwise, or fewer of them, leave the others as they are."""
    made = []

    def grey(device, indices):  # in another shade for each job
        return np.full((4, 8, 8, 1), len(made), np.uint8), None

    monkeypatch.setattr(
        sample, "make_device_sampler", lambda *args: made.append(1) or (lambda *more: grey)
    )
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    first = run(tiny.config(**SMALL), tmp_path)
    before, folders = contents(tmp_path / "samples"), {first.name}
    for changes, flags in (
        ({"seed": 1}, {}), ({"sampler__num_steps": 3}, {}), ({"sampler__schedule": LINEAR}, {}),
        ({"sampler__guidance_scale": 1.0}, {}), ({}, {"num": 4}), ({}, {"classes": ["1"]}),
        ({}, {"ema": "power_0.1"}), ({}, {"checkpoint": 1}),
    ):  # fmt: skip
        folder = run(tiny.config(**SMALL | changes), tmp_path, **flags)
        folders.add(folder.name)
        assert len(list(folder.glob("0*.png"))) == flags.get("num", 6)
    assert len(folders) == 9
    assert before.items() <= contents(tmp_path / "samples").items()
    assert run(tiny.config(**SMALL), tmp_path) == first
    assert before.keys() <= contents(tmp_path / "samples").keys()


def test_interrupted_it_goes_on_and_ends_with_the_same_files(workdir, tmp_path, monkeypatch):
    """Also if other images were begun in between."""
    two = jax.devices()[:2]
    monkeypatch.setattr(sample, "device_mesh", lambda experiment: device_mesh(experiment, two))
    config, flags = tiny.config(**SMALL), {"num": 19, "classes": ["random"]}
    quiet, other, killed = (tmp_path / name for name in ("quiet", "other", "killed"))
    for path in (quiet, other, killed):
        shutil.copytree(workdir / "checkpoints", path / "checkpoints")
    run(config, quiet, **flags)
    drawn, write = [], sample.Parts.write

    def dies(parts, batches):
        if drawn.append(sum(len(rows) for rows, _ in batches)) or len(drawn) == 2:
            raise KeyboardInterrupt  # the files of these images are there, their part is not
        write(parts, batches)

    monkeypatch.setattr(sample.Parts, "write", dies)
    for path in (killed, other):
        drawn.clear()
        with pytest.raises(KeyboardInterrupt):
            run(config, path, **flags)
        assert not list(path.glob("samples/*/samples.npz"))
    monkeypatch.setattr(sample.Parts, "write", lambda *a: (drawn.append(1), write(*a))[-1])
    drawn.clear()
    run(config, killed, **flags)
    assert len(drawn) == 2  # of three rounds of 2 x 4 images
    assert contents(killed / "samples") == contents(quiet / "samples")
    with monkeypatch.context() as patch:
        patch.setattr(sample, "write", dies)
        with pytest.raises(TypeError):  # at the very end
            run(tiny.config(**SMALL, seed=4), other, **flags)
    drawn.clear()
    run(config, other, **flags)
    assert len(drawn) == 2
    assert contents(quiet / "samples").items() <= contents(other / "samples").items()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    config = tiny.config(**SMALL, data__image_size=64, model__patch_size=32)
    experiment, needed = save(tmp_path, config), []

    def noise(device, indices):
        rng = np.random.default_rng(indices[0])
        return rng.integers(0, 256, (4, *experiment.rin.example_shape), np.uint8), None

    def traced(function):
        def call(*args):
            tracemalloc.start()
            function(*args)
            needed.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

        return call

    monkeypatch.setattr(sample, "make_device_sampler", lambda *args: lambda *more: noise)
    monkeypatch.setattr(sample, "draw", traced(sample.draw))
    monkeypatch.setattr(sample, "write", traced(sample.write))
    for num in (160, 1600):
        run(config, tmp_path, num=num)
    drawing, writing, drawing_more, writing_more = needed
    tenth = 160 * 64 * 64
    assert drawing_more - drawing < tenth
    assert writing_more - writing < tenth
    assert min(drawing, writing) > 100 * 64 * 64 / 2  # it is seen at all


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """An export of that run, which names its classes itself."""
    path = tmp_path_factory.mktemp("export")
    model = export.checkpoint_model(tiny.config(), str(workdir), "power_0.1")
    model = dataclasses.replace(model, class_names=exports.NAMES)
    return exports.write(path, model)


def test_any_checkpoint_is_exported(workdir):
    found = [export.checkpoint_model(tiny.config(), str(workdir), None, x) for x in (1, None)]
    assert [model.step for model in found] == [1, 3]
    with pytest.raises(ConfigError, match=r"no checkpoint 2 in .*; there are 1, 3"):
        export.checkpoint_model(tiny.config(), str(workdir), None, 2)


def test_an_export_draws_what_its_run_draws(workdir, exported, tmp_path):
    """The same files but for the names of the classes, and not those of another checkpoint."""
    config = tiny.config(**SMALL, seed=4)
    other = np.load(run(config, workdir, checkpoint=1) / "samples.npz")["images"]
    ours = run(config, workdir, ema="power_0.1", show=True)
    theirs = run(config, tmp_path, export=str(exported), show=True)
    classes = {"classes": ["digit 3"], "export": str(exported)}
    assert set(np.load(run(config, tmp_path / "named", **classes) / "samples.npz")["labels"]) == {3}
    assert theirs.name == ours.name
    assert len(sample_files.find(str(theirs), 8, 1)) == 6  # the folder can be measured
    beside = sorted(path.name for path in tmp_path.glob("samples/*.[pg][ni][gf]"))
    kinds = "-reads.png", "-trajectory.gif", "-trajectory.png", ".png"
    assert beside == [f"{theirs.name}{kind}" for kind in kinds]
    for name in (*beside[:3], *(f"{theirs.name}/{i:06d}.png" for i in range(6))):
        assert (ours.parent / name).read_bytes() == (theirs.parent / name).read_bytes(), name
    first, second = (dict(np.load(path / "samples.npz")) for path in (ours, theirs))
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
    assert (other != first["images"]).any()
    records = [json.loads((path / "record.json").read_text()) for path in (ours, theirs)]
    assert records[1].pop("class_names") == list(exports.NAMES)
    assert records[0].pop("class_names") == [str(i) for i in range(10)]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, {"classes": ["10"]}, r"--classes has 10, .* 0\.\.9"),
        ({"model__latent_dim": 32}, {}, r"the export .*model.latent_dim: checkpoint 16, now 32"),
        ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1}}, {}, r"mesh.data 3 .* does not cover 8"),
        ({}, {"export": "/nowhere/at/all"}, r"there is no folder /nowhere/at/all"),
    ],
)
def test_a_mistake_with_an_export(exported, tmp_path, monkeypatch, changes, flags, words):
    def never(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(export_format, "read_weights", never)
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        run(tiny.config(**changes), tmp_path / "to", **{"export": str(exported)} | flags)
    with pytest.raises(AssertionError, match="weights were loaded"):
        run(tiny.config(), tmp_path / "to", export=str(exported))
    assert not (tmp_path / "to").exists()


def test_names_of_classes():
    config = tiny.experiment(data__name="fashion_mnist", data__num_classes=12).config
    names = sample.class_names(config, ())
    assert names[0] == "T-shirt/top"
    assert names[9:] == ["Ankle boot", "10", "11"]
    mine = tiny.experiment(data__name="mine").config
    assert sample.class_names(mine, ()) == list("0123456789")
    assert sample.class_names(config, ["own"]) == ["own", *(str(i) for i in range(1, 12))]
    assert sample.class_names(tiny.experiment(data__num_classes=0).config, ()) == []


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, {"classes": ["10"]}, r"--classes has 10, .* 0\.\.9"),
        ({"model__latent_dim": 32}, {}, r"model.latent_dim: checkpoint 16, now 32"),
        ({"sampler__num_steps": 1_000_000}, {}, r"num_steps is 1000000, more than its grid"),
        ({}, {"ema": "decay_0.5"}, r"--ema is decay_0.5, but .* has decay_0.9, power_0.1"),
        ({}, {"checkpoint": 2}, r"no checkpoint 2 in .*; there are 1, 3"),
        ({"sampler__guide": "/nowhere", "sampler__guidance_scale": 1.0}, {},
         r"no checkpoint in /nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_costs_nothing(workdir, monkeypatch, changes, flags, words):
    def never(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(checkpoints, "load", never)
    with pytest.raises(ConfigError, match=words):
        run(tiny.config(**changes), workdir, **flags)
    with pytest.raises(AssertionError, match="weights were loaded"):
        run(tiny.config(), workdir)
