"""Features of images by their index, as files of a folder: what an evaluation keeps while it runs.

    FOLDER/FIRST-STOP.npz    float32 arrays [STOP - FIRST, ...] of images FIRST..STOP-1, by name

A file is written as a whole or not at all, and never changed. Any number of processes write their
own files; an evaluation that is interrupted goes on with the images that no file has. An image
needs some 20 kB for Inception, whatever its own size.
"""

import io
import re
from collections.abc import Iterator, Mapping

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

    def write(self, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """The features of images `first`, first + 1, ..; each array has a row for each."""
        (count,) = {len(array) for array in arrays.values()}
        write_arrays(self.folder / f"{first:09d}-{first + count:09d}.npz", arrays)

    def blocks(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The features of images 0..count-1 in their order, BLOCK at a time; all must be there."""
        held: dict[str, np.ndarray] = {}
        done = 0  # images that are held or were given out
        for first, stop in self.ranges():
            if stop <= done or done >= count:  # two evaluations wrote at the same time
                continue
            assert first <= done, f"images {done}..{first - 1} have no features"
            arrays = self._read(first, stop)
            rows = {name: array[done - first : count - first] for name, array in arrays.items()}
            done = min(stop, count)
            held = {n: np.concatenate([held[n], x]) if held else x for n, x in rows.items()}
            while len(next(iter(held.values()))) >= BLOCK:
                yield {name: array[:BLOCK] for name, array in held.items()}
                held = {name: array[BLOCK:] for name, array in held.items()}
        assert done == count, f"images {done}..{count - 1} have no features"
        if len(next(iter(held.values()))):
            yield held

    def _read(self, first: int, stop: int) -> dict[str, np.ndarray]:
        data = (self.folder / f"{first:09d}-{stop:09d}.npz").read_bytes()
        return dict(np.load(io.BytesIO(data)))

    def remove(self) -> None:
        """Takes all files away."""
        if self.folder.exists():
            self.folder.rmtree()


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file with its folder, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    draft = path.with_suffix(".draft")
    draft.write_bytes(buffer.getvalue())
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
