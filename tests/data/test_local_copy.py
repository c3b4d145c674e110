"""Data sets in a bucket are copied to this machine: only what is read, and only once."""

import collections
import pathlib
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.data import local_copy, shard_writer
from rin_jax.data.originals import open_folder
from rin_jax.runtime import files, retries  # noqa: F401  (files says how etils reads buckets)
from tests.data import small_sets
from tests.storage import Fault

ADDRESS = "gs://bucket/sets"
FOLDER = "sets/mine_8px/1.0.0"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data set "mine": 16 files of train, 3 of test."""
    root = tmp_path_factory.mktemp("prepared")
    for split, count in {"train": 32, "test": 3}.items():
        (root / split).mkdir()
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
        original = open_folder(str(root / split), "mine", split, None, 3)
        shard_writer.write(original, root / "mine_8px" / "1.0.0", 8, 2, lambda done: None)
    return root


@pytest.fixture
def bucket(storage, prepared, monkeypatch):
    """The storage with that data set in it."""
    monkeypatch.setattr(retries, "PAUSES", (0.0, 0.0))
    for path in (prepared / "mine_8px" / "1.0.0").iterdir():
        storage.put("bucket", f"{FOLDER}/{path.name}", path.read_bytes())
    return storage


def opened(cache, split="train"):
    return small_sets.opened("mine", split, ADDRESS, 8, 3, cache_dir=str(cache))


def records(source):
    return [source[index]["image"].tobytes() for index in range(len(source))]


def shards(cache):
    return {path.name: path for path in pathlib.Path(cache, "bucket", FOLDER).glob("*-of-?????")}


def read_since(storage, begin):
    """How often each shard was read since so many requests."""
    asked = [text for _, text in storage.requests[begin:] if "GET" in text and "alt=media" in text]
    names = [text.partition("?")[0].rpartition("/")[2] for text in asked]
    return collections.Counter(name for name in names if "-of-" in name)


def test_only_the_split_that_is_read_is_copied_and_only_once(bucket, prepared, tmp_path, capsys):
    source = opened(tmp_path)
    local = small_sets.opened("mine", "train", prepared, 8, 3)
    assert records(source) == records(local)
    assert source.fingerprint == local.fingerprint
    assert len(shards(tmp_path)) == 16
    assert not [name for name in shards(tmp_path) if "-test." in name]
    said = capsys.readouterr().out
    assert "GB of mine (train), 16 of 16 files, from gs://bucket/sets/mine_8px/1.0.0 to" in said
    begin = len(bucket.requests)
    assert records(opened(tmp_path)) == records(local)
    assert not read_since(bucket, begin)
    assert len(source.other_split("test")) == 3
    assert set(read_since(bucket, begin)) == {n for n in shards(tmp_path) if "-test." in n}
    part = opened(tmp_path / "part", "train[:4]")
    assert records(part) == records(local)[:4]
    assert len(shards(tmp_path / "part")) == 2  # of two records each


def test_what_is_of_another_size_is_copied_again_and_nothing_else(bucket, prepared, tmp_path):
    expected = records(opened(tmp_path))
    whole, *_, last = [path for _, path in sorted(shards(tmp_path).items())]
    whole.write_bytes(whole.read_bytes()[:-1])
    last.rename(last.with_name(f"{last.name}.draft"))  # as a kill leaves it
    begin = len(bucket.requests)
    assert records(opened(tmp_path)) == expected
    assert set(read_since(bucket, begin)) == {whole.name, last.name}


@pytest.mark.parametrize("kind", ["error", "cut", "half"])
def test_a_copy_survives_what_goes_wrong_now_and_then(bucket, prepared, tmp_path, kind):
    bucket.faults.append(Fault(kind, "-of-00016.*alt=media", chance=0.5, count=8))
    local = small_sets.opened("mine", "train", prepared, 8, 3)
    assert records(opened(tmp_path)) == records(local)
    assert kind in bucket.happened


def test_what_cannot_be_copied_is_named_and_the_same_command_continues(bucket, tmp_path):
    bucket.faults.append(Fault("denied", "00007-of-00016.*alt=media"))
    with pytest.raises(OSError, match=r"00007-of-00016 cannot be read, after 3 tries"):
        opened(tmp_path)
    there = set(shards(tmp_path))
    bucket.faults.clear()
    begin = len(bucket.requests)
    assert len(records(opened(tmp_path))) == 32
    assert not there & set(read_since(bucket, begin))
    assert len(there) < 16


def test_processes_of_one_machine_take_turns(bucket, tmp_path):
    begin = len(bucket.requests)
    with futures.ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: records(opened(tmp_path)), range(3)))
    assert found[0] == found[1] == found[2]
    assert max(read_since(bucket, begin).values()) == 1


def test_mistakes_cost_no_copy(bucket, tmp_path, monkeypatch):
    begin = len(bucket.requests)
    usage = collections.namedtuple("Usage", "free")(100)
    with monkeypatch.context() as patch:
        patch.setattr(local_copy.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(ConfigError, match=r"0\.00 GB free; set data\.cache_dir .* --format"):
            opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.cache_dir: cannot write to .*file"):
        opened(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"set data\.cache_dir to a folder on a disk"):
        opened("gs://bucket/cache")
    bucket.delete("bucket", f"{FOLDER}/mine_8px-train.array_record-00003-of-00016")
    with pytest.raises(ConfigError, match=r"lacks mine_8px-train.*-00003-of-00016 \(1 of 16 files"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="'digits' is made on a disk of this machine"):
        small_sets.opened("digits", "train", ADDRESS, 8, 1)
    assert not read_since(bucket, begin)
