"""Digits, the lookup of data sets by name, and their preparation without TensorFlow."""

import errno
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from sklearn import datasets

from rin_jax import ConfigError
from rin_jax.data import catalog, digits, pipeline, source
from rin_jax.runtime import retries
from tests.data import small_sets

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retries, "PAUSES", (0.01, 0.02))


def test_digits_are_scikit_learns(digits_dir):
    known = datasets.load_digits()
    expected = (known.images * 255 / 16 + 0.5).astype(np.uint8)  # no value lies at .5
    opened = small_sets.opened("digits", "train", digits_dir, 8, 1)
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
        example_shape=(8, 8, 1),
        num_classes=10,
        class_names=tuple("0123456789"),
        num_examples=None,
        folder=str(tmp_path / "digits" / "1.0.0"),
    )
    assert not list(tmp_path.iterdir())
    assert catalog.describe("digits", "train", digits_dir, 8).num_examples == 1797
    assert catalog.describe("digits", "train[:100]", digits_dir, 8).num_examples == 100
    with pytest.raises(ConfigError, match=r"data\.split: .test. .* has train; choose"):
        catalog.describe("digits", "test", digits_dir, 8)


@pytest.mark.parametrize(
    ("name", "example_shape", "num_classes"),
    [
        ("cifar10", (32, 32, 3), 10),
        ("imagenet2012", (None, None, 3), 1000),
        ("imagenet_resized/64x64", (64, 64, 3), 1000),
        ("lsun/bedroom", (None, None, 3), 0),
        ("oxford_iiit_pet", (None, None, 3), 37),  # has a mask and a second label as well
    ],
)
def test_describe_sets_of_tfds(name, example_shape, num_classes, tmp_path):
    info = catalog.describe(name, "train", str(tmp_path), None)
    assert (info.example_shape, info.num_classes) == (example_shape, num_classes)
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
    with pytest.raises(ConfigError, match=message):
        catalog.describe(name, "train", str(tmp_path), None)
    with pytest.raises(ConfigError, match=message):
        small_sets.opened(name, "train", str(tmp_path), 64, 3)
    assert not list(tmp_path.iterdir())


def test_small_sets(small_dir):
    labelled = small_sets.opened("small_labelled", "train", small_dir, 6, 3)
    plain = small_sets.opened("small_plain", "train", small_dir, 6, 3)
    assert labelled.info.class_names == ("even", "odd")
    assert (plain.info.num_classes, plain.info.num_examples) == (0, len(plain))
    for index in range(small_sets.NUM_RECORDS):
        np.testing.assert_array_equal(labelled[index]["image"], small_sets.small_image(index))
        assert labelled[index]["label"] == index % 2
        assert set(plain[index]) == {"image"}


def test_a_large_jpeg_is_decoded_at_a_fraction(small_dir):
    opened = small_sets.opened("small_photos", "train", small_dir, 8, 3)
    assert opened[0]["image"].shape == (16, 24, 3)
    opened = small_sets.opened("small_photos", "train", small_dir, 64, 3)
    assert opened[0]["image"].shape == (64, 96, 3)


IMAGE = tfds.features.Image(shape=(8, 8, 3))


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ({"photo": IMAGE, "n": tfds.features.Scalar(np.int64)}, ("photo", None)),
        ({"photo": IMAGE, "image": IMAGE, "label": tfds.features.ClassLabel(num_classes=2)},
         ("image", "label")),
        ({"photo": IMAGE, "mask": tfds.features.LabeledImage(labels=2, shape=(8, 8, 1))},
         ("photo", None)),
        ({"a": IMAGE, "b": IMAGE}, r"has several \(a, b\); choose"),
        ({"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16)}, "has none; choose"),
    ],
)  # fmt: skip
def test_which_feature_is_the_image(features, found):
    builder = types.SimpleNamespace(
        info=types.SimpleNamespace(features=tfds.features.FeaturesDict(features))
    )
    if isinstance(found, tuple):
        assert catalog.feature_keys("mine", builder) == found
    else:
        with pytest.raises(ConfigError, match=rf"one image feature of 8 bits but {found}"):
            catalog.feature_keys("mine", builder)


def test_which_feature_is_the_video():
    clips = tfds.features.Sequence(IMAGE, length=4)
    features = {"clip": clips, "n": tfds.features.Sequence(tfds.features.Scalar(np.int64))}
    for more, found in (({}, ("clip", None)), ({"image": IMAGE}, ("clip", None))):
        info = types.SimpleNamespace(features=tfds.features.FeaturesDict({**features, **more}))
        assert catalog.feature_keys("mine", types.SimpleNamespace(info=info), frames=4) == found
    info = types.SimpleNamespace(features=tfds.features.FeaturesDict({**features, "b": clips}))
    with pytest.raises(ConfigError, match=r"one video feature of 8 bits but has several"):
        catalog.feature_keys("mine", types.SimpleNamespace(info=info), frames=4)


def test_copy_without_random_access(digits_dir, tmp_path):
    shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match=r"digits.* without random access; .*--mode=prepare"):
        small_sets.opened("digits", "train", str(tmp_path), 8, 1)


def test_preparation_that_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    message = r"'small_needs_tensorflow'.*tensorflow.*pip install \"rin-jax\[tf\]\""
    builder = catalog.tfds_builder("small_needs_tensorflow", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        catalog.prepare_with_tfds("small_needs_tensorflow", builder, None)
    with pytest.raises(ConfigError, match=r"trying needs .*rin-jax\[tf\]"):
        catalog.require_tensorflow("trying")
    assert not list(tmp_path.glob("*/1.0.0"))


def test_another_process_prepared_first(digits_dir, tmp_path, monkeypatch):
    """The copy of the process that was first is read; any other failure is passed on."""

    def second(builder, **kwargs):
        shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        raise FileExistsError("the folder is there")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", second)
    assert len(small_sets.opened("digits", "train", str(tmp_path), 8, 1)) == 1797

    def full(builder, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", full)
    with pytest.raises(ConfigError, match=r"cannot prepare 'digits'.*no space left.*\n.*--downl"):
        small_sets.opened("digits", "train", str(tmp_path / "elsewhere"), 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "clip", "shape"),
    [
        ("digits", 8, None, (16, 8, 8, 1)),
        ("moving_digits", 12, {"frames": 3, "cond_frames": 1, "stride": 1, "window": "first"},
         (16, 2, 12, 12, 1)),
    ],
)  # fmt: skip
def test_two_prepare_together_without_tensorflow(tmp_path, name, size, clip, shape):
    script = textwrap.dedent(f"""
        import sys
        from concurrent import futures
        from rin_jax.data import moving_digits, pipeline
        from tests.data import small_sets

        moving_digits.CLIPS = {{"train": 40, "test": 20}}

        def first_batch(index):
            where = {name!r}, "train", {str(tmp_path)!r}, {size}, 1
            opened = small_sets.opened(*where, clip={clip!r})
            return next(pipeline.train_batches(opened, 16, seed=0, start=0))

        with futures.ThreadPoolExecutor(2) as threads:
            for batch in threads.map(first_batch, range(2)):
                assert batch["image"].shape == {shape!r}
        assert "tensorflow" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, timeout=60, check=True)
    assert not list(tmp_path.glob("*/*incomplete*"))
    assert len(list(tmp_path.glob(f"{name}*/*/dataset_info.json"))) == 1


def copied(digits_dir, tmp_path):
    """A copy of the digits and its one file."""
    shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("digits/1.0.0/*array_record*")
    return file


def rewrite(file, change):
    """Puts change(records) in place of a file's records."""
    reader = array_record_module.ArrayRecordReader(str(file))
    records = change(reader.read_all())
    reader.close()
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize("share", [0, 0.4, 0.999])
def test_a_truncated_file_is_named_before_training(digits_dir, tmp_path, share):
    file = copied(digits_dir, tmp_path)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ConfigError, match=rf"{file.name}.*(damaged|cannot be opened|is missing)"):
        small_sets.opened("digits", "train", str(tmp_path), 8, 1)
    file.unlink()
    with pytest.raises(ConfigError, match=rf"{file.name} is missing .1 of 1 files.*--mode=prepare"):
        small_sets.opened("digits", "train", str(tmp_path), 8, 1)


def test_a_file_with_too_few_records_is_named(digits_dir, tmp_path):
    file = copied(digits_dir, tmp_path)
    rewrite(file, lambda records: records[:5])
    with pytest.raises(ConfigError, match=r"5 records instead of 1797, so that record 5 is"):
        small_sets.opened("digits", "train", str(tmp_path), 8, 1)


def test_a_damaged_record_is_named_with_its_file(digits_dir, tmp_path):
    file = copied(digits_dir, tmp_path)
    rewrite(file, lambda x: [*x[:7], x[7].replace(b"IDAT", b"IDAX"), *x[8:]])
    opened = small_sets.opened("digits", "train[2:]", str(tmp_path), 8, 1)
    assert opened[4]["image"].shape == (8, 8, 1)
    with pytest.raises(retries.ReadError, match=rf"{file.name}, record 7 cannot be read"):
        opened[5]
    with pytest.raises(retries.ReadError, match="record 7 cannot be read"):
        pipeline.fixed_examples(opened, 10)


def stale(self, key):
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_read_that_fails_is_tried_again_on_reopened_files(digits_dir, monkeypatch):
    arguments = ("digits", "train[:180]", digits_dir, 8, 1)
    sound = small_sets.opened(*arguments)

    def batches(opened):
        return list(itertools.islice(pipeline.train_batches(opened, 16, seed=0, start=0), 3))

    undisturbed, opened = batches(sound), small_sets.opened(*arguments)
    first, getitem = opened._records.data_source, ArrayRecordDataSource.__getitem__

    def first_is_stale(self, key):
        return (stale if self is first else getitem)(self, key)

    monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", first_is_stale)
    for one, other in zip(batches(opened), undisturbed, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


class Stale:
    """Opened records of which none can be read."""

    def __len__(self):
        return 100

    __getitem__ = stale


def test_a_read_that_keeps_failing_is_no_mistake_of_the_user(digits_dir, monkeypatch):
    opened = small_sets.opened("digits", "train[2:]", digits_dir, 8, 1)
    opens = []

    def open_again():
        opens.append(time.monotonic())
        return Stale()

    monkeypatch.setattr(opened, "_records", Stale())
    monkeypatch.setattr(opened, "_open", open_again)
    message = r"array_record.*, record 9 cannot be read, after 3 tries: .*Stale file handle"
    for read in (opened.__getitem__, opened.label):
        opens.append(time.monotonic())
        with pytest.raises(retries.ReadError, match=message) as error:
            read(7)
        assert not isinstance(error.value, ConfigError)
    assert len(opens) == 2 * 3
    waited = np.diff(opens)[[0, 1, 3, 4]]
    assert (waited > [0.01, 0.02, 0.01, 0.02]).all()
    with pytest.raises(retries.ReadError, match="cannot be read, after 3 tries"):
        next(pipeline.train_batches(opened, 16, seed=0, start=0))


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [(errno.EIO, OSError, "Input/output error"),
     (errno.EACCES, ConfigError, r"array_record.* cannot be opened: .*Permission denied")],
)  # fmt: skip
def test_a_file_that_cannot_be_opened(digits_dir, monkeypatch, number, kind, message):
    def fails(self, *arguments, **options):
        raise OSError(number, os.strerror(number), str(self))

    builder = catalog.find_builder("digits", digits_dir, 8)
    monkeypatch.setattr(type(epath.Path(digits_dir)), "open", fails)
    with pytest.raises(kind, match=message) as error:
        source.Source(builder, small_sets.section("digits", "train", digits_dir, 8, 1))
    assert isinstance(error.value, ConfigError) == (kind is ConfigError)


def test_a_missing_data_set_names_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"'small_plain' is not prepared.*--mode=prepare"):
        small_sets.opened("small_plain", "train", str(tmp_path), 6, 3)
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_data_apart(digits_dir, small_dir, tmp_path):
    def fingerprint(name, split, data_dir, size, channels):
        return small_sets.opened(name, split, data_dir, size, channels).fingerprint

    digits_all = fingerprint("digits", "train", digits_dir, 8, 1)
    assert digits_all == fingerprint("digits", "train", digits_dir, 8, 3)
    names = ("small_plain", "small_labelled")
    small = [fingerprint(name, "train", small_dir, 6, 3) for name in names]
    part = fingerprint("digits", "train[:100]", digits_dir, 8, 1)
    rewrite(copied(digits_dir, tmp_path), lambda records: records[::-1])
    other_order = fingerprint("digits", "train", str(tmp_path), 8, 1)
    assert len({digits_all, part, *small, other_order}) == 5
