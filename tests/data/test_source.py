"""Digits, the lookup of data sets by name, and their preparation without TensorFlow."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from array_record.python import array_record_module
from sklearn import datasets

from rin_jax.data import catalog, digits, pipeline, source
from tests.data import small_sets

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_digits_are_scikit_learns(digits_dir):
    known = datasets.load_digits()
    expected = (known.images * 255 / 16 + 0.5).astype(np.uint8)  # no value lies at .5
    opened = source.open_source("digits", "train", digits_dir, 8, 1)
    records = [opened[index] for index in range(len(opened))]
    assert {record["image"].shape for record in records} == {(8, 8, 1)}
    assert {record["image"].dtype for record in records} == {np.dtype(np.uint8)}
    # TFDS stores the records in an order of its own.
    found = sorted((record["image"].tobytes(), record["label"]) for record in records)
    images_and_labels = zip(expected, known.target, strict=True)
    assert found == sorted((image.tobytes(), int(label)) for image, label in images_and_labels)


def test_describe_digits_before_and_after_preparation(digits_dir, tmp_path):
    before = catalog.describe("digits", "train", str(tmp_path), 8)
    assert before == catalog.DatasetInfo(
        name="digits",
        split="train",
        image_shape=(8, 8, 1),
        num_classes=10,
        class_names=tuple("0123456789"),
        num_examples=None,
        folder=str(tmp_path / "digits" / "1.0.0"),
    )
    assert not list(tmp_path.iterdir())
    assert catalog.describe("digits", "train", digits_dir, 8).num_examples == 1797
    assert catalog.describe("digits", "train[:100]", digits_dir, 8).num_examples == 100
    with pytest.raises(ValueError, match=r"data\.split: .test. .* has train; choose"):
        catalog.describe("digits", "test", digits_dir, 8)


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
    info = catalog.describe(name, "train", str(tmp_path), None)
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
def test_unsuitable_names(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        catalog.describe(name, "train", str(tmp_path), None)
    with pytest.raises(ValueError, match=message):
        source.open_source(name, "train", str(tmp_path), 64, 3)
    assert not list(tmp_path.iterdir())


def test_small_sets(small_dir):
    labelled = source.open_source("small_labelled", "train", small_dir, 6, 3)
    plain = source.open_source("small_plain", "train", small_dir, 6, 3)
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
    with pytest.raises(ValueError, match=r"digits.* without random access; .*--mode=prepare"):
        source.open_source("digits", "train", str(tmp_path), 8, 1)


def test_preparation_that_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    message = r"'small_needs_tensorflow'.*tensorflow.*pip install \"rin-jax\[tf\]\""
    builder = catalog.tfds_builder("small_needs_tensorflow", str(tmp_path))
    with pytest.raises(ImportError, match=message):
        catalog.prepare_with_tfds("small_needs_tensorflow", builder, None)
    with pytest.raises(ImportError, match=r"trying needs .*rin-jax\[tf\]"):
        catalog.require_tensorflow("trying")
    assert not list(tmp_path.glob("*/1.0.0"))


def test_another_process_prepared_first(digits_dir, tmp_path, monkeypatch):
    """The copy of the process that was first is read; any other failure is passed on."""

    def second(builder, **kwargs):
        shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        raise FileExistsError("the folder is there")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", second)
    assert len(source.open_source("digits", "train", str(tmp_path), 8, 1)) == 1797

    def full(builder, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", full)
    with pytest.raises(ValueError, match=r"cannot prepare 'digits'.*no space left.*\n.*--downl"):
        source.open_source("digits", "train", str(tmp_path / "elsewhere"), 8, 1)


def test_two_processes_together_without_tensorflow(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from rin_jax.data import pipeline, source
        opened = source.open_source("digits", "train", {str(tmp_path)!r}, 8, 1)
        batches = pipeline.train_batches(
            opened, image_size=8, channels=1, batch_size=16, seed=0, start=0, num_threads=2,
            prefetch=1,
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


def copied(digits_dir, tmp_path):
    """A copy of the digits and its one file."""
    shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("digits/1.0.0/*array_record*")
    return file


@pytest.mark.parametrize("share", [0, 0.4, 0.999])
def test_a_truncated_file_is_named_before_training(digits_dir, tmp_path, share):
    file = copied(digits_dir, tmp_path)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{file.name}.*(damaged|cannot be opened|is missing)"):
        source.open_source("digits", "train", str(tmp_path), 8, 1)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name} is missing .1 of 1 files.*--mode=prepare"):
        source.open_source("digits", "train", str(tmp_path), 8, 1)


def test_a_file_with_too_few_records_is_named(digits_dir, tmp_path):
    file = copied(digits_dir, tmp_path)
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for _ in range(5):
        writer.write(b"x")
    writer.close()
    with pytest.raises(ValueError, match=r"5 records instead of 1797, so that record 5 is"):
        source.open_source("digits", "train", str(tmp_path), 8, 1)


def test_a_damaged_record_is_named_with_its_file(digits_dir, tmp_path):
    file = copied(digits_dir, tmp_path)
    reader = array_record_module.ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    records[7] = records[7].replace(b"IDAT", b"IDAX")
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    opened = source.open_source("digits", "train[2:]", str(tmp_path), 8, 1)
    assert opened[4]["image"].shape == (8, 8, 1)
    with pytest.raises(ValueError, match=rf"{file.name}, record 7 cannot be read"):
        opened[5]
    options = {"image_size": 8, "channels": 1, "num_threads": 2}
    with pytest.raises(ValueError, match="record 7 cannot be read"):
        pipeline.fixed_examples(opened, **options, num=10)


def test_a_missing_data_set_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"'small_plain' is not prepared.*--mode=prepare"):
        source.open_source("small_plain", "train", str(tmp_path), 6, 3)
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_data_apart(digits_dir, small_dir):
    def fingerprint(name, split, data_dir, size, channels):
        return source.open_source(name, split, data_dir, size, channels).fingerprint

    digits_all = fingerprint("digits", "train", digits_dir, 8, 1)
    assert digits_all == fingerprint("digits", "train", digits_dir, 8, 3)
    names = ("small_plain", "small_labelled")
    small = [fingerprint(name, "train", small_dir, 6, 3) for name in names]
    part = fingerprint("digits", "train[:100]", digits_dir, 8, 1)
    assert len({digits_all, part, *small}) == 4
