"""The lock of a workdir: a second run that would write there refuses, and names the first.

In a folder it is a lock of the operating system (`flock`) on WORKDIR/lock.json, which ends with the
process that holds it. Linux passes it to an NFS server (version 4, or 3 with lockd), so that it
holds between machines; the server keeps the lock of a machine that is gone for up to two minutes.

A bucket has no locks. There the holder writes the file anew every few seconds, on the condition
that it is still the one that it wrote before, and a file that does not change any more was left by
a run that was killed.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rin_jax import ConfigError
from rin_jax.runtime import exits, files

NFS_EXPIRY = 120.0  # seconds to wait for the lock of another machine, which may be gone
RENEWAL = 5.0  # seconds between two renewals in a bucket
EXPIRY = 30.0  # seconds without a renewal after which a holder counts as dead
# of TensorStore with one request: a renewal that fails is tried again soon, by the next one
PATIENCE = {"gcs_request_retries": {"max_retries": 4, "initial_delay": "0.2s", "max_delay": "1s"}}
FORBIDDEN = "PERMISSION_DENIED", "UNAUTHENTICATED"  # how TensorStore's messages begin then
FILE = "lock.json"
TAKEN = 2  # exit code of a run whose lock was taken


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds the lock of a folder or bucket, which exists.

    ConfigError: another run holds it. OSError: nothing can be written there, or the file system has
    no locks. Afterwards, in the body, nothing is raised.
    """
    own = {"id": uuid.uuid4().hex, "pid": os.getpid(), "host": socket.gethostname()}
    if files.is_bucket(workdir):
        with _hold_by_renewals(workdir, own):
            yield
        return
    with (Path(workdir) / FILE).open("a+") as file:
        _lock(file, workdir)
        file.truncate(0)
        file.write(json.dumps(own))
        file.flush()
        try:
            yield
        finally:  # the file stays: another run may be about to lock it
            file.truncate(0)


def _lock(file: TextIO, workdir: str) -> None:
    deadline = time.monotonic() + NFS_EXPIRY
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _parse(Path(file.name).read_bytes())
        elsewhere = holder and holder["host"] != socket.gethostname()
        if not elsewhere or time.monotonic() > deadline:
            raise _held(workdir, holder)
        time.sleep(1.0)


def _parse(text: str | bytes) -> dict | None:
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return holder if isinstance(holder, dict) and {"id", "pid", "host"} <= set(holder) else None


def _held(workdir: object, holder: dict | None) -> ConfigError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "it has only just begun"
    text = f"another run writes to {workdir}: {who}."
    return ConfigError(f"{text} Stop it, or name another --workdir.")


@contextlib.contextmanager
def _hold_by_renewals(folder: str, own: dict) -> Iterator[None]:
    lock = _RenewedLock(folder, own)
    lock.take()
    ended = threading.Event()
    thread = threading.Thread(target=lock.renew, args=[ended], name="rin-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        lock.release()


class _RenewedLock:
    """lock.json in a bucket, written by TensorStore on the condition that nobody else has."""

    def __init__(self, folder: str, own: dict):
        import tensorstore as ts  # here, because it is large

        self._folder, self._own, self._renewals = folder, own, 0
        self._store = ts.KvStore.open(f"{folder.rstrip('/')}/", context=ts.Context(PATIENCE))
        self._store = self._store.result()
        self._generation = b""  # that of the file as this process knows it

    def _read(self) -> dict | None:
        """Whose file it is; None if there is none, or one that no run has written."""
        found = self._store.read(FILE).result(timeout=EXPIRY)
        self._generation = found.stamp.generation
        return _parse(found.value.decode(errors="replace"))

    def _write(self, text: str | None) -> dict | None:
        """Writes the file, or deletes it, if it is still the one known; else whose it is now.

        An answer that was lost on its way makes a file of our own look like another's.
        """
        def write() -> bytes:
            future = self._store.write(FILE, text, if_equal=self._generation)
            return future.result(timeout=EXPIRY).generation

        while not (generation := write()):
            holder = self._read()
            if holder and holder["id"] != self._own["id"]:
                return holder
        self._generation = generation
        return None

    def _write_own(self) -> dict | None:
        return self._write(json.dumps({**self._own, "renewals": self._renewals}))

    def take(self) -> None:
        """ConfigError: another run holds it, or takes it at the same moment."""
        try:
            found = self._read()
        except ValueError as error:  # TensorStore has no classes of its own
            if str(error).startswith(FORBIDDEN):
                raise PermissionError(str(error)) from error
            raise
        deadline = time.monotonic() + EXPIRY
        while found and time.monotonic() < deadline:
            time.sleep(1.0)
            if (now := self._read()) != found and now:
                raise _held(self._folder, now)
            found = now
        if other := self._write_own():
            raise _held(self._folder, other)

    def renew(self, ended: threading.Event) -> None:
        """Writes the file anew until `ended` is set; one request each time, errors or not."""
        while not ended.wait(RENEWAL):
            self._renewals += 1
            with contextlib.suppress(Exception):  # the training itself will say so
                if other := self._write_own():  # this process was suspended for too long
                    text = f"error: process {other['pid']} on {other['host']} took over"
                    exits.exit_now(
                        TAKEN, f"{text} {self._folder}; this run ends and saves no more.\n"
                    )

    def release(self) -> None:
        """Deletes the file if it is still this process's; else it expires."""
        with contextlib.suppress(Exception):
            self._write(None)
