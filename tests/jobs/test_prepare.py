"""The job that prepares: from the user's folder or files to a run, and what it shows."""

import gzip
import io
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tensorflow_datasets.image_classification import mnist

from rin_jax import ConfigError, main
from rin_jax.data import moving_digits
from rin_jax.experiment import make_experiment
from rin_jax.jobs import prepare as prepare_lib
from rin_jax.jobs import train as train_lib
from rin_jax.runtime import sharding
from tests import tiny
from tests.data import awkward, small_sets
from tests.test_main import command

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist


def config(data_dir, **changes):
    options = {"data_dir": str(data_dir), "split": "train", "flip": False, **changes}
    return tiny.config(**{f"data__{field}": value for field, value in options.items()})


def prepare(config, workdir=None, folder=None, downloaded=None, encoding=None, fit=None):
    return prepare_lib.prepare(config, workdir, folder, downloaded, encoding, fit)


def cells(path, size, columns):
    """The images of a captioned grid, [N, size, size, 3], enlarged as the grid enlarges them."""
    picture = np.asarray(Image.open(path))
    factor = -(-96 // size)
    width, height = size * factor + 2, size * factor + 14 + 2
    rows = picture.shape[0] // height
    return np.stack(
        [
            picture[2 + row * height :, 2 + column * width :][: size * factor, : size * factor]
            for row in range(rows)
            for column in range(columns)
        ]
    )[:, ::factor, ::factor]


def first_batch(experiment):
    """The first batch that training reads."""
    one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return next(train_lib.open_batches(experiment, one, train_lib.open_data(experiment), 0))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="--downloaded is .*, but there is no such folder"):
        prepare(config(tmp_path, name="fashion_mnist"), downloaded=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="seed is -1; it must be in"):
        prepare(tiny.config(seed=-1))


def test_classes_that_the_data_set_does_not_have_are_told(capsys):
    """The number that the network has may be meant; that nobody notices it may not."""
    train_lib.open_data(make_experiment(tiny.config(data__num_classes=12)))
    said = "data.num_classes is 12, but 'digits' has 10 classes: the network never sees the others"
    assert said in capsys.readouterr().out
    train_lib.open_data(make_experiment(tiny.config()))
    assert "num_classes" not in capsys.readouterr().out


def test_from_a_folder_to_the_batches_of_a_run(tmp_path):
    """The command, then the same without --source, and what training reads before and after."""
    for index, name in enumerate(("bird", "cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(awkward.scene(20 + index, 30 + number)).save(
                tmp_path / "photos" / name / f"{number}.jpg"
            )
    (tmp_path / "photos" / "dog" / "broken.jpg").write_bytes(b"?")
    animals = config(tmp_path / "tfds", name="animals", image_size=16, channels=3, num_classes=3)
    with pytest.raises(ConfigError, match="has a data set 'animals'"):
        first_batch(make_experiment(animals))
    run = tmp_path / "run"
    made = command(
        "--config=configs/digits.py:tiny", "--config.data.name=animals",
        f"--config.data.data_dir={tmp_path}/tfds", "--config.data.image_size=16",
        "--config.data.flip=False", "--mode=prepare", f"--source={tmp_path}/photos",
        "--format=jpeg", workdir=run,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for words in ("preparing 19 images", "18 images of 16 pixels", "as JPEG, PSNR",
                  "dog/broken.jpg: Unidentified", "3 classes, from 6 images",
                  "18 images as the network sees them"):  # fmt: skip
        assert words in made.stdout
    again = prepare(animals, workdir=str(tmp_path / "again"))
    assert again.read_bytes() == (run / "preview.png").read_bytes()
    with pytest.raises(ConfigError, match="--format is png, but .* was prepared with jpeg; leave"):
        prepare(animals, encoding="png")
    with pytest.raises(ConfigError, match="has 'train' of 'animals' already"):
        prepare(animals, folder=str(tmp_path / "photos"))
    assert first_batch(make_experiment(animals))["image"].shape == (16, 16, 16, 3)


def test_what_is_not_square_is_padded_if_wanted(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        black = Image.new("RGB", (24, 8)) if number else Image.new("RGB", (8, 24))
        black.save(tmp_path / "photos" / f"{number}.png")
    bars = config(tmp_path, name="bars", image_size=24, channels=3, num_classes=0)
    prepare(bars, folder=str(tmp_path / "photos"), fit="pad")
    said = capsys.readouterr().out
    assert "what is not square is padded with white" in said
    assert "enlarged" not in said
    opened = small_sets.opened("bars", "train", str(tmp_path), 24, 3)
    expected = np.full((24, 24, 3), 255, np.uint8)
    expected[8:16] = 0
    images = [opened[index]["image"] for index in range(3)]
    assert sorted(int((image == expected).all()) for image in images) == [0, 1, 1]
    assert sorted(int((image == expected.swapaxes(0, 1)).all()) for image in images) == [0, 0, 1]
    prepare(bars, fit="pad")
    with pytest.raises(ConfigError, match="--fit is crop, but .* was prepared with pad; leave it"):
        prepare(bars, fit="crop")


def test_preview_shows_what_the_first_step_reads(tmp_path):
    """Images, flips and labels of the preview are those of the batches and of the step."""
    folder = tmp_path / "photos"
    for index, name in enumerate(("up", "down")):
        (folder / name).mkdir(parents=True)
        for number in range(32):
            pixels = np.random.default_rng(index * 32 + number).integers(0, 256, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    changes = {"name": "mine", "image_size": 8, "channels": 3, "num_classes": 2}
    path = prepare(config(tmp_path, flip=True, **changes), folder=str(folder))
    assert path == tmp_path / "mine_8px" / "1.0.0" / "preview.png"
    seen = cells(path, 8, columns=8)[:64]
    training = tiny.experiment(
        train__batch_size=64, data__data_dir=str(tmp_path), data__split="train",
        **{f"data__{key}": value for key, value in changes.items()},
    )  # fmt: skip
    batch = first_batch(training)
    straight = (seen == batch["image"]).all(axis=(1, 2, 3))
    flipped = (seen == batch["image"][:, :, ::-1]).all(axis=(1, 2, 3))
    assert (straight ^ flipped).all()
    assert 16 < flipped.sum() < 48
    plain = prepare(config(tmp_path, **changes), workdir=str(tmp_path / "run"))
    np.testing.assert_array_equal(cells(plain, 8, columns=8)[:64], batch["image"])


def test_clips_of_a_folder(tmp_path, capsys):
    """From animations of one grey a frame to batches, and a preview with a row for each clip."""
    greys = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
    for index, frames in enumerate(greys):
        folder = tmp_path / "files" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        first, *rest = [Image.fromarray(np.full((20, 30), grey, np.uint8)) for grey in frames]
        first.save(folder / f"{index}.gif", save_all=True, append_images=rest)
    clip = {"frames": 3, "cond_frames": 1, "stride": 3, "window": "first"}
    changes = {"name": "greys", "image_size": 8, "channels": 1, "num_classes": 2, "clip": clip}
    made = config(tmp_path, **changes)
    path = prepare(made, folder=str(tmp_path / "files"))
    text = capsys.readouterr().out
    for words in ("preparing 6 clips", "6 clips of 3 frames (stride 3, first window) of 8 pixels",
                  "2 classes, from 3 clips", "6 clips as the network sees them"):  # fmt: skip
        assert words in text
    seen = cells(path, 8, columns=3)[:18, 0, 0, 0].reshape(6, 3)
    assert sorted(seen.tolist()) == sorted(greys[:, ::3].tolist())
    assert prepare(made, workdir=str(tmp_path / "again")).read_bytes() == path.read_bytes()
    source = small_sets.opened("greys", "train", tmp_path, 8, 1, clip=clip, num_classes=2)
    found = [[*record["frames"][:, 0, 0, 0], *record["image"][:, 0, 0, 0], record["label"]]
             for record in map(source.__getitem__, range(6))]  # fmt: skip
    assert sorted(found) == sorted([*greys[i, ::3], i % 2] for i in range(6))
    changed = config(tmp_path, **changes | {"clip": clip | {"stride": 2}})
    with pytest.raises(ConfigError, match=r"stride is 2, but 'greys' .* was prepared with 3"):
        prepare(changed)


def test_moving_digits_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(moving_digits, "CLIPS", {"train": 30, "test": 10})
    clip = {"frames": 4, "cond_frames": 0, "stride": 1, "window": "first"}
    changes = {"name": "moving_digits", "image_size": None, "channels": None, "clip": clip}
    path = prepare(config(tmp_path, **changes), workdir=str(tmp_path))
    assert len(cells(path, 24, columns=4)) >= 8 * 4
    assert "labels of the first 30 of 30 clips" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'moving_digits' is a data set of clips"):
        prepare(config(tmp_path, **changes | {"clip": None}))
    with pytest.raises(ConfigError, match="'digits' is a data set of images"):
        prepare(config(tmp_path, **changes | {"name": "digits"}))


def test_digits_are_shown(tmp_path, capsys):
    path = prepare(config(tmp_path, image_size=None, channels=None), workdir=str(tmp_path))
    assert Image.open(path).size[0] > 700
    text = capsys.readouterr().out
    assert "labels of the first 1,797 of 1,797 images" in text
    assert "10 classes, from 174 images (8) to 183 (3)" in text


def test_a_set_of_tfds_in_place_and_at_another_size(tmp_path, capsys):
    assert small_sets.NUM_RECORDS == 10
    with pytest.raises(ConfigError, match=r"image_size is not set .* no single square size"):
        prepare(config(tmp_path, name="small_labelled", image_size=None, channels=3))
    prepare(config(tmp_path, name="small_labelled", image_size=12, channels=3))
    opened = small_sets.opened("small_labelled", "train", str(tmp_path), 12, 3)
    assert (len(opened), opened.info.example_shape) == (10, (12, 12, 3))
    assert "enlarged, since they were smaller: 10" in capsys.readouterr().out
    prepare(config(tmp_path, name="small_plain", image_size=4, channels=3, num_classes=0))
    said = capsys.readouterr().out
    assert "no classes" in said
    assert "KB on disk for each image, as PNG, without loss" in said


@pytest.mark.parametrize(
    ("changes", "folder", "message"),
    [
        ({"name": "My Cats"}, ".", "name the new data set with small letters"),
        ({"name": "imagenet2012"}, ".", "a data set of TFDS; give what --source has another name"),
        ({"name": "mine", "image_size": None}, ".", "image_size is not set"),
        ({"name": "mine"}, "nowhere", "nowhere is not a folder"),
        ({"name": "mine"}, ".", "has no image"),
        ({"name": "nothing_like_this"}, None, "neither TFDS nor"),
        ({"name": "imdb_reviews"}, None, "must have one image feature"),  # before a download
        ({"data_dir": "gs://bucket/tfds"}, None, "a data set is prepared on a disk"),
    ],
)
def test_mistakes(tmp_path, changes, folder, message):
    source_folder = None if folder is None else str(tmp_path / folder)
    with pytest.raises(ConfigError, match=message):
        prepare(config(**{"data_dir": tmp_path, **changes}), folder=source_folder)
    assert not list(tmp_path.iterdir())


def test_an_unknown_field_is_named(tmp_path):
    wrong = config(tmp_path)
    wrong.data.num_thread = 3
    with pytest.raises(ConfigError, match=r"data\.num_thread; did you mean data\.num_threads"):
        prepare(wrong)


def cifar_archive(folder, per_file=3):
    """An archive in CIFAR-10's binary format; returns its training images and labels."""
    rng = np.random.default_rng(0)
    members, images, labels = {}, [], []
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        label = rng.integers(0, 10, per_file, dtype=np.uint8)
        image = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        rows = np.concatenate([label[:, None], image.reshape(per_file, -1)], axis=1)
        members[f"{name}.bin"] = rows.tobytes()
        if name != "test_batch":
            images.append(image.transpose(0, 2, 3, 1))
            labels.append(label)
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    members["batches.meta.txt"] = "\n".join(classes.split()).encode()
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return np.concatenate(images), np.concatenate(labels)


def test_cifar10_from_an_archive_in_its_own_format(tmp_path, capsys):
    (tmp_path / "files").mkdir()
    images, labels = cifar_archive(tmp_path / "files")
    cifar10 = config(tmp_path, name="cifar10", image_size=None, channels=None, num_classes=None)
    prepare(cifar10, downloaded=str(tmp_path / "files"))
    said = capsys.readouterr()
    assert "packed otherwise than TFDS knows: cifar-10-binary.tar.gz\n" in said.out
    assert not said.err
    opened = small_sets.opened("cifar10", "train", str(tmp_path), 32, 3)
    assert opened.info.class_names[3] == "cat"
    found = sorted((opened[i]["image"].tobytes(), opened[i]["label"]) for i in range(len(opened)))
    expected = zip(images, labels.tolist(), strict=True)
    assert found == sorted((image.tobytes(), label) for image, label in expected)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_debians_files(tmp_path, monkeypatch, capsys):
    """Of the files as they are, the first 300 and 50 images."""
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 300)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 50)
    monkeypatch.setattr(prepare_lib, "COUNTED", 200)
    fashion = config(tmp_path, name="fashion_mnist", image_size=28)
    prepare(fashion, workdir=str(tmp_path / "run"), downloaded=str(DEBIAN))
    assert "labels of the first 200 of 300 images" in capsys.readouterr().out
    stored = small_sets.opened("fashion_mnist", "train", tmp_path, 28, 1)
    with gzip.open(DEBIAN / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28 * 28)[:300]
    found = sorted(stored[index]["image"].tobytes() for index in range(len(stored)))
    assert found == sorted(image.tobytes() for image in images)
    assert first_batch(make_experiment(fashion))["image"].shape == (16, 28, 28, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--source=."],
            "--source is for --mode=prepare and --mode=import_pix2seq; the mode is train",
        ),
        (["--mode=evaluate", "--downloaded=."], "--downloaded is for --mode=prepare"),
        (["--mode=prepare", "--classes=1"], "--classes is for --mode=sample"),
        (["--mode=prepare", "--source=.", "--downloaded=."], None),
    ],
)
def test_flags_of_another_mode_are_refused(arguments, message):
    with flagsaver.flagsaver():
        flags.FLAGS(["main", "--workdir=run", *arguments])
        if message is None:
            main.check_flags(main.MODE.value)
        else:
            with pytest.raises(ConfigError, match=message):
                main.check_flags(main.MODE.value)
    flags.FLAGS.unparse_flags()


def test_files_that_have_to_be_fetched_by_hand_are_asked_for(tmp_path):
    wanted = config(tmp_path, name="imagenet2012", image_size=64, channels=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)cannot prepare 'imagenet2012'.*--downloaded=FOLD"):
        prepare(wanted, downloaded=str(tmp_path / "empty"))
    assert not list(tmp_path.glob("imagenet2012*/*"))
