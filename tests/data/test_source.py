"""Digits, the lookup of data sets by name, and their preparation without TensorFlow."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn import datasets

from rin_jax.data import source
from tests.data import small_sets

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_digits_are_scikit_learns(digits_dir):
    digits = datasets.load_digits()
    expected = (digits.images * 255 / 16 + 0.5).astype(np.uint8)  # no value lies at .5
    opened = source.open_source("digits", "train", digits_dir)
    records = [opened[index] for index in range(len(opened))]
    assert {record["image"].shape for record in records} == {(8, 8, 1)}
    assert {record["image"].dtype for record in records} == {np.dtype(np.uint8)}
    # TFDS stores the records in an order of its own.
    found = sorted((record["image"].tobytes(), record["label"]) for record in records)
    images_and_labels = zip(expected, digits.target, strict=True)
    assert found == sorted((image.tobytes(), int(label)) for image, label in images_and_labels)


def test_describe_digits_before_and_after_preparation(digits_dir, tmp_path):
    before = source.describe("digits", "train", str(tmp_path))
    assert before == source.DatasetInfo(
        name="digits",
        image_shape=(8, 8, 1),
        num_classes=10,
        class_names=tuple("0123456789"),
        num_examples=None,
    )
    assert not list(tmp_path.iterdir())
    assert source.describe("digits", "train", digits_dir).num_examples == 1797
    assert source.describe("digits", "train[:100]", digits_dir).num_examples == 100
    with pytest.raises(ValueError, match=r"data\.split: 'test' .* it has train"):
        source.describe("digits", "test", digits_dir)


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes"),
    [
        ("cifar10", (32, 32, 3), 10),
        ("imagenet2012", (None, None, 3), 1000),
        ("imagenet_resized/64x64", (64, 64, 3), 1000),
        ("lsun/bedroom", (None, None, 3), 0),
        ("oxford_iiit_pet", (None, None, 3), 37),  # has a mask and a second label as well
    ],
)
def test_describe_sets_of_tfds(name, image_shape, num_classes, tmp_path):
    info = source.describe(name, "train", str(tmp_path))
    assert (info.image_shape, info.num_classes) == (image_shape, num_classes)
    assert len(info.class_names) == num_classes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "data.name: .*'cifar11'; nearest names: cifar10"),
        ("digit", "nearest names: digits"),
        ("imagenet_resize/64x64", "nearest names: .*imagenet_resized"),
        ("qqqqqq", "no name is near"),
        ("imagenet_resized/99x99", "data.name: .*99x99"),
        ("", "data.name"),
        ("imdb_reviews", "data.name: 'imdb_reviews' must have one image feature .* none"),
    ],
)
@pytest.mark.parametrize("function", [source.describe, source.open_source])
def test_unsuitable_names(function, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        function(name, "train", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_small_sets(small_dir):
    labelled = source.open_source("small_labelled", "train", small_dir)
    plain = source.open_source("small_plain", "train", small_dir)
    assert labelled.info.class_names == ("even", "odd")
    assert (plain.info.num_classes, plain.info.num_examples) == (0, len(plain))
    for index in range(small_sets.NUM_RECORDS):
        np.testing.assert_array_equal(labelled[index]["image"], small_sets.small_image(index))
        assert labelled[index]["label"] == index % 2
        assert set(plain[index]) == {"image"}


def test_copy_without_random_access(digits_dir, tmp_path):
    shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"data\.data_dir: .*digits.* as tfrecord.*delete"):
        source.open_source("digits", "train", str(tmp_path))


def test_preparation_that_needs_tensorflow(tmp_path):
    message = r"'small_needs_tensorflow'.*'tensorflow'.*pip install \"rin-jax\[tf\]\""
    with pytest.raises(ImportError, match=message):
        source.open_source("small_needs_tensorflow", "train", str(tmp_path))
    assert not list(tmp_path.glob("*/1.0.0"))


def test_another_process_prepared_first(digits_dir, tmp_path, monkeypatch):
    """The copy of the process that was first is read; any other failure is passed on."""

    def second(builder, **kwargs):
        shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        raise FileExistsError("the folder is there")

    monkeypatch.setattr(source.digits.Digits, "download_and_prepare", second)
    assert len(source.open_source("digits", "train", str(tmp_path))) == 1797

    def full(builder, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(source.digits.Digits, "download_and_prepare", full)
    with pytest.raises(OSError, match="no space left"):
        source.open_source("digits", "train", str(tmp_path / "elsewhere"))


def test_two_processes_together_without_tensorflow(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from rin_jax.data import pipeline
        batches = pipeline.train_batches(
            name="digits", split="train", data_dir={str(tmp_path)!r}, image_size=8, channels=1,
            batch_size=16, seed=0, start_step=0,
        )
        assert next(batches)["image"].shape == (16, 8, 8, 1)
        assert "tensorflow" not in sys.modules
    """)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not [path for path in (tmp_path / "digits").iterdir() if "incomplete" in path.name]
