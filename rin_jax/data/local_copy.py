"""A copy on a disk of this machine of a prepared data set in a bucket, since ArrayRecord needs one.

Only the files of the split that is read are copied, each as a whole or not at all, and what is
there with the right size stays: a copy that was interrupted continues, and a second run copies
nothing. A path of this machine, which may be a mounted bucket, is read as it is.
"""

import fcntl
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping
from concurrent import futures

import fsspec
import tensorflow_datasets as tfds
import tqdm

from rin_jax import ConfigError
from rin_jax.data import catalog
from rin_jax.data.dataset import Data
from rin_jax.runtime import files, retries

THREADS = 8  # files that are copied at a time
_SHARD = re.compile(r"-\d+-of-\d+$")


def local_builder(builder: tfds.core.DatasetBuilder, data: Data) -> tfds.core.DatasetBuilder:
    """The data set on a disk of this machine with the files of `data.split`.

    Processes of one machine take turns: the first copies, the others find the copy.

    Raises:
      ConfigError: a file of the split is not in the bucket, or the folder cannot be written or has
        not enough space.
      ReadError: a file could not be copied at any try. The same command continues.
    """
    address = os.fspath(builder.data_path)
    if not files.is_bucket(address):
        return builder
    parent = catalog.folder_of(data.cache_dir)
    if files.is_bucket(parent):
        raise ConfigError(
            f"data.data_dir is {data.data_dir!r}, a bucket, and the copy of {data.name!r} would be "
            f"in {parent}; set data.cache_dir to a folder on a disk of this machine"
        )
    folder = pathlib.Path(parent, address.partition("://")[2])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        text = f"data.cache_dir: cannot write to {folder}: {error}"
        raise ConfigError(f"{text}; name a folder that can be written") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _copy(builder, data, folder)
    return tfds.builder_from_directory(folder)


def _copy(builder: tfds.core.DatasetBuilder, data: Data, folder: pathlib.Path) -> None:
    address = os.fspath(builder.data_path)
    system, path = fsspec.core.url_to_fs(address)
    listed = [entry for entry in system.ls(path, detail=True) if entry["type"] == "file"]
    sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in listed}
    instructions = builder.info.splits[data.split].file_instructions
    shards = [os.fspath(file.filename).rpartition("/")[2] for file in instructions]
    if lost := [name for name in shards if name not in sizes]:
        raise ConfigError(
            f"data.name={data.name!r}: {address} lacks {lost[0]} ({len(lost)} of {len(shards)} "
            "files are missing); copy the data set there anew"
        )
    for name in sizes:
        if not _SHARD.search(name):  # small, and may have changed at the same size
            _fetch(system, f"{path}/{name}", folder / name, sizes[name])
    missing = {name: sizes[name] for name in shards if _size(folder / name) != sizes[name]}
    if not missing:
        return
    size, whole = sum(missing.values()), sum(sizes[name] for name in shards)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ConfigError(
            f"{size / 1e9:,.2f} GB of {data.name!r} ({data.split}) have to be copied from "
            f"{address} to {folder}, whose disk has {free / 1e9:,.2f} GB free; set data.cache_dir "
            "to a folder on a larger disk, or data.data_dir to a folder where the bucket is "
            "mounted, or prepare the data set with --format=jpeg"
        )
    print(
        f"copying {size / 1e9:,.2f} of {whole / 1e9:,.2f} GB of {data.name} ({data.split}), "
        f"{len(missing)} of {len(shards)} files, from {address} to {folder}, which has "
        f"{free / 1e9:,.0f} GB free",
        flush=True,
    )
    _fetch_all(system, path, folder, missing)


def _fetch_all(system, path: str, folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
    """Copies files with a bar; the first that cannot be copied ends it."""
    patience = 0.1 if sys.stderr.isatty() else 10  # seconds between updates of the bar
    bar = tqdm.tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, mininterval=patience)
    with bar, futures.ThreadPoolExecutor(THREADS) as threads:
        tasks = {
            threads.submit(_fetch, system, f"{path}/{name}", folder / name, size): size
            for name, size in sizes.items()
        }
        try:
            for task in futures.as_completed(tasks):
                task.result()
                bar.update(tasks[task])
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(system, source: str, target: pathlib.Path, size: int) -> None:
    """Copies one file, which is there as a whole or not at all; ReadError after the last try."""
    draft = target.with_name(f"{target.name}.draft")

    def attempt():
        system.get_file(source, str(draft))
        if _size(draft) != size:
            raise OSError(f"{_size(draft)} bytes came instead of {size}")
        draft.rename(target)

    # clients have many classes of errors
    retries.read(lambda: source, attempt, lambda error: True)


def _size(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.exists() else None
