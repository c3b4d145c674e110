"""Where a process learns which of how many it is, and what it was started with."""

import signal
import socket
import sys
import types

import pytest

from rin_jax import ConfigError
from rin_jax.runtime import cluster, processes
from rin_jax.runtime.cluster import Cluster, ProcessError
from tests import tiny
from tests.runtime.pod import free_address

SLURM = {
    "SLURM_JOB_ID": "5000", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Sets variables in an environment that says nothing of other processes."""
    for name in (*cluster.VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def place(address, count, index):
    values = zip(cluster.VARIABLES, (address, count, index), strict=True)
    return {name: value for name, value in values if value is not None}


def test_alone():
    assert cluster.find_cluster(1.0) is None


def test_a_plain_host(surroundings):
    surroundings(**place("host0:8482", "4", "3"))
    found = cluster.find_cluster(1.0)
    assert found == Cluster("host0:8482", 4, 3)
    assert found.address == ("host0", 8482)
    assert Cluster("[::1]:8482", 4, 3).address == ("::1", 8482)


def test_slurm(surroundings):
    surroundings(**SLURM)
    found = cluster.find_cluster(1.0)
    assert found.coordinator.startswith("gpu07:")
    assert (found.count, found.index, found.local_devices) == (16, 9, [1])


def test_alone_in_spite_of_a_cluster(surroundings):
    surroundings(**SLURM, JAX_NUM_PROCESSES="1")
    assert cluster.find_cluster(1.0) is None


@pytest.mark.parametrize(
    ("address", "count", "index", "message"),
    [
        (None, "2", "0", "JAX_COORDINATOR_ADDRESS is None"),
        ("host0", "2", "0", "as HOST:PORT of process 0"),
        ("host0:8482", None, "0", "JAX_NUM_PROCESSES is None.*set all three"),
        ("host0:8482", "2", None, "JAX_PROCESS_ID is None"),
        ("host0:8482", "2", "2", "JAX_PROCESS_ID is '2' and JAX_NUM_PROCESSES is '2'"),
        ("host0:8482", "two", "0", "count from 0"),
    ],
)
def test_variables_that_contradict(surroundings, address, count, index, message):
    surroundings(**place(address, count, index))
    with pytest.raises(ConfigError, match=message):
        cluster.find_cluster(1.0)


def test_pathways_is_one_process_with_a_package(surroundings, monkeypatch):
    surroundings(**SLURM, JAX_PLATFORMS="proxy,cpu")
    monkeypatch.setitem(sys.modules, "pathwaysutils", None)
    with pytest.raises(ConfigError, match=r"pip install 'rin-jax\[pathways\]'"):
        processes.together({}, 1.0, {}, print).__enter__()
    connected = []
    package = types.SimpleNamespace(initialize=lambda: connected.append(True))
    monkeypatch.setitem(sys.modules, "pathwaysutils", package)
    with processes.together({}, 1.0, {}, print):
        assert connected == [True]


def test_alone_nothing_happens_to_errors_and_signals():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), processes.together({}, 1.0, {}, print):
        processes.agree("resuming", step=1 / 0)
    with processes.together({}, 1.0, {}, print):
        processes.agree("resuming", step=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_facts_are_fields_flags_and_code():
    facts = cluster.started_with(tiny.config(model__depth=7), mode="train", classes=["1"])
    assert facts["model.depth"] == "7"
    assert facts["optimizer.decay.name"] == "'cosine'"
    assert facts["--classes"] == "['1']"
    assert facts["version of jax"]
    assert facts["code of rin_jax"].startswith("sha256 ")
    other = cluster.started_with(tiny.config(), mode="train", classes=["1"])
    assert [name for name in facts if facts[name] != other[name]] == ["model.depth"]


def test_process_0_does_not_answer():
    address = free_address()
    with pytest.raises(ProcessError, match=f"process 0 did not answer at {address} within 0.5 s"):
        cluster.connect(Cluster(address, 2, 1), 0.5, 10)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ProcessError, match=f"cannot listen on port {port}"):
            cluster.connect(Cluster(f"127.0.0.1:{port}", 2, 0), 0.5, 10)
