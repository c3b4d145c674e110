"""Batches of images or clips for training and evaluation, on the host.

The order of the records is a function of (seed, step) alone: grain shuffles indices, epoch after
epoch, and process p of P takes the p-th block of each global batch, so that any number of processes
reads the same global batches, row for row, and a run resumes from its step. Records are fetched a
batch at a time; a data set that fits is kept decoded in memory from its first epoch on. Random
augmentation is done on the device and not here.
"""

import os
from collections.abc import Iterator
from concurrent import futures

import grain.python as grain
import numpy as np

from rin_jax import ConfigError
from rin_jax.data import preprocessing
from rin_jax.data.source import Source

_MEMORY_BYTES = 256 * 2**20  # a data set up to this size, preprocessed, is kept in memory

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source, batch_size: int, seed: int, start: int,
    process_index: int = 0, process_count: int = 1,
) -> Iterator[Batch]:  # fmt: skip
    """This process's part of the global batches that follow after `start` images, without end.

    A batch is {"image": uint8 [B, S, S, C]}, of clips [B, T, S, S, C], with "frames" uint8
    [B, cond_frames, S, S, C] if there are any, and if the data set has a class label, "label":
    int32 [B], where B = batch_size // process_count; `source.data` gives the rest.

    Args:
      batch_size: images of all processes together.
      seed: of the order, in [0, 2**32).
      start: images already read, by batches of whatever size.

    Raises:
      ConfigError: before anything is read, if the batch does not suit the data set or processes;
        while reading, if a label is none of the classes or an image has unsuitable channels.
      ReadError: while reading, if a record cannot be read.
    """
    if batch_size % process_count:
        raise ConfigError(
            f"train.batch_size={batch_size} is not divisible by the {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    if len(source) < batch_size:
        raise ConfigError(
            f"data.name={source.info.name!r}, data.split={source.info.split!r} has {len(source)} "
            f"records, fewer than one batch of train.batch_size={batch_size}; choose a smaller "
            "batch or a larger split"
        )
    reader = Reader(source)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    rows = batch_size // process_count

    def indices(step: int) -> np.ndarray:
        """Records of this process in the global batch `step`."""
        first = start + step * batch_size + process_index * rows
        return np.array([order[position] for position in range(first, first + rows)])

    batches = grain.MapDataset.range((len(order) - start) // batch_size).map(indices)
    batches = batches.map(_Memory(reader) if reader.num_bytes <= _MEMORY_BYTES else reader)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=source.data.prefetch)
    return iter(batches.to_iter_dataset(options))


def fixed_examples(source: Source, num: int) -> Batch:
    """The first `num` records in storage order (all, if there are fewer), as one batch.

    Batch and errors as those of `train_batches`.
    """
    return Reader(source)(np.arange(min(num, len(source))))


class Reader:
    """Reads and preprocesses the records of given indices, int [B]."""

    def __init__(self, source: Source):
        self.num_records = len(source)
        self._source, self.data = source, source.data
        frames = self.data.frames or 1
        self.num_bytes = len(source) * frames * self.data.image_size**2 * self.data.channels
        self._num_threads = min(self.data.num_threads, os.cpu_count())  # more hinder each other
        self._threads = futures.ThreadPoolExecutor(self._num_threads, thread_name_prefix="rin-data")

    def __call__(self, indices: np.ndarray) -> Batch:
        pieces = np.array_split(indices, min(len(indices), self._num_threads))
        parts = list(self._threads.map(self._read, pieces))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _read(self, indices: np.ndarray) -> Batch:
        records = [self._source[index] for index in indices.tolist()]
        size, channels = self.data.image_size, self.data.channels
        batch = {
            key: np.stack([preprocessing.preprocess(one[key], size, channels) for one in records])
            for key in ("image", "frames") if key in records[0]
        }  # fmt: skip
        if "label" in records[0]:
            batch["label"] = np.array([record["label"] for record in records], np.int32)
        return batch


class _Memory:
    """A reader that keeps what it has read, so that a record is decoded only once.

    Threads may read a missing record twice but never see one half written: it is marked as
    held after its values are there.
    """

    def __init__(self, reader: Reader):
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
