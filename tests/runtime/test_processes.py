"""Where a process learns which of how many it is, and what it was started with."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

from rin_jax.jobs import train
from rin_jax.runtime import processes
from rin_jax.runtime.process_hub import Place, ProcessError
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
# One process that starts JAX with the others and then does nothing, or fails.
MEMBER = """
import sys, time
from rin_jax import preemption, processes
codes = {FloatingPointError: 3}
with preemption.watching() as watch, processes.together({}, 60.0, codes, watch.told):
    processes.agree("in")
    print("in", flush=True)
    if sys.argv[1] == "disk":
        time.sleep(1)
        raise OSError("No space left on device")
    if sys.argv[1] == "number":
        time.sleep(1)
        raise FloatingPointError("loss is nan at step 7")
    time.sleep(60 if sys.argv[1] == "sleep" else 0)
"""
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
    experiment, asked = tiny.experiment(), []
    if shared:
        with train.open_workdir(experiment, str(tmp_path / "run")):
            pass
    monkeypatch.setattr(train.jax, "process_index", lambda: 1)
    monkeypatch.setattr(train, "SHARING_SECONDS", 0.0)
    monkeypatch.setattr(processes, "agree", lambda question, **facts: asked.append(facts))
    with train.open_workdir(experiment, str(tmp_path / "run")):
        pass
    assert asked == [{}, {"sees_config_json": expected}]
    assert (tmp_path / "run").exists() == shared  # process 1 writes nothing


def members(*commands: str) -> list[subprocess.Popen]:
    """A process for each command, all joined, with JAX's own service running."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    running = []
    for index, command in enumerate(commands):
        environment = os.environ | place(address, str(len(commands)), str(index))
        process = [sys.executable, "-c", MEMBER, command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(process, cwd=ROOT, env=environment, **pipes))
    for process in running:
        assert process.stdout.readline() == "in\n", process.communicate()
    return running


def ends(running: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes and errors; all must end within 30 s."""
    deadline = time.monotonic() + 30
    errors = [process.communicate(timeout=deadline - time.monotonic())[1] for process in running]
    return [process.returncode for process in running], errors


@pytest.mark.parametrize(("victim", "number", "code", "word"), [
    (0, signal.SIGKILL, 4, "died"), (2, signal.SIGKILL, 4, "died"),
    (0, signal.SIGTERM, 75, "SIGTERM"), (1, signal.SIGTERM, 75, "SIGTERM"),
])  # fmt: skip
def test_a_signal_to_one_ends_all_with_jax_running(victim, number, code, word):
    running = members("sleep", "sleep", "sleep")
    running[victim].send_signal(number)
    codes, errors = ends(running)
    own = -signal.SIGKILL if number == signal.SIGKILL else code
    if (victim, number) == (0, signal.SIGKILL) and jax.__version_info__ < (0, 10):
        # JAX ends the others too when its service in process 0 is gone; old ones are as quick
        leader = "the leader task was preempted/died"
        assert all(word in error or leader in error for error in errors[1:])
        assert set(codes[1:]) <= {1, code}
        return
    assert codes == [own if index == victim else code for index in range(3)]
    for index, error in enumerate(errors):
        if index != victim:
            assert f"{'preempted' if code == 75 else 'error'}: process {victim} (" in error
            assert word in error
            assert "Run the same command again to resume." in error


@pytest.mark.parametrize(("command", "code", "text"), [
    ("disk", 1, "OSError: No space left on device"), ("number", 3, "loss is nan at step 7"),
])  # fmt: skip
def test_an_error_in_one_ends_all_with_its_message(command, code, text):
    codes, errors = ends(members("sleep", command))
    assert codes == [code, code]
    assert all(text in error for error in errors)
    assert "error: process 1 (" in errors[0]
    assert ("Traceback" in errors[1]) == (code == 1)


def test_a_good_end_is_silent():
    assert ends(members("", "", "")) == ([0, 0, 0], ["", "", ""])


def test_signals_to_all():
    running = members("sleep", "sleep", "sleep")
    for process in running:
        process.send_signal(signal.SIGTERM)
    assert ends(running)[0] == [75] * 3
