"""The lease of a workdir: a file that says which run writes there, so that a second one refuses.

It works on any file system, buckets too, which have no locks. The holder renews the file every few
seconds. A file that is not renewed any more was left by a run that was killed: on its own machine
that is seen at once, from elsewhere by watching the file for a while.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from rin_jax import ConfigError

RENEWAL = 5.0  # seconds between two renewals
EXPIRY = 30.0  # seconds without renewal after which a holder elsewhere counts as dead
TAKEN = 2  # exit code of a run whose lease was taken
SETTLING = 0.5  # seconds after which two who took a free lease at once see who has it


class HeldError(ConfigError):
    """Another run holds the lease."""


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds the lease of a folder, which exists.

    Raises:
      HeldError: a run that lives holds it; afterwards, in the body, nothing is raised.
      OSError: nothing can be written there.
    """
    path = epath.Path(workdir) / "lease.json"
    own = {"id": uuid.uuid4().hex, "pid": os.getpid(), **_machine()}
    other = _read(path)
    if other and _lives(path, other):
        raise HeldError(
            f"another run writes to {workdir}: process {other['pid']} on {other['host']}. Stop it, "
            "or name another --workdir."
        )
    _write(path, own, 0)
    time.sleep(SETTLING)
    if (other := _read(path)) and other["id"] != own["id"]:
        raise HeldError(
            f"another run started on {workdir} at the same moment: process {other['pid']} on "
            f"{other['host']}. Stop it, or name another --workdir."
        )
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, own, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if (now := _read(path)) and now["id"] == own["id"]:
            path.unlink()


def _machine() -> dict[str, object]:
    """What tells the machine, and the container on it, from others; and when this process began."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "space": os.readlink(space) if space.exists() else "",
        "began": _began(os.getpid()),
    }


def _began(pid: int) -> str | None:
    """The time at which a process began, None if there is none (a number may be given again)."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie is dead


def _read(path: epath.Path) -> dict | None:
    try:
        lease = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return lease if isinstance(lease, dict) and {"id", "pid", "host"} <= set(lease) else None


def _write(path: epath.Path, lease: dict, renewals: int) -> None:
    """Writes the file as a whole: a reader never sees half of it."""
    draft = path.with_name(f"lease-{lease['id']}.json")
    draft.write_text(json.dumps({**lease, "renewals": renewals}))
    draft.replace(path)


def _renew(path: epath.Path, lease: dict, ended: threading.Event) -> None:
    renewals = 0
    while not ended.wait(RENEWAL):
        other = _read(path)
        if other and other["id"] != lease["id"]:  # this process was suspended for too long
            text = f"error: process {other['pid']} on {other['host']} took over {path.parent}"
            text += "; this run ends and saves no more.\n"
            with contextlib.suppress(OSError):  # nobody may read it any more
                os.write(sys.stderr.fileno(), text.encode())
            os._exit(TAKEN)
        renewals += 1
        with contextlib.suppress(OSError):  # a full disk; the training itself will say so
            _write(path, lease, renewals)


def _lives(path: epath.Path, lease: dict) -> bool:
    """Whether the holder of a lease lives."""
    here = _machine()
    if lease.get("began") and all(lease.get(key) == here[key] for key in ("host", "boot", "space")):
        return _began(lease["pid"]) == lease["began"]
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = _read(path)
        if now is None or now != lease:
            return now is not None
    return False
