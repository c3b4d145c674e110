"""The lock of a workdir: a second run that would write there refuses, and names the first.

In a folder it is a lock of the operating system (`flock`) on WORKDIR/lock.json, which ends with the
process that holds it. Linux passes it to an NFS server (version 4, or 3 with lockd), so that it
holds between machines; the server keeps the lock of a machine that is gone for up to two minutes.

A bucket has no locks. There the holder writes the file anew every few seconds, and a file that does
not change any more was left by a run that was killed.
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

from etils import epath

from rin_jax import ConfigError
from rin_jax.runtime import exits

NFS_EXPIRY = 120.0  # seconds to wait for the lock of another machine, which may be gone
RENEWAL = 5.0  # seconds between two renewals in a bucket
EXPIRY = 30.0  # seconds without a renewal after which a holder counts as dead
SETTLING = 0.5  # seconds after which two runs that write the file at once see whose it is
TAKEN = 2  # exit code of a run whose lock was taken


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds the lock of a folder or bucket, which exists.

    ConfigError: another run holds it. OSError: nothing can be written there, or the file system has
    no locks. Afterwards, in the body, nothing is raised.
    """
    own = {"id": uuid.uuid4().hex, "pid": os.getpid(), "host": socket.gethostname()}
    if "://" in workdir:
        with _hold_by_renewals(epath.Path(workdir) / "lock.json", own):
            yield
        return
    with (Path(workdir) / "lock.json").open("a+") as file:
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
def _hold_by_renewals(path: epath.Path, own: dict) -> Iterator[None]:
    def read() -> dict | None:
        try:
            return _parse(path.read_text())
        except OSError:
            return None

    def write(renewals: int) -> None:
        path.write_text(json.dumps({**own, "renewals": renewals}))

    def renew() -> None:
        renewals = 0
        while not ended.wait(RENEWAL):
            other = read()
            if other and other["id"] != own["id"]:  # this process was suspended for too long
                text = f"error: process {other['pid']} on {other['host']} took over {path.parent}"
                exits.exit_now(TAKEN, f"{text}; this run ends and saves no more.\n")
            renewals += 1
            with contextlib.suppress(OSError):  # the training itself will say so
                write(renewals)

    found, deadline = read(), time.monotonic() + EXPIRY
    while found and time.monotonic() < deadline:
        time.sleep(1.0)
        if (now := read()) != found and now:
            raise _held(path.parent, now)
        found = now
    write(0)
    time.sleep(SETTLING)
    if not (now := read()) or now["id"] != own["id"]:
        raise _held(path.parent, now)
    ended = threading.Event()
    thread = threading.Thread(target=renew, name="rin-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (now := read()) and now["id"] == own["id"]:
            path.unlink()
