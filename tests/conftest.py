"""Eight fake CPU devices, strict rank promotion and one compile cache for all tests."""

import os
from pathlib import Path

from tests.xla import FAST

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count=8 {FAST}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

from rin_jax.runtime import sharding
from tests.storage import Storage

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
# also of the commands that tests start, which would keep their programs in the user's cache
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="module")
def one_device():
    """Where a mesh takes all devices, it takes one: programs are compiled once, not eight times."""
    make_mesh = sharding.make_mesh

    def one(data, fsdp, tensor, devices=None):
        everywhere = devices is None and (data, fsdp, tensor) == (-1, 1, 1)
        return make_mesh(data, fsdp, tensor, jax.devices()[:1] if everywhere else devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", one)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture(scope="session")
def session_storage():
    """A Google Cloud Storage of this process, to which the environment sends its clients."""
    with Storage() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage


@pytest.fixture
def storage(session_storage):
    """The same with nothing in it and without faults."""
    session_storage.objects.clear()
    session_storage.requests.clear()
    yield session_storage
    session_storage.faults.clear()
