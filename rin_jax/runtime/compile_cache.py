"""Compiled programs that are kept in a folder, so that the same command compiles nothing again.

JAX keeps and finds them, by the program, its options, the versions of jaxlib and of the compiler,
and the kind of device; not by what the machine's processor can do, for which there is a folder
each. Every job keeps all of its programs, however short their compilation was.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax
from etils import epath

from rin_jax import ConfigError
from rin_jax.runtime import files

FIELD = "runtime.compile_cache"


def use(folder: str | None) -> None:
    """Keeps the programs that are compiled from now on, and finds those that are kept.

    `folder` is that of the section `runtime`. ConfigError: it cannot be written.
    """
    if folder == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    path = jax.config.jax_compilation_cache_dir
    if folder or not path:
        path = epath.Path(folder or default_folder()) / instruction_set()
    try:
        if not files.is_bucket(path):
            epath.Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:  # nobody has asked for it
            return
        raise ConfigError(
            f"{FIELD} is {folder}, but it cannot be made: {error}; name a folder that can be "
            'written, or "" to keep no compiled programs.'
        ) from error
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def default_folder() -> epath.Path:
    """Where the user's programs keep what can be made again."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return epath.Path(caches).expanduser() / "rin_jax" / "compiled"


def instruction_set() -> str:
    """A name for what this machine's processor can do: a program of another one may end it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    able = next((x for x in lines if x.startswith(("flags", "Features"))), platform.processor())
    digest = hashlib.sha256(" ".join(sorted(able.split())).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
