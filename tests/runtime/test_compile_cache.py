"""Compiled programs are kept: the second process of the same command compiles nothing."""

import collections
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from rin_jax import ConfigError
from rin_jax.runtime import compile_cache
from tests import xla

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
    from tests import tiny

    def get_config(arg=""):
        changes = {changes}
        return tiny.config(data__data_dir={folder!r}, train__num_steps=3, **changes)
"""
# main, that tells how often JAX asked for a program and how often one was kept
CHILD = """
    import collections
    import json
    import sys
    from jax import monitoring
    from rin_jax import main

    if __name__ == "__main__":
        counts = collections.Counter()
        monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
        try:
            main.start()
        finally:
            print(json.dumps(counts))
"""


@pytest.fixture
def settings():
    """JAX's settings are as before afterwards."""
    names = (
        "jax_compilation_cache_dir", "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def run(folder: Path, workdir: str, **changes) -> collections.Counter:
    """What JAX counts in a training from the command line, in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": xla.FAST, "PYTHONPATH": str(ROOT)}
    text = CONFIG.format(folder=str(folder / "data"), changes=changes)
    (folder / "config.py").write_text(textwrap.dedent(text))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), f"--config={folder / 'config.py'}",
         f"--workdir={folder / workdir}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return collections.Counter(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path):
    kept = {"runtime__compile_cache": str(tmp_path / "kept")}
    first = run(tmp_path, "a", **kept)
    assert first["cache_misses"] > 10
    again = run(tmp_path, "b", **kept)
    assert again["cache_hits"] == again["compile_requests_use_cache"] > 10
    assert not again["cache_misses"]


def test_folders(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "of the environment"))
    own = compile_cache.instruction_set()
    for folder, expected in (
        (None, tmp_path / "of the environment"),
        (str(tmp_path / "named"), tmp_path / "named" / own),
        ("gs://bucket/programs", f"gs://bucket/programs/{own}"),
    ):  # fmt: skip
        compile_cache.use(folder)
        assert jax.config.jax_compilation_cache_dir == str(expected)
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "of the environment"))
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.use(None)
    default = tmp_path / "caches" / "rin_jax" / "compiled" / own
    assert jax.config.jax_compilation_cache_dir == str(default)
    assert default.stat().st_mode & 0o077 == 0
    compile_cache.use("")
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runtime\.compile_cache is .*file/programs, but it"):
        compile_cache.use(str(tmp_path / "file" / "programs"))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.use(None)  # which nobody asked for
    assert jax.config.jax_compilation_cache_dir is None
