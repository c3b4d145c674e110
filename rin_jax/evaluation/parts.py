"""Arrays of images by their index, as files of a folder: what a long job keeps while it runs.

    FOLDER/FIRST-STOP.npz    arrays [STOP - FIRST, ...] of images FIRST..STOP-1, by name

An evaluation keeps features, some 20 kB an image for Inception, and a sampling the images. A file
is written as a whole or not at all, and never changed. Any number of processes write their own
files; a job that is interrupted goes on with the images that no file has.
"""

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
from etils import epath

_NAME = re.compile(r"(\d+)-(\d+)\.npz")
BLOCK = 1000  # images that are read back together, so that sums do not depend on the files


class Parts:
    """The files of one folder, which need not exist yet."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def ranges(self) -> list[tuple[int, int]]:
        """(first, stop) of each file, in order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        found = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted((int(match[1]), int(match[2])) for match in found)

    def write(self, batches: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> None:
        """A file for each piece without a gap of batches (indices [B], arrays [B, ...] by name)."""
        indices = np.concatenate([rows for rows, _ in batches])
        names = batches[0][1]
        arrays = {name: np.concatenate([found[name] for _, found in batches]) for name in names}
        at = 0
        for run in runs(indices):
            first, rows = int(run[0]), slice(at, at + len(run))
            path = self.folder / f"{first:09d}-{first + len(run):09d}.npz"
            write_arrays(path, {name: array[rows] for name, array in arrays.items()})
            at += len(run)

    def pieces(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of images 0..count-1 in their order, file by file; all must be there."""
        done = 0  # images that were given out
        for first, stop in self.ranges():
            if stop <= done or done >= count:  # two jobs wrote at the same time
                continue
            assert first <= done, f"there is nothing of images {done}..{first - 1}"
            arrays = self._read(first, stop)
            yield {name: array[done - first : count - first] for name, array in arrays.items()}
            done = min(stop, count)
        assert done == count, f"there is nothing of images {done}..{count - 1}"

    def blocks(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """As `pieces`, BLOCK images at a time."""
        held: dict[str, np.ndarray] = {}
        for rows in self.pieces(count):
            held = {n: np.concatenate([held[n], x]) if held else x for n, x in rows.items()}
            while len(next(iter(held.values()))) >= BLOCK:
                yield {name: array[:BLOCK] for name, array in held.items()}
                held = {name: array[BLOCK:] for name, array in held.items()}
        if len(next(iter(held.values()))):
            yield held

    def join(
        self, path: epath.Path, count: int, names: Sequence[str], more: Mapping[str, np.ndarray]
    ) -> None:
        """One .npz file of the arrays `names` of images 0..count-1, and of `more`.

        The files are read one after the other, once for each name, and not held together.
        """
        with _whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name in names:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    for i, piece in enumerate(self.pieces(count)):
                        rows = piece[name]
                        if i == 0:
                            header = {
                                "descr": np.lib.format.dtype_to_descr(rows.dtype),
                                "fortran_order": False, "shape": (count, *rows.shape[1:]),
                            }  # fmt: skip
                            np.lib.format.write_array_header_1_0(member, header)
                        member.write(rows.tobytes())
            for name, array in more.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array))

    def _read(self, first: int, stop: int) -> dict[str, np.ndarray]:
        data = (self.folder / f"{first:09d}-{stop:09d}.npz").read_bytes()
        return dict(np.load(io.BytesIO(data)))

    def remove(self) -> None:
        """Takes all files away."""
        if self.folder.exists():
            self.folder.rmtree()


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file with its folder, as a whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with _whole_file(path) as file:
        file.write(buffer.getvalue())


@contextlib.contextmanager
def _whole_file(path: epath.Path) -> Iterator[BinaryIO]:
    """A file to be written, with its folder, which is there under its name when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        yield file
    draft.replace(path)


def missing(ranges: list[tuple[int, int]], count: int) -> np.ndarray:
    """The indices int [N] below `count` that are in none of the ranges (first, stop)."""
    held = np.zeros(count, bool)
    for first, stop in ranges:
        held[first:stop] = True
    return np.flatnonzero(~held)


def runs(indices: np.ndarray) -> list[np.ndarray]:
    """Increasing indices as the longest pieces without a gap."""
    return np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
