"""Damages a real workdir in a hundred ways, and goes on with the run each time.

    python -m tests.damage --workdir=DIR     prints a table; some ten minutes on two cores

The run was killed after step 7 of 8. Each damage is done to a copy of it, from which weights are
read and the training goes on. What comes out is one of

    same bits    all that is there is the undisturbed run's, or is known to be damaged when read
    curves said  so, but for lines of curves whose loss was said
    refused      one sentence, and the workdir is as it was
    SILENT, TRACEBACK, HANG    what must not be: then the exit code is 1

A line of metrics.jsonl has no checksum: that a digit in it was changed, nobody can notice.
"""

import argparse
import collections
import contextlib
import gc
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from tests import xla

os.environ.setdefault("XLA_FLAGS", xla.FAST)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from PIL import Image

from rin_jax import ConfigError
from rin_jax.checkpointing import checkpoints
from rin_jax.experiment import make_experiment
from rin_jax.jobs import train as job
from rin_jax.network import partitioning
from rin_jax.runtime import console, sharding
from rin_jax.sampling.weights import load_ema
from rin_jax.training import loop
from rin_jax.training.state import abstract_state, items_of
from tests import tiny

LONGEST = 120  # seconds until a run counts as hanging
SAID = "damaged lines are dropped", "it begins at step"
NEWEST, OLDER = "checkpoints/6", "checkpoints/3"
FAILURES = "SILENT", "TRACEBACK", "HANG"


def config(data_dir: str):
    return tiny.config(
        data__data_dir=data_dir, train__num_steps=8, train__log_every_steps=1,
        train__sample_every_steps=3, checkpoint__keep=3, checkpoint__keep_best=1,
        ema__snapshot_every_steps=3, sampler__num_steps=2,
    )  # fmt: skip


# ---- what is done to a workdir


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def cut(path: Path, place: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * place)])


def zero(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    begin = int(len(data) * place)
    data[begin : begin + 64] = bytes(len(data[begin : begin + 64]))
    path.write_bytes(data)


def append(path: Path, place: float = 0.5) -> None:
    path.write_bytes(path.read_bytes() + b"\xffgarbage")


def delete(path: Path, place: float = 0.5) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_file(path: Path) -> None:
    if path.exists():
        delete(path)
    path.write_text("a file")


def make_folder(path: Path) -> None:
    if path.exists():
        delete(path)
    path.mkdir()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def insert(path: Path, line: bytes) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))


def flip_everywhere(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            flip(path)


METADATA, LOSS = "_CHECKPOINT_METADATA", f"{OLDER}/metrics/metrics"
LISTED = {
    "newest: parameters cut": lambda w: cut(largest(w / NEWEST / "params")),
    "newest: bits flipped": lambda w: flip_everywhere(w / NEWEST / "params"),
    "newest: optimizer file deleted": lambda w: delete(largest(w / NEWEST / "opt_state")),
    "newest: an average deleted": lambda w: delete(w / NEWEST / "ema_decay_0.9"),
    "newest: metadata deleted": lambda w: delete(w / NEWEST / METADATA),
    "newest: metadata cut": lambda w: cut(w / NEWEST / METADATA),
    "newest: images_read changed": lambda w: replace(
        w / NEWEST / METADATA, '"images_read": ', '"images_read": 1'),
    "newest: step changed": lambda w: replace(w / NEWEST / METADATA, '"step": 6', '"step": 5'),
    "newest: another format": lambda w: replace(
        w / NEWEST / METADATA, '"format": 2', '"format": 3'),
    "newest: empty": lambda w: make_folder(w / NEWEST),
    "newest: a file": lambda w: make_file(w / NEWEST),
    "newest: deleted": lambda w: delete(w / NEWEST),
    "newest: renamed 6 -> 7": lambda w: (w / NEWEST).rename(w / "checkpoints/7"),
    "newest: renamed 6 -> 0006": lambda w: (w / NEWEST).rename(w / "checkpoints/0006"),
    "newest: copied as 8": lambda w: shutil.copytree(w / NEWEST, w / "checkpoints/8"),
    "oldest: copied as 7": lambda w: shutil.copytree(w / OLDER, w / "checkpoints/7"),
    "newest and oldest swapped": lambda w: swap(w / NEWEST, w / OLDER),
    "two newest cut": lambda w: [cut(largest(w / "checkpoints" / s / "params")) for s in "46"],
    "all cut": lambda w: [cut(largest(p / "params")) for p in (w / "checkpoints").iterdir()],
    "a leftover of a save": lambda w: shutil.copytree(
        w / NEWEST, w / "checkpoints/7.orbax-checkpoint-tmp-1"),
    "a folder ²": lambda w: (w / "checkpoints/²").mkdir(),
    "a folder 99999999999999999999": lambda w: (w / f"checkpoints/{'9' * 20}").mkdir(),
    "loss: not UTF-8": lambda w: (w / LOSS).write_bytes(b"\xff\xfe"),
    "loss: a list": lambda w: (w / LOSS).write_text("[1]"),
    "loss: an empty object": lambda w: (w / LOSS).write_text("{}"),
    "loss: text": lambda w: (w / LOSS).write_text('{"loss": "a"}'),
    "loss: deleted": lambda w: delete((w / LOSS).parent),
    "loss: a folder": lambda w: make_folder(w / LOSS),
    "checkpoints gone": lambda w: delete(w / "checkpoints"),
    "checkpoints empty": lambda w: make_folder(w / "checkpoints"),
    "checkpoints a file": lambda w: make_file(w / "checkpoints"),
    "snapshots a file": lambda w: make_file(w / "snapshots"),
    "snapshot: metadata cut": lambda w: cut(w / "snapshots/3" / METADATA),
    "snapshot: renamed 6 -> 7": lambda w: (w / "snapshots/6").rename(w / "snapshots/7"),
    "damaged a file": lambda w: (cut(largest(w / NEWEST / "params")), make_file(w / "damaged")),
    "curves: 5": lambda w: insert(w / "metrics.jsonl", b"5"),
    "curves: null": lambda w: insert(w / "metrics.jsonl", b"null"),
    "curves: {}": lambda w: insert(w / "metrics.jsonl", b"{}"),
    "curves: a step that is text": lambda w: insert(w / "metrics.jsonl", b'{"step": "2"}'),
    "curves: not UTF-8": lambda w: insert(w / "metrics.jsonl", b"\xff\xfe"),
    "curves: deep nesting": lambda w: insert(w / "metrics.jsonl", b"[" * 100_000),
    "curves: cut": lambda w: cut(w / "metrics.jsonl"),
    "curves: deleted": lambda w: delete(w / "metrics.jsonl"),
    "curves: a folder": lambda w: make_folder(w / "metrics.jsonl"),
    "events a file": lambda w: make_file(w / "events"),
    "events: cut": lambda w: cut(largest(w / "events")),
    "progress a file": lambda w: make_file(w / "progress"),
    "picture of the newest: half": lambda w: cut(w / "progress/00000006.png"),
    "lock: deep nesting": lambda w: (w / "lock.json").write_text("[" * 100_000),
    "lock: a folder": lambda w: make_folder(w / "lock.json"),
    "config.json: garbage": lambda w: append(w / "config.json"),
}  # fmt: skip


def random_damage(rng: random.Random, workdir: Path) -> str:
    """One file or folder is damaged at random; what was done."""
    places = sorted(path for path in workdir.rglob("*") if path.name != "lock.json")
    path, place = rng.choice(places), rng.random()
    kinds = [flip, cut, zero, append, delete] if path.is_file() else [delete]
    if path.name == "metrics.jsonl":
        kinds.remove(flip)
    kind = rng.choice(kinds)
    kind(path, place)
    return f"{kind.__name__} {path.relative_to(workdir)} at {place:.2f}"


# ---- what comes of it


printed: list[str] = []  # tracebacks that the run went on after


class Printed(logging.Handler):
    """Keeps log records with a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            printed.append(f"{record.name}: {record.getMessage()}")


class Judge:
    """Goes on with damaged runs and compares them with the undisturbed one in `expected`."""

    def __init__(self, folder: Path):
        self.config = config(str(folder / "data"))
        self.experiment = make_experiment(self.config)
        self.mesh = sharding.make_mesh(**self.experiment.config.mesh)
        self.base, self.expected = folder / "base", folder / "undisturbed"
        abstract = items_of(abstract_state(self.experiment, self.mesh))
        self._abstract = abstract
        job.train(self.config, str(self.expected))
        self._interrupt()
        self._states = {
            name: {one.step: one for one in checkpoints.find(self.expected / name)[0]}
            for name in ("checkpoints", "snapshots")
        } | {"base": {one.step: one for one in checkpoints.find(self.base / "checkpoints")[0]}}

    def _interrupt(self) -> None:
        open_batches = job.open_batches

        def broken(*args):
            for number, batch in enumerate(open_batches(*args)):
                if number == 7:
                    raise InterruptedError
                yield batch

        job.open_batches = broken
        with contextlib.suppress(InterruptedError):
            job.train(self.config, str(self.base))
        job.open_batches = open_batches

    def outcome(self, workdir: Path) -> tuple[str, str]:
        """What came of a damage, and what was said."""
        before, said = self._names(workdir), io.StringIO()
        printed.clear()
        signal.alarm(LONGEST)
        try:
            with contextlib.redirect_stdout(said):
                self._sample(workdir)
                job.train(self.config, str(workdir))
        except ConfigError as error:
            kept = self._names(workdir) == before and "\n" not in str(error)
            return "refused" if kept else "SILENT", str(error)
        except TimeoutError:
            return "HANG", traceback.format_exc()
        except Exception:
            return "TRACEBACK", traceback.format_exc()
        finally:
            signal.alarm(0)
        gc.collect()  # what failed in the background tells it at its end
        if printed:
            return "TRACEBACK", printed[0]
        lines = [line for line in said.getvalue().splitlines() if is_of_damage(line)]
        try:
            assert any("resumed from" in line for line in lines), "it was started anew"
            self._compare(workdir)
            complete = self._same_curves(workdir)
        except AssertionError:
            return "SILENT", traceback.format_exc()
        if complete:
            return "same bits", "; ".join(lines)
        excused = any(words in line for words in SAID for line in lines)
        return "curves said" if excused else "SILENT", "; ".join(lines)

    @staticmethod
    def _names(workdir: Path) -> list[str]:
        folders = [workdir, *(workdir / name for name in ("checkpoints", "snapshots"))]
        names = [str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return sorted(name for name in names if not name.endswith("lock.json"))

    def _sample(self, workdir: Path) -> None:
        """The weights that would be sampled from are those of their step."""
        with contextlib.suppress(ConfigError):  # the training tells
            ema = load_ema(self.experiment, self.mesh, str(workdir))
            known = self._states["checkpoints"] | self._states["base"]
            want = {f"ema_{ema.name}": self._abstract[f"ema_{ema.name}"]}
            loaded = checkpoints.load(known[ema.step], want)
            jax.tree.map(np.testing.assert_array_equal, ema.params, *loaded.values())

    def _compare(self, workdir: Path) -> None:
        """All checkpoints and pictures are the undisturbed run's, or known to be damaged."""
        for name in ("checkpoints", "snapshots"):
            found, _ = checkpoints.find(workdir / name)
            known = self._states[name]
            for one in found:
                with contextlib.suppress(checkpoints.DamagedError):
                    items = [key for key in self._abstract if key.removeprefix("ema_") in one.emas
                             or name == "checkpoints"]  # fmt: skip
                    checkpoints.load(one, {key: self._abstract[key] for key in items})
                    same = known.get(one.step) or self._states["base"][one.step]
                    assert (one.checksums, one.metadata) == (same.checksums, same.metadata)
            if name == "checkpoints":
                assert found[0].step == 8
                checkpoints.load(found[0], self._abstract)
        for path in (self.expected / "progress").iterdir():
            with contextlib.suppress(OSError, SyntaxError):  # it is gone, or its reader will know
                ours = np.asarray(Image.open(workdir / "progress" / path.name))
                np.testing.assert_array_equal(ours, np.asarray(Image.open(path)))
        assert (workdir / "progress/00000008.png").exists()

    def _same_curves(self, workdir: Path) -> bool:
        """Whether no line is missing; each that is there is the undisturbed run's."""
        ours, theirs = (
            {line["step"]: {k: v for k, v in line.items() if not k.startswith("time/")}
             for line in map(json.loads, (place / "metrics.jsonl").read_text().splitlines())}
            for place in (workdir, self.expected)
        )  # fmt: skip
        assert all(theirs[step] == line for step, line in ours.items())
        return len(ours) == len(theirs)


def is_of_damage(line: str) -> bool:
    """Whether a line of a run's output is about what was damaged."""
    words = "damaged", "skipped;", "resumed from", "cannot be read", *SAID
    return any(word in line for word in words)


def compile_once() -> None:
    """All runs are of one configuration: what they trace and compile is kept."""

    def keep(module, name):
        known, make = [], getattr(module, name)

        def remember(*args):
            known[:] = known or [make(*args)]
            return known[0]

        setattr(module, name, remember)

    keep(job, "compile_train_step")
    keep(job, "describe")
    keep(loop, "make_generate")
    keep(partitioning, "param_shapes")


def main() -> None:
    """Prints the table; exit code 1 if a damage is silent, a traceback or a hang."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="listed damages whose name has this")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True)
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def hang(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, hang)
    logging.getLogger().addHandler(Printed())
    sys.unraisablehook = lambda failed: printed.append(repr(failed.exc_value))
    console.silence_failed_loads()
    threading.excepthook = lambda failed: printed.append(repr(failed.exc_value))
    compile_once()
    with contextlib.redirect_stdout(io.StringIO()):
        judge = Judge(options.workdir.absolute())
    rng, counts = random.Random(options.seed), collections.Counter()
    damages = {name: damage for name, damage in LISTED.items() if options.only in name}
    damages |= {f"random {i}": lambda w: random_damage(rng, w) for i in range(options.random)}
    for name, damage in damages.items():
        copy = shutil.copytree(judge.base, options.workdir.absolute() / "copy")
        done = damage(copy)
        began = time.monotonic()
        kind, said = judge.outcome(copy)
        seconds = time.monotonic() - began
        what = done if isinstance(done, str) else name
        said = said if kind in FAILURES else said.replace(str(options.workdir), "")[:200]
        print(f"{kind:12} {seconds:5.1f} s  {what:45} {said}", flush=True)
        counts[kind] += 1
        shutil.rmtree(copy)
    print(dict(counts))
    sys.exit(any(counts[kind] for kind in FAILURES))


if __name__ == "__main__":
    main()
