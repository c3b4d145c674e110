"""The end of a run that is told to end, by a signal or by the cloud, at any moment.

The signals are SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal is gone).

A thread of its own hears of it at once, whatever the main thread does, and tells all processes.
What is done depends on where the run is:

- between two steps (and while it waits for data): all processes agree on the step that the first
  of them has reached, go on to it, save there and leave;
- in a quiet phase (start-up, compilation, sampling, evaluation), in which the state does not
  change and is saved or about to be: the thread waits for that save and leaves, without waiting
  for the phase to end;
- after SECONDS in any case, complete or not: the checkpoint before then counts.

So the time to save never adds up with the time of a phase, and a cloud that gives 30 s is obeyed.
The exit code is 75: the same command resumes. A second SIGINT ends the process at once, whatever it
does, with exit code 130.
"""

import contextlib
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from rin_jax.runtime import exits, processes
from rin_jax.runtime.exits import PREEMPTED, RESUMABLE

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS = 25.0  # from the notice to the end at the latest; clouds give 30
# Keys of Google Cloud's metadata server and the values that announce the end of the machine.
CLOUD_KEYS = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
PRODUCT = Path("/sys/class/dmi/id/product_name")


class Preempted(SystemExit):
    """This run was told to end and has saved what it had."""

    def __init__(self):
        super().__init__(PREEMPTED)


class Watch:
    """What this process knows of its end; all but `told` is for the main thread; see `watching`."""

    def __init__(self):
        self._lock, self._answering = threading.Lock(), threading.Lock()
        self._told = False
        self._stop_at: int | None = None
        # (steps taken, what to wait for) in a quiet phase; the start-up is one
        self._quiet: tuple[int, Callable[[], None]] | None = (0, lambda: None)

    def told(self, reason: str) -> None:
        """Begins the end of this process; from any thread."""
        with self._lock:
            if self._told:
                return
            self._told, quiet = True, self._quiet
        if reason.endswith("SIGINT"):
            exits.write_error(f"interrupted: {reason}; a second one ends this process at once\n")
        else:
            exits.write_error(f"preempted: {reason}\n")
        timer = threading.Timer(SECONDS, _exit, [f"not finished after {SECONDS:g} s; "])
        timer.daemon = True
        timer.start()
        if quiet and self._agreed(quiet[0]) == quiet[0]:
            quiet[1]()
            processes.finish()
            _exit("")

    def _agreed(self, step: int) -> int:
        """The step to stop at: the furthest that a process has reached. Each answers once."""
        with self._answering:
            if self._stop_at is None:
                self._stop_at = max(map(int, processes.gather("stop at", str(step))))
            return self._stop_at

    def stops_at(self, step: int) -> bool:
        """Whether the run ends after `step` steps; waits for the other processes' answers."""
        return self._told and self._agreed(step) == step

    @contextlib.contextmanager
    def quiet(self, step: int, wait: Callable[[], None]) -> Iterator[None]:
        """A phase in which the state of `step` does not change; `wait` for its last save."""
        with self._lock:
            told = self._told
            if not told:
                self._quiet = (step, wait)
        if told and self._agreed(step) == step:
            wait()
            raise Preempted
        try:
            yield
        finally:
            self.end_quiet()

    def end_quiet(self) -> None:
        """The quiet phase is over; the start-up is one."""
        with self._lock:
            told, quiet, self._quiet = self._told, self._quiet, None
        if told and quiet and self._agreed(quiet[0]) == quiet[0]:
            threading.Event().wait()  # the thread that was told ends this process

    def listen(self) -> None:
        """From now on SIGNALS are heard, even while the main thread is inside a compilation.

        Python runs handlers in the main thread only, between two of its instructions; the number
        of the signal comes through a socket at once. A signal that was ignored at the start stays
        so: SIGHUP under nohup, SIGINT in the background of a script.
        """
        received, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: None)

        def hear():
            interrupted = False
            while byte := received.recv(1):
                if byte[0] == signal.SIGINT and interrupted:
                    os._exit(exits.INTERRUPTED)  # not even what waits to be printed is waited for
                interrupted |= byte[0] == signal.SIGINT
                if byte[0] in SIGNALS:
                    arguments = self, signal.Signals(byte[0]).name
                    threading.Thread(target=tell, args=arguments, daemon=True).start()

        threading.Thread(target=hear, name="rin-signals", daemon=True).start()


def _exit(note: str) -> NoReturn:
    exits.exit_now(PREEMPTED, f"the run ends: {note}resumable. {RESUMABLE}\n")


def tell(watch: Watch, reason: str) -> None:
    """Tells all processes of the run."""
    if not processes.tell_preempted(reason):
        watch.told(reason)


def listen_to_cloud(watch: Watch) -> None:
    """On a machine of Google Cloud, its notices tell the watch."""
    host = os.environ.get("GCE_METADATA_HOST")  # as Google's own libraries name it
    if not host and not (PRODUCT.exists() and PRODUCT.read_text().startswith("Google")):
        return
    url = f"http://{host or 'metadata.google.internal'}/computeMetadata/v1/instance"

    def poll(key: str, end: str):
        query = ""  # first what is, then what changes
        while True:
            headers = {"Metadata-Flavor": "Google"}
            request = urllib.request.Request(f"{url}/{key}{query}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=70) as answer:
                    value = answer.read().decode().strip()
            except (OSError, ValueError):
                threading.Event().wait(5.0)
                continue
            if value == end:
                return tell(watch, f"the cloud's notice ({key} is {value})")
            query = "?wait_for_change=true&timeout_sec=60"

    for key, end in CLOUD_KEYS.items():
        threading.Thread(target=poll, args=(key, end), name="rin-cloud", daemon=True).start()


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watches over its body, which is the whole of a job."""
    watch = Watch()
    watch.listen()
    listen_to_cloud(watch)
    yield watch
