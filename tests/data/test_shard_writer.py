"""Writing a data set: pixels against another library, interruptions, and what can go wrong."""

import collections
import itertools
import json
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from rin_jax import ConfigError
from rin_jax.data import catalog, set_metadata, shard_writer
from rin_jax.data.originals import TfdsOriginal, open_folder
from tests.data import awkward, oracle, small_sets

REPOSITORY = pathlib.Path(__file__).parents[2]


def folder_of(data_dir, size, name="mine"):
    return pathlib.Path(catalog.sized_folder(name, str(data_dir), size))


def write(
    data_dir, root, size=16, split="train", channels=3, threads=2, progress=lambda done: None,
    **options,
):  # fmt: skip
    original = open_folder(str(root), "mine", split, None, channels)
    return original, shard_writer.write(
        original, folder_of(data_dir, size), size, threads, progress, **options
    )


def read(data_dir, size=16, split="train", channels=3):
    opened = small_sets.opened("mine", split, str(data_dir), size, channels)
    return [opened[index] for index in range(len(opened))]


def photos(root, count, kind="png"):
    """`count` images in two classes, all different."""
    for index in range(count):
        folder = root / ("even", "odd")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.{kind}")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_an_independent_library(tmp_path, channels):
    root = tmp_path / "photos"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
    awkward.save_all(root / "one")
    awkward.save_all(root / "two")
    (root / "two" / "broken.png").write_bytes(b"this is not an image")
    original, report = write(tmp_path, root, channels=channels)
    files = [file for file in original.files if "broken" not in file]
    records = read(tmp_path, channels=channels)
    assert len(records) == len(files) == 28
    for file, record in zip(files, records, strict=True):
        expected = oracle.training_image(oracle.read(root / file, channels), 16)
        limit = 3 if file.endswith(".jpg") else 1.5
        assert np.abs(record["image"] - expected).max() < limit, file
        assert record["label"] == ("one", "two").index(file.partition("/")[0])
    assert (report["written"], report["enlarged"]) == (28, 2)
    assert report["classes"] == {"one": 14, "two": 14}
    ((what, why),) = report["skipped"]
    assert what == "two/broken.png"
    assert "cannot identify" in why
    folder = folder_of(tmp_path, 16)
    assert (
        report
        == set_metadata.read_report(folder, "train")
        == json.loads((folder / "report-train.json").read_text())
    )


def test_it_is_an_ordinary_data_set_of_tfds(tmp_path):
    photos(tmp_path / "photos", 40)
    write(tmp_path, tmp_path / "photos")
    records = tfds.data_source("mine_16px", data_dir=str(tmp_path), split="train")
    info = tfds.builder("mine_16px", data_dir=str(tmp_path)).info
    assert info.features["image"].shape == (16, 16, 3)
    assert info.features["label"].names == ["even", "odd"]
    assert collections.Counter(int(record["label"]) for record in records) == {0: 20, 1: 20}
    opened = small_sets.opened("mine", "train", tmp_path, 16, 3)
    for index in range(40):  # in 16 files
        file, _, record = opened.place(index).rpartition(", record ")
        reader = array_record_module.ArrayRecordReader(file)
        assert reader.read([int(record)]) == [opened._records[index]]
        reader.close()
    described = catalog.describe("mine", "train[:50%]", str(tmp_path), 16)
    assert (described.num_examples, described.class_names) == (20, ("even", "odd"))


def test_splits_join_and_sizes_stay_apart(tmp_path):
    photos(tmp_path / "a", 30)
    photos(tmp_path / "b", 18)
    write(tmp_path, tmp_path / "a")
    write(tmp_path, tmp_path / "b", split="validation")
    enlarged = [write(tmp_path, tmp_path / "b", size=size)[1]["enlarged"] for size in (8, 20, 21)]
    assert enlarged == [0, 0, 18]  # of 20 x 30 pixels
    assert [len(read(tmp_path, split=split)) for split in ("train", "validation")] == [30, 18]
    assert len(read(tmp_path, size=8)) == 18
    with pytest.raises(ConfigError, match=r"only at 8px, .*21px; set --config.*size=21"):
        read(tmp_path, size=32)


def test_the_only_copy_tells_size_and_classes(tmp_path):
    photos(tmp_path / "photos", 4)
    write(tmp_path, tmp_path / "photos", size=6)
    data = small_sets.section("mine", "train", tmp_path, None, 3)
    assert (data.resolved().image_size, data.resolved().num_classes) == (6, 2)
    write(tmp_path, tmp_path / "photos", size=9)
    with pytest.raises(ConfigError, match=r"only at 6px, 9px; set --config\.data\.image_size=6\."):
        data.resolved()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_stored_and_the_report_says_what_is_lost(tmp_path, channels):
    for index in range(20):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        Image.fromarray(awkward.scene(80 + index, 90)).save(tmp_path / "scenes" / f"{index}.png")
    reports, images = {}, {}
    for encoding in ("png", "jpeg"):
        _, reports[encoding] = write(
            tmp_path / encoding, tmp_path / "scenes", 64, channels=channels, encoding=encoding
        )
        records = read(tmp_path / encoding, 64, channels=channels)
        images[encoding] = np.stack([record["image"] for record in records]).astype(np.float64)
    error = np.square(images["jpeg"] - images["png"]).mean()
    assert reports["jpeg"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert reports["jpeg"]["psnr"] > 35
    assert reports["png"]["psnr"] is None
    assert images["png"].shape == (20, 64, 64, channels)
    info = tfds.builder("mine_64px", data_dir=str(tmp_path / "jpeg")).info
    assert info.features["image"].shape == (64, 64, channels)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    stored = tfds.data_source(
        "mine_64px", data_dir=str(tmp_path / "jpeg"), split="train", deserialize_method=raw
    )
    assert b"\xff\xd8\xff" in stored[0]
    _, other = write(tmp_path / "jpeg", tmp_path / "scenes", 64, "test", channels)
    assert (other["encoding"], other["psnr"]) == ("png", None)
    assert len(read(tmp_path / "jpeg", 64, "test", channels)) == 20
    assert (read(tmp_path / "jpeg", 64, channels=channels)[0]["image"] == images["jpeg"][0]).all()


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


KILLED = """
    import os, signal, sys
    from rin_jax.data import shard_writer
    from rin_jax.data.originals import open_folder
    from tests.data.test_shard_writer import folder_of

    def write_until(images):
        seen = 0
        def progress(done):
            nonlocal seen
            seen += done
            if seen >= images:
                os.kill(os.getpid(), signal.SIGKILL)
        original = open_folder({root!r}, "mine", "train", None, 3)
        shard_writer.write(original, folder_of({data_dir!r}, 16), 16, 2, progress)

    for images in (1, 50, 90):
        child = os.fork()
        if not child:
            write_until(images)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, images
        assert not folder_of({data_dir!r}, 16).exists()
"""


def test_killed_again_and_again_it_goes_on_to_the_same_files(tmp_path):
    photos(tmp_path / "photos", 96)
    write(tmp_path / "whole", tmp_path / "photos")
    script = KILLED.format(root=str(tmp_path / "photos"), data_dir=str(tmp_path / "killed"))
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=REPOSITORY, check=True)
    done = []
    write(tmp_path / "killed", tmp_path / "photos", progress=done.append)
    assert sum(done) == 96
    assert max(done) == 6  # shards of 6 images that were complete
    expected = content(folder_of(tmp_path / "whole", 16))
    assert content(folder_of(tmp_path / "killed", 16)) == expected
    assert len(expected) == 16 + 4  # shards, report, and three files of TFDS
    assert not list((tmp_path / "killed").glob("**/*draft*"))
    assert [path.name for path in (tmp_path / "killed" / "mine_16px").iterdir()] == ["1.0.0"]


def test_killed_between_moving_shards_and_telling_tfds(tmp_path, monkeypatch):
    photos(tmp_path / "photos", 40)
    write(tmp_path / "whole", tmp_path / "photos")
    with monkeypatch.context() as patch:

        def killed(**kwargs):
            raise KeyboardInterrupt

        patch.setattr(tfds.folder_dataset, "write_metadata", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "killed", tmp_path / "photos")
    write(tmp_path / "killed", tmp_path / "photos")
    whole = content(folder_of(tmp_path / "whole", 16))
    assert content(folder_of(tmp_path / "killed", 16)) == whole


def test_a_full_disk_keeps_what_is_complete(tmp_path, monkeypatch):
    photos(tmp_path / "photos", 60)
    real = shard_writer.array_record_module.ArrayRecordWriter

    class Full:
        """A writer on a disk with room for two shards; array_record's error and its lateness."""

        room = 2

        def __init__(self, path, options):
            Full.room -= 1
            self._writer, self._full = real(path, options), Full.room < 0
            self.write = self._writer.write

        def close(self):
            self._writer.close()
            if self._full:
                raise RuntimeError("write() failed: No space left on device [ENOSPC]")

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.array_record_module, "ArrayRecordWriter", Full)
        with pytest.raises(ConfigError, match=r"data\.data_dir: no space is left .* same command"):
            write(tmp_path, tmp_path / "photos", threads=1)
    staging = folder_of(tmp_path, 16).parent / "incomplete-train"
    assert len(list(staging.glob("*.json"))) == 1 + 2  # the plan and two shards
    assert not list(staging.glob("*draft*"))
    done = []
    write(tmp_path, tmp_path / "photos", progress=done.append)
    assert sum(one for one in done if one > 1) >= 6  # two shards of three or four images
    assert len(read(tmp_path)) == 60


def test_writing_that_fails_silently_is_seen(tmp_path, monkeypatch):
    photos(tmp_path / "photos", 20)
    real = shard_writer.array_record_module.ArrayRecordWriter

    class Lossy:
        def __init__(self, path, options):
            self._writer, self._first = real(path, options), True
            self.close = self._writer.close

        def write(self, record):
            if not self._first:
                self._writer.write(record)
            self._first = False

    monkeypatch.setattr(shard_writer.array_record_module, "ArrayRecordWriter", Lossy)
    with pytest.raises(OSError, match="0 of 1 records"):
        write(tmp_path, tmp_path / "photos")


def test_other_images_do_not_mix_in(tmp_path):
    photos(tmp_path / "photos", 30)

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, tmp_path / "photos", progress=stop)
    photos(tmp_path / "photos", 31)
    with pytest.raises(ConfigError, match=r"begun from other .*\(changed: original\); delete"):
        write(tmp_path, tmp_path / "photos")


def test_too_many_unreadable_images(tmp_path, monkeypatch):
    photos(tmp_path / "photos", 40)
    for index in range(10):
        (tmp_path / "photos" / "even" / f"bad{index}.png").write_bytes(b"?")
    _, report = write(tmp_path / "ten", tmp_path / "photos")
    assert (report["written"], len(report["skipped"])) == (40, 10)
    (tmp_path / "photos" / "odd" / "bad.png").write_bytes(b"?")
    with monkeypatch.context() as patch:  # of 51 images, ten are more than a hundredth
        patch.setattr(shard_writer, "_MAX_SKIPPED", 0.5)
        _, report = write(tmp_path / "half", tmp_path / "photos")
    assert (report["written"], len(report["skipped"])) == (40, 11)
    message = r"11 of the first \d+ images of 'mine' \(51 in all\).*\n  .*bad.*Unidentified"
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "eleven", tmp_path / "photos")
    assert not folder_of(tmp_path / "eleven", 16).exists()


def test_nothing_readable(tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(3):
        (tmp_path / "photos" / f"{index}.jpg").write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"3 of the first 3 images .*\n  \d\.jpg: Unidentified"):
        write(tmp_path, tmp_path / "photos")


def test_a_second_process_is_refused(tmp_path):
    photos(tmp_path / "photos", 20)
    refused = []

    def second(done):
        if not refused:
            with pytest.raises(ConfigError, match="another process is preparing mine_16px"):
                write(tmp_path, tmp_path / "photos")
            refused.append(done)

    write(tmp_path, tmp_path / "photos", progress=second)
    assert refused
    assert len(read(tmp_path)) == 20


@pytest.mark.parametrize(
    ("num", "size", "channels"), [(1, 8, 1), (7, 8, 3), (1797, 8, 1), (1281167, 64, 3),
                                  (1281167, 1024, 3)]
)  # fmt: skip
def test_shard_ranges(num, size, channels):
    ranges = shard_writer.shard_ranges(num, size, channels)
    assert ranges[0].start == 0
    assert ranges[-1].stop == num
    assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
    lengths = [len(one) for one in ranges]
    assert max(lengths) - min(lengths) <= 1
    assert len(ranges) <= 1024
    assert len(ranges) >= min(16, num)
    if len(ranges) < 1024:
        assert max(lengths) * size**2 * channels < 2**27 + size**2 * channels


def small_original(small_dir, name):
    builder = catalog.tfds_builder(name, small_dir)
    return TfdsOriginal(catalog.info(name, "train", builder), builder)


@pytest.mark.parametrize("name", ["small_labelled", "small_plain"])
def test_a_data_set_of_tfds_at_another_size(small_dir, tmp_path, name):
    original = small_original(small_dir, name)
    shard_writer.write(original, folder_of(tmp_path, 4, name), 4, 2, lambda done: None)
    opened = small_sets.opened(name, "train", str(tmp_path), 4, 3)
    assert len(opened) == small_sets.NUM_RECORDS
    for index in range(len(opened)):
        expected = oracle.training_image(small_sets.small_image(index), 4)
        assert np.abs(opened[index]["image"] - expected).max() < 0.501
        assert opened[index].get("label") == (index % 2 if name == "small_labelled" else None)


def test_labels_outside_the_classes_are_not_written(small_dir, tmp_path):
    original = small_original(small_dir, "small_unlabelled")
    with pytest.raises(ConfigError, match=r"record \d: ValueError: label -1 is outside \[0, 2\)"):
        shard_writer.write(original, folder_of(tmp_path, 4), 4, 2, lambda done: None)


def test_tfrecord_is_read_through_tensorflow(small_dir, tmp_path, monkeypatch):
    builder = catalog.tfds_builder("small_labelled", str(tmp_path))
    builder.download_and_prepare(file_format="tfrecord")
    builder = catalog.tfds_builder("small_labelled", str(tmp_path))
    assert not catalog.has_random_access(builder)
    with pytest.raises(ConfigError, match=r"format without random access; .*--mode=prepare"):
        small_sets.opened("small_labelled", "train", str(tmp_path), 6, 3)
    original = TfdsOriginal(catalog.info("small_labelled", "train", builder), builder)
    shard_writer.write(original, folder_of(tmp_path, 6, "small_labelled"), 6, 2, lambda done: None)
    opened = small_sets.opened("small_labelled", "train", str(tmp_path), 6, 3)
    expected = small_sets.opened("small_labelled", "train", small_dir, 6, 3)
    for index in range(small_sets.NUM_RECORDS):
        square = oracle.square(expected[index]["image"])
        np.testing.assert_array_equal(opened[index]["image"], square)
        assert opened[index]["label"] == expected[index]["label"]
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ConfigError, match=r"reading 'small_labelled' from .*rin-jax\[tf\]"):
        TfdsOriginal(original.info, builder)


def test_preparation_is_parallel(tmp_path, monkeypatch):
    """Each image waits for one of another thread, which there is with two threads only."""
    photos(tmp_path / "photos", 32)
    monkeypatch.setattr(shard_writer.os, "cpu_count", lambda: 2)

    def prepare(threads, patience):
        pair = threading.Barrier(2, timeout=patience)
        folder = tmp_path / str(threads)
        write(folder, tmp_path / "photos", threads=threads, progress=lambda done: pair.wait())
        return read(folder)

    assert len(prepare(2, patience=60)) == 32
    with pytest.raises(threading.BrokenBarrierError):
        prepare(1, patience=0.1)
    monkeypatch.setattr(shard_writer.os, "cpu_count", lambda: 1)
    with pytest.raises(threading.BrokenBarrierError):
        prepare(3, patience=0.1)


def test_an_error_stops_all_threads(tmp_path, monkeypatch):
    """While one thread fails, the other has done one image of twelve and does no more."""
    photos(tmp_path / "photos", 192)
    monkeypatch.setattr(shard_writer.os, "cpu_count", lambda: 2)
    done, second = [], threading.Event()

    def progress(count):
        done.append(count)
        if len(done) == 1:
            second.wait(60)
            raise RuntimeError("of this thread")
        second.set()
        time.sleep(1.0)

    with pytest.raises(RuntimeError, match="of this thread"):
        write(tmp_path, tmp_path / "photos", progress=progress)
    assert len(done) <= 3
