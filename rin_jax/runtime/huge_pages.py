"""Huge pages for what the C library allocates, on Linux.

XLA:CPU takes the memory of a step's intermediate results from the C library and gives it back when
the step is done. Large pieces go back to the system, so each step gets hundreds of megabytes anew,
and the kernel makes them page by page: in pages of 4 KiB that is a sixth of the time of a training
step of 31 million parameters (benchmarks/README.md).
"""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb=1"  # of glibc 2.35; others do not look at it


def use() -> None:
    """Starts this program once more, as the same process, with huge pages if the kernel has them.

    glibc reads its settings at the start alone. To be called before anything else is done. Nothing
    happens where the environment decides already, under a debugger, and elsewhere than on Linux.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in given or sys.gettrace():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (given, TUNABLE)))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
