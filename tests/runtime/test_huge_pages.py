"""A program starts once more for huge pages, unless its environment has decided."""

import os
import subprocess
import sys

import pytest

from rin_jax.runtime import huge_pages

PROGRAM = """
import os, sys
from rin_jax.runtime import huge_pages
print(os.getpid(), flush=True)
huge_pages.use()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""


def lines_of(tunables: str | None) -> list[str]:
    environment = {key: x for key, x in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    command = [sys.executable, "-c", PROGRAM, "an argument"]
    return subprocess.check_output(command, env=environment, text=True).splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
@pytest.mark.parametrize("given", [None, "glibc.malloc.arena_max=4"])
def test_a_program_starts_once_more_as_the_same_process(given):
    *started, end = lines_of(given)
    assert len(started) == 2
    assert started[0] == started[1]
    expected = [given, huge_pages.TUNABLE] if given else [huge_pages.TUNABLE]
    assert end == f"{':'.join(expected)} an argument"


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
def test_the_command_line_has_them(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import os\nraise ValueError(os.environ['GLIBC_TUNABLES'])\n")
    environment = {key: x for key, x in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "rin_jax.main", f"--config={config}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert huge_pages.TUNABLE in done.stderr


def test_what_the_environment_says_stays():
    (_, end) = lines_of("glibc.malloc.hugetlb=0")
    assert end == "glibc.malloc.hugetlb=0 an argument"
