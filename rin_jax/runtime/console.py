"""What a person sees at the terminal: lines of process 0, progress with a rate and time left."""

import collections
import contextlib
import inspect
import logging
import sys
import time
from collections.abc import Iterator, Mapping

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
        """Figures since the last update: images_per_second, and time_PART, a share in [0, 1]."""
        now = time.monotonic()
        spent, self._spent = self._spent, collections.Counter()
        total = max(now - self._since, 1e-9)
        spent["step"] = total - spent.total()
        training = max(sum(spent[part] for part in self.TRAINING), 1e-9)
        self._rate = (step - self._step) / training
        self._step, self._since = step, now
        shares = {f"time_{part}": seconds / total for part, seconds in sorted(spent.items())}
        return {"images_per_second": self._rate * self._batch_size, **shares}

    def line(self, values: Mapping[str, float]) -> str:
        """The progress line after an update."""
        left = (self._num_steps - self._step) / max(self._rate, 1e-9)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        done = 100 * self._step / self._num_steps
        return f"step {self._step}/{self._num_steps} ({done:.1f} %)  {text}  {duration(left)} left"


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
