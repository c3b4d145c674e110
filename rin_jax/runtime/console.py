"""What a person sees at the terminal: lines of process 0, progress with a rate and time left."""

import collections
import contextlib
import inspect
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax


class Progress:
    """Rates, per cent done, time left and where the time went, of a run of `num_steps`.

    Time is split into "step", the default, and whatever `spending` names.
    """

    TRAINING = ("step", "input_wait")  # the parts that rates count

    def __init__(self, first_step: int, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._step, self._rate = first_step, 0.0
        self._since = time.monotonic()
        self._spent: collections.Counter = collections.Counter()

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Counts what happens inside as time for `part`."""
        since = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - since

    def update(self, step: int) -> dict[str, float]:
        """Figures since the last update: time/images_per_second, and time/PART_percent."""
        now = time.monotonic()
        spent, self._spent = self._spent, collections.Counter()
        total = max(now - self._since, 1e-9)
        spent["step"] = total - spent.total()
        training = max(sum(spent[part] for part in self.TRAINING), 1e-9)
        self._rate = (step - self._step) / training
        self._step, self._since = step, now
        shares = {
            f"time/{part}_percent": 100 * seconds / total for part, seconds in sorted(spent.items())
        }
        return {"time/images_per_second": self._rate * self._batch_size, **shares}

    def line(self, unit: str, things: str, first: str = "", last: str = "") -> str:
        """The progress line after an update: `first`, the time left, `unit` 3/9, things/s, `last`.

        Lines of one run have the same columns.
        """
        left = duration((self._num_steps - self._step) / max(self._rate, 1e-9))
        step = f"{self._step:>{len(str(self._num_steps))}}/{self._num_steps}"
        per_second = self._rate * self._batch_size
        rate = f"{per_second:7,.{0 if per_second >= 100 else 1}f} {things}/s"
        return "  ".join(filter(None, (first, f"left {left:>8}", f"{unit} {step}", rate, last)))


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say(text: str) -> None:
    """Text for the person at the terminal, from process 0 alone; nothing if that is gone."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            print(text, flush=True)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Says what begins, which may take long, and how long it took when it is done."""
    since = time.monotonic()
    say(f"{what} ...")
    yield
    say(f"{what}: done in {duration(time.monotonic() - since)}")


def silence_libraries() -> None:
    """Of what libraries log only errors are shown, of JAX warnings; our package's own stay."""
    package = str(Path(__file__).parents[1])
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno >= logging.ERROR or record.pathname.startswith(package)
    )
    # jax tells of each backend that is not there, the others of how they read a bucket
    for name in ("jax", "fsspec", "gcsfs"):
        logging.getLogger(name).setLevel(logging.WARNING)


def silence_failed_loads() -> None:
    """Prints no traceback of what a failed load of a checkpoint leaves: tasks, coroutines, a loop.

    Orbax leaves a task for each array; what interrupts a read, its end included, it raises as an
    error. The load itself tells what failed.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not (closed or inspect.iscoroutine(unraisable.object)):
            before(unraisable)

    sys.unraisablehook = hook
