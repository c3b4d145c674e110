"""Batches of images for training and evaluation, on the host.

Owns the order of the records and what is done to each of them before it reaches a device. The
order is a function of (seed, step) alone: grain shuffles indices, epoch after epoch, and process
p of P takes the p-th block of each global batch, so that any number of processes reads the same
global batches, row for row, and a run resumes from its step. Records are fetched a batch at a
time; a data set that fits is kept decoded in memory from its first epoch on. Random augmentation
is not done here but on the device.
"""

from collections.abc import Iterator
from concurrent import futures

import grain.python as grain
import numpy as np
from PIL import Image

from rin_jax.data import source as source_lib

_MEMORY_BYTES = 256 * 2**20  # a data set up to this size, preprocessed, is kept in memory

Batch = dict[str, np.ndarray]


def train_batches(
    *,
    name: str,
    split: str,
    data_dir: str | None,
    image_size: int,
    channels: int,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 16,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """This process's part of the global batches start_step, start_step + 1, ..., without end.

    Args:
      name, split, data_dir: see `source.describe`.
      image_size: height and width S of the images given.
      channels: 1 (grey) or 3 (colour).
      batch_size: images of all processes together.
      seed: of the order, in [0, 2**32).
      start_step: batches already consumed.
      process_index, process_count: which part this process reads.
      num_threads: threads that read and decode the records of one batch.
      prefetch: batches prepared ahead.

    Returns:
      An iterator over {"image": uint8 [B, S, S, C]} and, if the data set has a class label,
      "label": int32 [B], where B = batch_size // process_count.

    Raises:
      ValueError: before anything is read, if a field does not suit the data set or the
        processes; while reading, if a label is none of the classes.
    """
    if batch_size % process_count:
        raise ValueError(
            f"train.batch_size={batch_size} is not divisible by the {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    source = _open(name, split, data_dir, channels)
    if len(source) < batch_size:
        raise ValueError(
            f"data.name={name!r}, data.split={split!r} has {len(source)} records, fewer than one "
            f"batch of train.batch_size={batch_size}; choose a smaller batch or a larger split"
        )
    reader = _Reader(source, image_size, channels, num_threads)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = batch_size // process_count
    first = process_index * rows

    def global_position(i: int) -> int:
        """Position in the global order of this process's i-th record."""
        return i // rows * batch_size + first + i % rows

    indices = grain.MapDataset.range(len(order) // process_count)
    indices = indices.map(lambda i: order[global_position(i)]).batch(rows)
    batches = indices.map(_Memory(reader) if reader.num_bytes <= _MEMORY_BYTES else reader)
    iterator = iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        )
    )
    iterator.set_state({"next_index": start_step})
    return iterator


def fixed_examples(
    *,
    name: str,
    split: str,
    data_dir: str | None,
    image_size: int,
    channels: int,
    num: int,
    num_threads: int = 16,
) -> Batch:
    """The first `num` records in storage order (all, if there are fewer), as one batch.

    Arguments and errors as `train_batches`.
    """
    source = _open(name, split, data_dir, channels)
    return _Reader(source, image_size, channels, num_threads)(np.arange(min(num, len(source))))


def preprocess(image: np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """Largest central square, antialiased bicubic resize, grey repeated if colour is wanted.

    Args:
      image: uint8 [H, W, C], C being 1 or 3.
      image_size: S; an image of that size already is not resized.
      channels: as C, or 3 where C is 1.

    Returns:
      uint8 [S, S, channels]; it may share memory with `image`.

    Raises:
      ValueError: colour is stored and grey wanted, or another unsuitable number of channels.
    """
    height, width, stored = image.shape
    _check_channels(stored, channels)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side != image_size:
        picture = Image.fromarray(image[..., 0] if stored == 1 else image)
        picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
        image = np.asarray(picture).reshape(image_size, image_size, stored)
    return np.repeat(image, channels, axis=-1) if stored < channels else image


def _check_channels(stored: int, channels: int) -> None:
    if (stored, channels) not in ((1, 1), (1, 3), (3, 3)):
        raise ValueError(
            f"data.channels={channels} does not suit images stored with {stored}: grey (1) is "
            f"read as 1 or 3, colour (3) as 3 only; set data.channels to one of these or choose "
            f"another data.name"
        )


def _open(name: str, split: str, data_dir: str | None, channels: int) -> source_lib.ImageSource:
    stored = source_lib.describe(name, split, data_dir).image_shape[-1]
    if stored is not None:  # else each record tells
        _check_channels(stored, channels)
    return source_lib.open_source(name, split, data_dir)


class _Reader:
    """Reads and preprocesses the records of given indices, int [B]."""

    def __init__(
        self, source: source_lib.ImageSource, image_size: int, channels: int, num_threads: int
    ):
        self.num_records = len(source)
        self.num_bytes = len(source) * image_size**2 * channels
        self._source, self._image_size, self._channels = source, image_size, channels
        self._threads = futures.ThreadPoolExecutor(num_threads, thread_name_prefix="rin-data")

    def __call__(self, indices: np.ndarray) -> Batch:
        records = list(self._threads.map(self._read, indices.tolist()))
        return {key: np.stack([record[key] for record in records]) for key in records[0]}

    def _read(self, index: int) -> Batch:
        record = self._source[index]
        batch = {"image": preprocess(record["image"], self._image_size, self._channels)}
        if "label" in record:
            label, num_classes = record["label"], self._source.info.num_classes
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"data.name={self._source.info.name!r}: the label of record {index} is "
                    f"{label}, outside [0, {num_classes}); choose a data.split with labels"
                )
            batch["label"] = np.int32(label)
        return batch


class _Memory:
    """A reader that keeps what it has read, so that a record is decoded only once.

    Threads may read a missing record twice but never see one half written: it is marked as
    held after its values are there.
    """

    def __init__(self, reader: _Reader):
        self._reader = reader
        self._held = np.zeros(reader.num_records, bool)
        self._arrays: Batch = {}

    def __call__(self, indices: np.ndarray) -> Batch:
        missing = indices[~self._held[indices]]
        if missing.size:
            for key, values in self._reader(missing).items():
                empty = np.empty((self._held.size, *values.shape[1:]), values.dtype)
                self._arrays.setdefault(key, empty)[missing] = values
            self._held[missing] = True
        return {key: array[indices] for key, array in self._arrays.items()}
