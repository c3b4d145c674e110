"""Training by several processes on this machine: as by one, through deaths and signals."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rin_jax.checkpointing import checkpoints
from rin_jax.experiment import make_experiment
from rin_jax.runtime import sharding
from rin_jax.runtime.exits import PREEMPTED
from rin_jax.training.state import abstract_state, items_of, state_of
from tests import xla
from tests.data import small_sets
from tests.test_configs import load

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 10
# Small enough to compile in every process, and float32, whose rounding hides under the tolerance.
# Some gradients are zero but for rounding (the softmax does not see the key's bias); eps keeps the
# optimizer from magnifying them to full steps.
CHANGES = {
    "model.dtype": "float32", "model.num_blocks": 1, "model.depth": 1, "optimizer.eps": 1e-4,
    "optimizer.learning_rate": 2e-3, "optimizer.warmup_steps": 2,
    "train.num_steps": NUM_STEPS, "train.batch_size": 8,
    "train.log_every_steps": 1, "train.sample_every_steps": 100, "checkpoint.every_steps": 4,
    "checkpoint.keep": 10, "sampler.num_steps": 2, "evaluation.num_samples": 20,
    "evaluation.batch_size": 10,
}  # fmt: skip
# (configuration, processes, devices of each, mesh); all must equal one process with one device
LAYOUTS = (
    ("digits", 4, 2, {"data": 2, "fsdp": 2, "tensor": 2}),
    ("imagenet64", 2, 4, {"fsdp": 8}),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("tfds"))
    small_sets.opened("digits", "train", path, 8, 1)  # prepared once, before several want to
    return path


class Pod:
    """launch/local_pod.sh, running."""

    def __init__(
        self, name, workdir, data_dir, processes=1, devices=1, mesh=None, mode="train", flags=(),
        **more,
    ):
        changes = CHANGES | {f"mesh.{axis}": size for axis, size in (mesh or {}).items()}
        changes |= {field.replace("__", "."): value for field, value in more.items()}
        environment = dict(os.environ, PYTHON=sys.executable)
        environment["XLA_FLAGS"] = xla.FAST
        if processes == 1:  # in several, the cache would serve process 0 alone
            environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax-cli")
        self._log = Path(f"{workdir}.log")
        self.process = subprocess.Popen(
            [
                *("launch/local_pod.sh", str(processes), "--devices", str(devices), "--"),
                *(f"--config=configs/{name}.py:tiny", f"--workdir={workdir}", f"--mode={mode}"),
                f"--config.data.data_dir={data_dir}",
                *(f"--config.{field}={value}" for field, value in changes.items()),
                *flags,
            ],
            cwd=ROOT,
            env=environment,
            stdout=self._log.open("a"),
            stderr=subprocess.STDOUT,
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid(self, index: int) -> int:
        return int(re.findall(rf"process {index} is pid (\d+)", self.log)[-1])

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Until `event` is true of the run."""
        while not event():
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def end(self, timeout=600) -> int:
        return self.process.wait(timeout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """trained(name, processes, devices, mesh): the workdir of an undisturbed run, made once."""
    known = {}

    def train(name, processes=1, devices=1, mesh=None) -> Path:
        key = f"{name}-{processes}x{devices}-{mesh}"
        if key not in known:
            workdir = tmp_path_factory.mktemp("pod") / "run"
            pod = Pod(name, workdir, data_dir, processes, devices, mesh)
            assert pod.end() == 0, pod.log
            known[key] = workdir
        return known[key]

    return train


def state(workdir: Path, data_dir: str, name: str):
    """The state at the last step, on one device."""
    config = load(name).get_config("tiny")
    config.update_from_flattened_dict(CHANGES | {"data.data_dir": data_dir})
    experiment = make_experiment(config)
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    abstract = abstract_state(experiment, mesh)
    found, damaged = checkpoints.find(checkpoints.folder(str(workdir)))
    assert found[0].step == NUM_STEPS
    assert not damaged
    items = checkpoints.load(found[0], items_of(abstract))
    return jax.device_get(state_of(items, NUM_STEPS, abstract))


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    return [json.loads(line)["loss"] for line in lines]


def assert_same_run(workdir: Path, expected: Path, data_dir: str, name: str) -> None:
    np.testing.assert_allclose(losses(workdir), losses(expected), rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        state(workdir, data_dir, name),
        state(expected, data_dir, name),
    )
    picture = f"progress/{NUM_STEPS:08d}.png"
    assert_same_picture(workdir / picture, expected / picture)


def assert_same_picture(path: Path, expected: Path) -> None:
    """Up to the rounding of a few values."""
    difference = np.asarray(Image.open(path), int) - np.asarray(Image.open(expected), int)
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.01


@pytest.mark.parametrize(("name", "processes", "devices", "mesh"), LAYOUTS)
def test_as_one_process_with_one_device(trained, data_dir, name, processes, devices, mesh):
    workdir = trained(name, processes, devices, mesh)
    assert_same_run(workdir, trained(name), data_dir, name)
    assert sorted(path.name for path in workdir.iterdir()) == sorted(
        path.name for path in trained(name).iterdir()
    )


def test_a_killed_process_ends_the_others_and_the_same_command_resumes(trained, data_dir, tmp_path):
    workdir = tmp_path / "run"
    pod = Pod("digits", workdir, data_dir, 4, 1)
    pod.wait_for((workdir / "checkpoints" / "4").exists)
    os.kill(pod.pid(2), signal.SIGKILL)
    killed = time.monotonic()
    assert pod.end() == 128 + signal.SIGKILL, pod.log
    assert time.monotonic() - killed < 60
    for index in (0, 1, 3):
        assert re.search(rf"\[{index}\] error: process 2 \(.*\) died", pod.log), pod.log
    assert "Run the same command again to resume." in pod.log

    pod = Pod("digits", workdir, data_dir, 4, 1)
    assert pod.end() == 0, pod.log
    assert re.search(r"resumed from checkpoint [48] ", pod.log), pod.log
    assert_same_run(workdir, trained("digits"), data_dir, "digits")


def test_one_two_and_again_one_process_with_a_signal_between(trained, data_dir, tmp_path):
    """A checkpoint of one process goes on with two; these are stopped; one process finishes."""
    workdir = tmp_path / "run"
    shutil.copytree(trained("digits"), workdir)
    for step in (8, 10):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    both = {"checkpoint__every_steps": 1, "ema__snapshot_every_steps": 1}  # at the same time
    pod = Pod("digits", workdir, data_dir, 2, 4, **both)
    pod.wait_for(lambda: "step 5/" in pod.log)
    os.kill(pod.pid(1), signal.SIGTERM)
    assert pod.end() == PREEMPTED, pod.log
    assert "resumed from checkpoint 4 " in pod.log
    for index in (0, 1):
        assert re.search(rf"\[{index}\] preempted: process 1 \(.*\): SIGTERM", pod.log), pod.log
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved > 4  # where both were

    pod = Pod("digits", workdir, data_dir)
    assert pod.end() == 0, pod.log
    resumed = f"resumed from checkpoint {saved} "  # or a slow signal was heard at the last step
    assert (resumed if saved < NUM_STEPS else "is trained to step 10") in pod.log, pod.log
    assert_same_run(workdir, trained("digits"), data_dir, "digits")


def test_a_damaged_checkpoint_is_skipped_by_two_processes(trained, data_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained("digits"), workdir)
    for path in (workdir / "checkpoints" / "10" / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (workdir / "checkpoints" / "8" / "_CHECKPOINT_METADATA").write_text("{")
    pod = Pod("digits", workdir, data_dir, 2, 2, {"fsdp": 4}, train__num_steps=11)
    assert pod.end() == 0, pod.log
    assert "checkpoint 10 is damaged: it cannot be read" in pod.log
    assert "checkpoint 8 is damaged: its metadata" in pod.log
    assert "resumed from checkpoint 4 " in pod.log
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"8-0", "10-0"}


def test_fine_tuning_by_two_processes(trained, data_dir, tmp_path):
    beginning = trained("digits")
    changes = {
        "train__init_from": beginning, "data__num_classes": 12, "optimizer__learning_rate": 0.0,
    }  # fmt: skip
    workdir = tmp_path / "run"
    pod = Pod("digits", workdir, data_dir, 2, 4, {"fsdp": 2}, **changes)
    assert pod.end() == 0, pod.log
    assert "fresh: label/kernel (12, 32) from (10, 32)" in pod.log
    assert pod.log.count("arrays are taken over") == 1
    ours, theirs = (
        checkpoints.find(checkpoints.folder(str(path)))[0][0].checksums
        for path in (workdir, beginning)
    )
    same = [name for name in ours if name.startswith("params") and ours[name] == theirs[name]]
    assert len(same) == sum(name.startswith("params") for name in ours) - 1  # all but the labels


def test_samples_by_two_processes_are_those_of_one_to_the_bit(trained, data_dir, tmp_path):
    """One device of one process, and four of each of two (eight of one: test_generate.py)."""
    arrays = {}
    for processes, devices in ((1, 1), (2, 4)):
        workdir = tmp_path / f"{processes}x{devices}"
        shutil.copytree(trained("digits"), workdir)
        pod = Pod(
            "digits", workdir, data_dir, processes, devices, mode="sample",
            flags=["--num=23", "--classes=random", "--config.sampler.images_per_device=4",
                   "--config.sampler.name=dpmpp_2m", "--config.sampler.eta=1.0"],
        )  # fmt: skip
        assert pod.end() == 0, pod.log
        arrays[processes, devices] = dict(
            np.load(workdir / "samples" / f"{NUM_STEPS:08d}" / "samples.npz")
        )
    alone = arrays.pop((1, 1))
    assert alone["images"].shape == (23, 8, 8, 1)
    assert alone["images"].std() > 10
    for others in arrays.values():
        for name, array in alone.items():
            np.testing.assert_array_equal(others[name], array)


def test_a_mistake_ends_every_process_with_its_message(data_dir, tmp_path):
    pod = Pod("digits", tmp_path / "run", data_dir, 2, 1, {"fsdp": 3})
    assert pod.end(60) == 2
    message = "mesh.data -1 x mesh.fsdp 3 x mesh.tensor 1 does not cover 2 devices"
    for index in (0, 1):
        assert len(re.findall(rf"\[{index}\] error: .*{message}", pod.log)) == 1, pod.log


def by_hand(tmp_path, *commands: list[str], count: int) -> list[tuple[int, str]]:
    """(exit code, errors) of processes started one by one, each in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    running = []
    for index, command in enumerate(commands):
        (tmp_path / str(index)).mkdir()
        environment = dict(
            os.environ, PYTHONPATH=str(ROOT), JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(index),
        )  # fmt: skip
        process = [sys.executable, "-m", "rin_jax.main", f"--config={ROOT}/configs/digits.py:tiny"]
        process += ["--workdir=run", *command]
        running.append(
            subprocess.Popen(
                process, cwd=tmp_path / str(index), env=environment, stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL, text=True,
            )
        )  # fmt: skip
    errors = [process.communicate(timeout=200)[1] for process in running]
    return [(process.returncode, err) for process, err in zip(running, errors, strict=True)]


def test_a_process_that_never_comes_is_named(tmp_path):
    for code, error in by_hand(tmp_path, ["--join_timeout=9"], ["--join_timeout=9"], count=3):
        assert code == 4
        assert "error: process 2 of 3 did not join within 9 s" in error


def test_other_fields_are_named_before_anything_starts(tmp_path):
    ends = by_hand(
        tmp_path, ["--join_timeout=60"], ["--join_timeout=60", "--config.model.depth=3"], count=2
    )
    for code, error in ends:
        assert code == 2
        assert "model.depth: 2 in process 0" in error or "model.depth: 1 in process 0" in error
        assert "3 in process 1" in error


SAVES = """
import sys, jax, numpy as np
from etils import epath
from rin_jax.checkpointing.checkpoints import Checkpoints, Policy
jax.distributed.initialize(sys.argv[1], 4, int(sys.argv[2]), initialization_timeout=60)
place = jax.NamedSharding(jax.make_mesh((4,), ("data",)), jax.P("data"))
array = jax.make_array_from_callback((8, 64), place, lambda at: np.ones((8, 64), np.float32)[at])
first, second = (epath.Path(sys.argv[3]) / name for name in ("checkpoints", "snapshots"))
keep = Policy(every_steps=1, keep=1, keep_every_steps=None, keep_best=0)
with Checkpoints(first, keep) as one, Checkpoints(second, keep) as other:
    for step in range(20):
        one.save(step, {"params": {"w": array}}, {})
        other.save(step, {"params": {"w": array}}, {})
"""


def test_a_step_is_saved_in_two_folders_at_once(tmp_path):
    """As checkpoint and as snapshot: the processes' barriers for the two are not mixed up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVES, address, str(index), str(tmp_path)],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for index in range(4)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
    finally:  # those that wait for each other for ever
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * 4, errors[0]
    for name in ("checkpoints", "snapshots"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["19"]
