"""Where a process learns which of how many it is, and what it was started with."""

import signal
import sys
import types

import pytest

from rin_jax import processes, train
from rin_jax.meeting import Place, ProcessError
from tests import tiny

SLURM = {
    "SLURM_JOB_ID": "5000", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Sets variables in an environment that says nothing of other processes."""
    for name in (*processes.VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def place(address, count, index):
    values = zip(processes.VARIABLES, (address, count, index), strict=True)
    return {name: value for name, value in values if value is not None}


def test_alone():
    assert processes.find_place(1.0) is None


def test_a_plain_host(surroundings):
    surroundings(**place("host0:8482", "4", "3"))
    found = processes.find_place(1.0)
    assert found == Place("host0:8482", 4, 3)
    assert found.meeting == ("host0", 8481)
    assert Place("[::1]:8482", 4, 3).meeting == ("::1", 8481)


def test_slurm(surroundings):
    surroundings(**SLURM)
    found = processes.find_place(1.0)
    assert found.coordinator.startswith("gpu07:")
    assert (found.count, found.index, found.local_devices) == (16, 9, [1])


def test_alone_in_spite_of_a_cluster(surroundings):
    surroundings(**SLURM, JAX_NUM_PROCESSES="1")
    assert processes.find_place(1.0) is None


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
    with pytest.raises(ProcessError, match=message) as error:
        processes.find_place(1.0)
    assert error.value.code == 2


def test_pathways_is_one_process_with_a_package(surroundings, monkeypatch):
    surroundings(**SLURM, JAX_PLATFORMS="proxy,cpu")
    monkeypatch.setitem(sys.modules, "pathwaysutils", None)
    with pytest.raises(ProcessError, match="pip install pathwaysutils"):
        processes.together({}, 1.0, {}).__enter__()
    connected = []
    package = types.SimpleNamespace(initialize=lambda: connected.append(True))
    monkeypatch.setitem(sys.modules, "pathwaysutils", package)
    with processes.together({}, 1.0, {}):
        assert connected == [True]


def test_alone_nothing_happens_to_errors_and_signals():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), processes.together({}, 1.0, {}):
        processes.agree("resuming", step=1 / 0)
    with processes.together({}, 1.0, {}):
        processes.agree("resuming", step=1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_facts_are_fields_flags_and_code():
    facts = processes.started_with(tiny.config(model__depth=7), mode="train", classes=["1"])
    assert facts["model.depth"] == "7"
    assert facts["optimizer.decay.name"] == "'cosine'"
    assert facts["--classes"] == "['1']"
    assert facts["version of jax"]
    assert facts["code of rin_jax"].startswith("sha256 ")
    other = processes.started_with(tiny.config(), mode="train", classes=["1"])
    assert [name for name in facts if facts[name] != other[name]] == ["model.depth"]


@pytest.mark.parametrize(("shared", "expected"), [(True, True), (False, False)])
def test_a_workdir_that_is_not_shared_is_found(tmp_path, monkeypatch, shared, expected):
    config, asked = tiny.config(), []
    if shared:
        train.open_workdir(config, str(tmp_path / "run"))
    monkeypatch.setattr(train.jax, "process_index", lambda: 1)
    monkeypatch.setattr(train, "SHARING_SECONDS", 0.0)
    monkeypatch.setattr(processes, "agree", lambda question, **facts: asked.append(facts))
    train.open_workdir(config, str(tmp_path / "run"))
    assert asked == [{}, {"sees_config_json": expected}]
    assert (tmp_path / "run").exists() == shared  # process 1 writes nothing
