"""Eight fake CPU devices, strict rank promotion and one compile cache for all tests and theirs."""

import gc
import os
from pathlib import Path

from tests.xla import CACHE, FAST

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    f" --xla_force_host_platform_device_count=8 {FAST}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# By the environment, so that processes which tests start use it too
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

from rin_jax.runtime import sharding
from tests.storage import Storage

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects that stay: looking for garbage at each 700 takes a tenth of the time
gc.set_threshold(50_000)


def pytest_collection_modifyitems(items):
    """Files with slow tests first, quick ones last, so that all workers end at about one time.

    The other files are from training/ back to benchmarks/, as the first folders are quick.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: str(item.path), reverse=True)
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Modules and tests stay: there is no garbage to find among them."""
    gc.freeze()


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


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """A folder for the data sets that the tests of a file prepare."""
    return str(tmp_path_factory.mktemp("tfds"))


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
