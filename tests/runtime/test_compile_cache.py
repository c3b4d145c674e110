"""Where compiled programs are kept; that processes find them there: tests/jobs/test_pod.py."""

import jax
import pytest

from rin_jax import ConfigError
from rin_jax.runtime import compile_cache


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
