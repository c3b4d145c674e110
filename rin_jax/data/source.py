"""The records of a prepared data set, read at random without TensorFlow.

Owns the look at the files before training, the reading of a record and the words for what is
wrong with one. Nothing is prepared here but the digits, which lie in a Python package.
"""

import hashlib
from collections.abc import Mapping
from concurrent import futures

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from rin_jax.data import catalog, digits, preprocessing

_THREADS = 16  # that look at files together


class ImageSource:
    """The records of one split, in storage order.

    Record i is {"image": uint8 [H, W, C]} and, if info.num_classes > 0, "label": int. An image is
    decoded for training at `image_size`, see `images.decode`. Reading from several threads is
    safe.

    Attributes:
      info: the DatasetInfo.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        info: catalog.DatasetInfo,
        image_size: int,
    ):
        self.info, split = info, info.split
        self._image_size = image_size
        self._image_key, self._label_key = catalog.feature_keys(info.name, builder)
        self._files = builder.info.splits[split].file_instructions
        _check_files(info.name, self._files)
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        try:
            stored = self._stored(index)
            (encoded,) = stored[self._image_key].bytes_list.value
            image = preprocessing.decode(encoded, self.info.image_shape[-1], self._image_size)
        except Exception as error:
            raise ValueError(f"{self.place(index)} cannot be read: {error}") from error
        return {"image": image, **self._label(index, stored)}

    def label(self, index: int) -> int:
        """The class of a record, without decoding its image.

        Raises:
          ValueError: it is none of the classes.
        """
        return self._label(index, self._stored(index))["label"]

    def place(self, index: int) -> str:
        """The file of a record and the record's position in it, for messages."""
        for file in self._files:
            if index < file.take:
                return f"{file.filename}, record {file.skip + index}"
            index -= file.take
        raise IndexError(index)

    def _stored(self, index: int) -> Mapping:
        """The features of a record; TFDS's own way to them takes five times as long."""
        return tf_example_pb2.Example.FromString(self._records[index]).features.feature

    def _label(self, index: int, stored: Mapping) -> dict:
        if self._label_key is None:
            return {}
        (label,) = stored[self._label_key].int64_list.value
        if not 0 <= label < self.info.num_classes:
            raise ValueError(
                f"data.name={self.info.name!r}: the label of record {index} is {label}, outside "
                f"[0, {self.info.num_classes}); choose a data.split with labels"
            )
        return {"label": label}

    @property
    def fingerprint(self) -> str:
        """Equal for equal data, as far as sizes and a few records tell."""
        digest = hashlib.sha256(str([(file.skip, file.take) for file in self._files]).encode())
        digest.update(str((self.info.image_shape, self.info.class_names)).encode())
        for index in {0, len(self) // 2, len(self) - 1}:
            digest.update(self._stored(index)[self._image_key].bytes_list.value[0])
        return digest.hexdigest()


def open_source(
    name: str, split: str, data_dir: str | None, image_size: int, channels: int
) -> ImageSource:
    """Opens one split for training, after a look at each of its files.

    Args:
      name, split, data_dir: see `catalog.describe`.
      image_size: height and width to train at.
      channels: 1 (grey) or 3 (colour).

    Raises:
      ValueError: as `catalog.describe`; the channels do not suit; it is not prepared, or in a
        format without random access; a file is missing or damaged.
    """
    builder = catalog.find_builder(name, data_dir, image_size)
    stored = catalog.info(name, split, builder).image_shape[-1]
    if stored is not None:  # else each record tells
        preprocessing.check_channels(stored, channels)
    if isinstance(builder, digits.Digits) and not builder.is_prepared():
        catalog.prepare_with_tfds(name, builder, None)
        builder = catalog.find_builder(name, data_dir, image_size)
    if not builder.is_prepared():
        raise ValueError(
            f"data.name={name!r} is not prepared in {catalog.folder_of(data_dir)}"
            f"{catalog.other_sizes(name, data_dir)}; run the same command once with --mode=prepare"
        )
    if not catalog.has_random_access(builder):
        raise ValueError(
            f"data.name={name!r} is in {builder.data_path} in a format without random access; run "
            f"the same command once with --mode=prepare, which writes a copy as array_record"
        )
    return ImageSource(builder, catalog.info(name, split, builder), image_size)


def _check_files(name: str, files: list) -> None:
    """Raises ValueError at a file that is missing or has not the records that it should have."""

    def problem(file) -> str | None:
        if not epath.Path(file.filename).exists():
            return f"{file.filename} is missing"
        try:
            reader = array_record_module.ArrayRecordReader(file.filename)
            records = reader.num_records()
            reader.close()
        except Exception as error:
            return f"{file.filename} cannot be opened: {error}"
        if records != file.examples_in_shard:
            return (
                f"{file.filename} is damaged: it has {records} records instead of "
                f"{file.examples_in_shard}, so that record {records} is the first one missing"
            )
        return None

    with futures.ThreadPoolExecutor(_THREADS) as threads:
        problems = [text for text in threads.map(problem, files) if text]
    if problems:
        raise ValueError(
            f"data.name={name!r}: {problems[0]} ({len(problems)} of {len(files)} files are so); "
            f"copy it anew, or delete its folder and run once with --mode=prepare"
        )
