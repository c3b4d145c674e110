"""The records of a prepared data set, read at random without TensorFlow.

Nothing is prepared here but the digits and what is rendered from them, which need no download.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from rin_jax import ConfigError
from rin_jax.data import catalog, local_copy, preprocessing, set_metadata
from rin_jax.data.dataset import Data
from rin_jax.data.digits import Digits
from rin_jax.data.moving_digits import MovingDigits
from rin_jax.runtime import files, retries

REMEDY = (
    "; if the file is damaged, copy it anew, or delete its folder and run once with --mode=prepare"
)


class Source:
    """The records of one split, in storage order, by the section `data`; `info` is about them.

    Record i is {"image": uint8 [H, W, C]} and, if info.num_classes > 0, "label": int. Of a clip
    with `data.clip.cond_frames` = c, "frames" are its first c frames, unless c is 0, and "image" is
    the rest, uint8 [T, H, W, C]: what is denoised. An image is decoded for training at
    `data.image_size`, see `preprocessing.decode`. Reading from several threads is safe; it raises
    ReadError (`runtime.retries`), or ConfigError at a label that is none of the classes.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, data: Data):
        self.data, self.info = data, catalog.info(data.name, data.split, builder, data.frames)
        self._builder = builder
        self._image_key, self._label_key = catalog.feature_keys(data.name, builder, data.frames)
        self._local = local_copy.local_builder(builder, data)
        self._files = self._local.info.splits[data.split].file_instructions
        _check_files(data.name, self._files)
        self._records = self._open()

    def _open(self):
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return self._local.as_data_source(self.data.split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        pixels, label = self._read(index, lambda x: (self._pixels(x), self._label(x)))
        first = self.data.cond_frames
        record = {"frames": pixels[:first], "image": pixels[first:]} if first else {"image": pixels}
        return record if label is None else {**record, "label": self._class(index, label)}

    def other_split(self, name: str) -> "Source | None":
        """Another split of the same data set; None if there is none, or this is a part of it."""
        if name not in self._builder.info.splits or self.data.split.startswith(name):
            return None
        return Source(self._builder, dataclasses.replace(self.data, split=name))

    def label(self, index: int) -> int:
        """The class of a record, without decoding its image."""
        return self._class(index, self._read(index, self._label))

    def place(self, index: int) -> str:
        """The file of a record and the record's position in it, for messages."""
        for file in self._files:
            if index < file.take:
                return f"{file.filename}, record {file.skip + index}"
            index -= file.take
        raise IndexError(index)

    def _read(self, index: int, decode: Callable[[Mapping], Any]) -> Any:
        """decode(features of a record), tried again if it fails."""
        tries = itertools.count()

        def attempt():
            if next(tries):
                self._records = self._open()  # an open file that went stale stays so
            # TFDS's own way to the features takes five times as long
            record = self._records[index]
            return decode(tf_example_pb2.Example.FromString(record).features.feature)

        # array_record and the decoders have many classes of errors
        return retries.read(lambda: self.place(index), attempt, lambda error: True, REMEDY)

    def _pixels(self, stored: Mapping) -> np.ndarray:
        """The image [H, W, C] or the whole clip [T, H, W, C]."""
        channels, size = self.info.example_shape[-1], self.data.image_size
        encoded = stored[self._image_key].bytes_list.value
        images = [preprocessing.decode(one, channels, size) for one in encoded]
        if len(images) != (self.data.frames or 1):
            raise ValueError(f"it has {len(images)} images instead of {self.data.frames or 1}")
        return images[0] if self.data.clip is None else np.stack(images)

    def _label(self, stored: Mapping) -> int | None:
        if self._label_key is None:
            return None
        (label,) = stored[self._label_key].int64_list.value
        return label

    def _class(self, index: int, label: int) -> int:
        if not 0 <= label < self.info.num_classes:
            raise ConfigError(
                f"data.name={self.info.name!r}: the label of record {index} is {label}, outside "
                f"[0, {self.info.num_classes}); choose a data.split with labels"
            )
        return label

    @property
    def fingerprint(self) -> str:
        """Equal for equal data, as far as sizes and a few records tell."""
        digest = hashlib.sha256(str([(file.skip, file.take) for file in self._files]).encode())
        digest.update(str((self.info.example_shape, self.info.class_names)).encode())
        for index in {0, len(self) // 2, len(self) - 1}:
            for encoded in self._read(index, lambda x: x[self._image_key].bytes_list.value):
                digest.update(encoded)
        return digest.hexdigest()


def open_source(data: Data) -> Source:
    """Opens one split for training, after a look at each of its files; needs size and channels.

    Raises:
      ConfigError: as `catalog.describe`; the channels do not suit; it is not prepared, with other
        frames of each file than wanted, or in a format without random access; a file is missing or
        damaged.
    """
    where = data.name, data.data_dir, data.image_size, data.frames
    builder = catalog.find_builder(*where)
    info = catalog.info(data.name, data.split, builder, data.frames)
    if info.example_shape[-1] is not None:  # else each record tells
        preprocessing.check_channels(info.example_shape[-1], data.channels)
    if isinstance(builder, Digits | MovingDigits) and not builder.is_prepared():
        if files.is_bucket(builder.data_path):
            raise ConfigError(
                f"data.data_dir is {data.data_dir!r}, but {data.name!r} is made on a disk of this "
                "machine; name a folder on it, or do not set data.data_dir"
            )
        catalog.prepare_with_tfds(data.name, builder, None)
        builder = catalog.find_builder(*where)
    if data.clip is not None:
        _check_clips(data, builder.data_path)
    remedy = "run the same command once with --mode=prepare"
    if not builder.is_prepared():
        known, flag = catalog.other_sizes(data.name, data.data_dir, data.image_size, data.frames)
        folder, flag = catalog.folder_of(data.data_dir), flag and f"{flag}, or "
        text = f"data.name={data.name!r} is not prepared in {folder}{known}"
        raise ConfigError(f"{text}; {flag}{remedy}")
    if not catalog.has_random_access(builder):
        raise ConfigError(
            f"data.name={data.name!r} is in {builder.data_path} in a format without random access; "
            f"{remedy}, which writes a copy as array_record"
        )
    return Source(builder, data)


def _check_clips(data: Data, folder: epath.Path) -> None:
    """Raises ConfigError if clips were prepared with other frames of each file than wanted."""
    split = re.match(r"\w*", data.split)[0]
    made = set_metadata.read_report(folder, split) or {"stride": 1, "window": "first"}
    for field, value in data.clip.prepared.items():
        if made.get(field, value) != value:
            raise ConfigError(
                f"data.clip.{field} is {value!r}, but {data.name!r} in {folder} was prepared with "
                f"{made[field]!r}; set it to that, or delete that folder and prepare it anew"
            )


def _check_files(name: str, files: list) -> None:
    """Raises ConfigError if a file is missing or lacks records, ReadError if it is out of reach."""

    def problem(file) -> str | None:
        path = epath.Path(file.filename)

        def look() -> bool:
            with path.open("rb") as stream:
                return bool(stream.read(1))

        try:
            retries.read(lambda: str(path), look)
        except FileNotFoundError:
            return f"{path} is missing"
        except PermissionError as error:
            return f"{path} cannot be opened: {error}"
        try:
            reader = array_record_module.ArrayRecordReader(file.filename)
            records = reader.num_records()
            reader.close()
        except Exception as error:
            return f"{path} cannot be opened: {error}"
        if records != file.examples_in_shard:
            lost = f"{file.examples_in_shard}, so that record {records} is the first one missing"
            return f"{path} is damaged: it has {records} records instead of {lost}"
        return None

    with futures.ThreadPoolExecutor(16) as threads:
        problems = [text for text in threads.map(problem, files) if text]
    if problems:
        raise ConfigError(
            f"data.name={name!r}: {problems[0]} ({len(problems)} of {len(files)} files are so); "
            f"copy it anew, or delete its folder and run once with --mode=prepare"
        )
