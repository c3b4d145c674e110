"""Writing a data set of our own: square images or clips of one size, as ArrayRecord, for TFDS.

Each shard is a fixed range of the original's images, made by one thread and kept when it is
complete, so that the work goes on where it stopped. Beside the shards there is a report of each
split and what TFDS reads (`set_metadata.py`). A record has an image, or all frames of a clip, as
PNG or JPEG. The result is an ordinary TFDS data set: `tfds.data_source("NAME_SIZEpx",
data_dir=...)` opens it.
"""

import collections
import contextlib
import dataclasses
import errno
import fcntl
import io
import itertools
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from rin_jax import ConfigError
from rin_jax.data import preprocessing
from rin_jax.data.dataset import Clip
from rin_jax.data.set_metadata import (
    Original,
    Shard,
    Stored,
    make_features,
    make_report,
    publish,
)
from rin_jax.runtime import files

FORMAT = 1  # of the records; a split that was begun in another format is not gone on with
_SHARD_BYTES = 2**27  # of pixels, about
_FEWEST, _MOST = 16, 1024  # shards
_MAX_SKIPPED = 0.01  # share of all images; ten may be skipped in any case


def shard_ranges(
    num_images: int, image_size: int, channels: int, clip: Clip | None = None
) -> list[range]:
    """The images of each shard: even parts of about 128 MiB of pixels, 16 to 1,024 of them."""
    size = num_images * image_size**2 * channels * (clip.frames if clip else 1)
    count = min(max(-(-size // _SHARD_BYTES), _FEWEST), _MOST, num_images)
    edges = [num_images * i // count for i in range(count + 1)]
    return [range(*edge) for edge in itertools.pairwise(edges)]


def write(
    original: Original, folder: os.PathLike, image_size: int, num_threads: int,
    progress: Callable[[int], None], clip: Clip | None = None, encoding: str = "png",
    fit: str = "crop",
) -> dict:  # fmt: skip
    """Writes one split of a data set, or what is missing of it.

    Args:
      folder: of the data set's version, DATA_DIR/NAME_SIZEpx/1.0.0; other splits in it stay.
      image_size: height and width of the images written.
      num_threads: shards that are written at a time, at most; never more than processors.
      progress: called with the number of images done since its last call, from any thread.
      clip: what the original's clips are like; None if it has images.
      encoding: of the images, a key of `preprocessing.ENCODINGS`.
      fit: how an image becomes a square, a key of `preprocessing.FITS`.

    Returns:
      The report, which is also folder/report-SPLIT.json: see `make_report`.

    Raises:
      ConfigError: too many unreadable images; another process writes this data set; it was begun
        with other images; the disk is full. What is written is kept.
    """
    stored = Stored(image_size, clip, encoding, fit)
    plan = {
        "format": FORMAT, "original": original.fingerprint, "channels": original.channels,
        "class_names": list(original.class_names), **stored.describe(),
    }  # fmt: skip
    folder = pathlib.Path(folder)  # a local one, with renames that replace
    staging = folder.parent / f"incomplete-{original.split}"
    staging.mkdir(parents=True, exist_ok=True)
    with _only_one(staging):
        _check_plan(staging, plan)
        try:
            shards = _write_all(original, folder, staging, stored, num_threads, progress)
            if not sum(shard.records for shard in shards):
                raise ConfigError(_too_many(original, shards))
            report = make_report(original, stored, shards)
            publish(folder, staging, original, stored, report)
        except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            if not (full or "No space left" in str(error)):
                raise
            raise ConfigError(
                f"data.data_dir: no space is left for {folder}; the shards that are complete are "
                "kept: free some and run the same command again, or move the folder"
            ) from error
    shutil.rmtree(staging)
    return report


@contextlib.contextmanager
def _only_one(staging: pathlib.Path) -> Iterator[None]:
    """Locks the folder for this process; the system unlocks it when the process ends in any way."""
    with (staging / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is preparing {staging.parent.name} in {staging}; wait for it"
            ) from error
        yield


def _check_plan(staging: pathlib.Path, plan: dict) -> None:
    """Raises ConfigError if the shards that are there were made by another plan."""
    path = staging / "plan.json"
    before = json.loads(path.read_text()) if path.exists() else plan
    if changed := [key for key, value in plan.items() if before.get(key) != value]:
        raise ConfigError(
            f"{staging} was begun from other images or settings (changed: {', '.join(changed)}); "
            "delete that folder to begin anew, or bring back what was changed"
        )
    files.write_whole(path, json.dumps(plan).encode())


def _write_all(original, folder, staging, stored, num_threads, progress) -> list[Shard]:
    """All shards in their order; the first error stops all threads."""
    ranges = shard_ranges(len(original), stored.image_size, original.channels, stored.clip)
    stop, data_set = threading.Event(), folder.parent.name
    finished: list[Shard] = []

    def write_one(index: int) -> Shard:
        name = f"{data_set}-{original.split}.array_record-{index:05d}-of-{len(ranges):05d}"
        shard = _finished_shard(folder, staging, name)
        if shard is None:
            draft = staging / f"{name}.draft"
            try:
                shard = _write_shard(original, ranges[index], draft, stored, progress, stop)
                draft.rename(staging / name)
            finally:
                draft.unlink(missing_ok=True)
            facts = json.dumps(dataclasses.asdict(shard))
            files.write_whole(staging / f"{name}.json", facts.encode())
        else:
            progress(len(ranges[index]))
        finished.append(shard)
        if sum(len(done.skipped) for done in finished) > max(10, _MAX_SKIPPED * len(original)):
            raise ConfigError(_too_many(original, finished))
        return shard

    with futures.ThreadPoolExecutor(min(num_threads, os.cpu_count())) as threads:
        tasks = [threads.submit(write_one, index) for index in range(len(ranges))]
        try:
            for task in futures.as_completed(tasks):
                task.result()
            return [task.result() for task in tasks]
        except BaseException:
            stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise


def _write_shard(original, indices, path, stored, progress, stop) -> Shard:
    """Writes the images `indices` of the original to `path`, unless `stop` is set."""
    features = make_features(original, stored)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    squared_error, enlarged, classes, skipped = 0.0, 0, collections.Counter(), []
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for what, load in original.read(indices.start, indices.stop):
        if stop.is_set():
            raise futures.CancelledError  # another thread failed
        try:
            image, label = load()
            if stored.clip is not None and len(image) != stored.clip.frames:
                raise ValueError(f"{len(image)} frames instead of {stored.clip.frames}")
            size, channels, fit = stored.image_size, original.channels, stored.fit
            side = {"crop": min, "pad": max}[fit](image.shape[-3:-1])
            image = preprocessing.preprocess(image, size, channels, fit)
        except Exception as error:  # whatever a decoder may raise
            skipped.append((what, f"{type(error).__name__}: {error}"))
        else:
            images = image[None] if stored.clip is None else image
            encoded = [preprocessing.encode(one, stored.encoding) for one in images]
            if stored.encoding != "png":
                squared_error += _squared_error(images, encoded)
            files = [io.BytesIO(one) for one in encoded]
            example = {"image": files[0]} if stored.clip is None else {"video": files}
            if label is not None:
                example["label"] = label
                classes[label] += 1
            example = serializer.get_tf_example(features.encode_example(example))
            writer.write(example.SerializeToString(deterministic=True))
            enlarged += side < size
        progress(1)
    writer.close()
    written, size = len(indices) - len(skipped), path.stat().st_size
    reader = array_record_module.ArrayRecordReader(str(path))
    if reader.num_records() != written:  # the writer does not tell of every failure
        raise OSError(errno.EIO, f"{reader.num_records()} of {written} records", str(path))
    reader.close()
    return Shard(written, size, squared_error, enlarged, dict(classes), skipped)


def _squared_error(images: np.ndarray, encoded: list[bytes]) -> float:
    """The mean squared error of decoded images [N, H, W, C]."""
    read = [preprocessing.decode(one, images.shape[-1]) for one in encoded]
    return float(np.square(images - np.stack(read).astype(np.float32)).mean())


def _finished_shard(folder: pathlib.Path, staging: pathlib.Path, name: str) -> Shard | None:
    """A shard that is complete: its note is written last."""
    note = staging / f"{name}.json"
    if not (note.exists() and any((place / name).exists() for place in (staging, folder))):
        return None
    fields = json.loads(note.read_text())
    fields["classes"] = {int(label): count for label, count in fields["classes"].items()}
    return Shard(**fields)


def _too_many(original: Original, shards: list[Shard]) -> str:
    skipped = [image for shard in shards for image in shard.skipped]
    shown = "".join(f"\n  {what}: {why}" for what, why in skipped[:10])
    seen = len(skipped) + sum(shard.records for shard in shards)
    return (
        f"{len(skipped)} of the first {seen} images of {original.name!r} ({len(original)} in all) "
        f"cannot be read; at most {_MAX_SKIPPED:.0%} of all, or ten, are left out without an "
        f"error:{shown}"
    )


