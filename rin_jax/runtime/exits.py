"""The ends of a run that are not the end of its work, and their exit codes, in all processes alike.

| code | | a restart |
|---|---|---|
| 1 | an unexpected error, or a process 0 or a file that cannot be reached | resumes |
| 2 | a mistake in the configuration or the command | would fail again |
| 3 | a number that is not finite | would fail again |
| 75 | told to end by SIGTERM, SIGINT, SIGHUP or the cloud; saved | resumes |
| 130 | SIGINT for the second time, or before anything had begun | resumes |
| 134 | a process died or never came; JAX names it (JAX 0.7: code 1) | resumes |
"""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 128 + signal.SIGINT
RESUMABLE = "Run the same command again to resume."

Codes = Mapping[type[BaseException], int]


def exit_code(error: BaseException, codes: Codes) -> int:
    """The exit code of an exception: that of its class in `codes`, else 1."""
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def write_error(text: str) -> None:
    """Writes to the standard error, from any thread, though nobody may read it any more."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())


def exit_now(code: int, text: str) -> NoReturn:
    """Ends this process at once: an orderly exit would wait for processes that are gone.

    Or for threads: where Orbax fails to save to a bucket, it leaves some that wait for minutes.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    write_error(text)
    os._exit(code)
