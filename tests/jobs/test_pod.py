"""Training by several processes on this machine: as by one, through deaths and signals."""

import json
import os
import re
import shutil
import signal
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
from rin_jax.jobs import evaluate, train
from rin_jax.runtime import processes, sharding
from rin_jax.runtime.exits import PREEMPTED
from rin_jax.training.state import abstract_state, items_of, state_of
from tests import tiny, xla
from tests.data import small_sets
from tests.runtime.pod import free_address
from tests.test_configs import load

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 6
# Small enough to compile, and float32, whose rounding hides under the tolerance. Some gradients are
# zero but for rounding (the softmax does not see the key's bias); eps keeps the optimizer from
# magnifying them to full steps.
CHANGES = {
    "model.dtype": "float32", "model.num_blocks": 1, "model.depth": 1, "model.remat": "none",
    "optimizer.eps": 1e-4, "optimizer.learning_rate": 2e-3, "optimizer.warmup_steps": 2,
    "ema.power_lengths": (0.1,), "sampler.guidance_scale": 0.0,
    "train.num_steps": NUM_STEPS, "train.batch_size": 8,
    "train.log_every_steps": 1, "train.sample_every_steps": 100, "checkpoint.every_steps": 2,
    "checkpoint.keep": 10, "sampler.num_steps": 2, "evaluation.num_samples": 20,
}  # fmt: skip
# Processes, devices of each, mesh; compiled once each
ALONE = 1, 1, {}
TWO = 2, 2, {"data": 1, "fsdp": 2, "tensor": 2}  # four processes: tests/pod_kills.py

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("tfds"))
    small_sets.opened("digits", "train", path, 8, 1)  # prepared once, before several want to
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory, data_dir):
    """start(workdir, layout, mode=, flags=, **changes): a Pod."""
    # local_pod.sh calls PYTHON -u -m rin_jax.main ARGUMENTS, and for a free port PYTHON -c CODE
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = -m ] && shift 3 && set -- -u -m tests.jobs.caching "$@"\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    def begin(workdir, layout, **more):
        return Pod(python, data_dir, workdir, layout, **more)

    return begin


class Pod:
    """launch/local_pod.sh, running."""

    def __init__(
        self, python, data_dir, workdir, layout, mode="train", flags=(), heartbeat=45, **more
    ):
        count, devices, mesh = layout
        changes = CHANGES | {f"mesh.{axis}": size for axis, size in mesh.items()}
        changes |= {field.replace("__", "."): value for field, value in more.items()}
        environment = dict(
            os.environ, PYTHON=str(python), XLA_FLAGS=xla.FAST,
            POD_HEARTBEAT=str(heartbeat),  # long: the machine may be busy with other tests
        )  # fmt: skip
        for name in list(environment):
            if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
                del environment[name]  # the runs keep their programs by themselves
        self._log = Path(f"{workdir}.log")
        self.process = subprocess.Popen(
            [
                *("launch/local_pod.sh", str(count), "--devices", str(devices), "--"),
                *("--config=configs/digits.py:tiny", f"--workdir={workdir}", f"--mode={mode}"),
                f"--config.data.data_dir={data_dir}",
                f"--config.runtime.compile_cache={Path(data_dir) / 'programs'}",
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
        """The exit code; whatever the mode is, no process has needed TensorFlow."""
        code = self.process.wait(timeout)
        assert "tensorflow was imported" not in self.log
        return code


@pytest.fixture(scope="module")
def alone(tmp_path_factory, start) -> Path:
    """The workdir of an undisturbed run of one process."""
    workdir = tmp_path_factory.mktemp("pod") / "run"
    pod = start(workdir, ALONE)
    assert pod.end() == 0, pod.log
    return workdir


def state(workdir: Path, data_dir: str):
    """The state at the last step, on one device."""
    config = load("digits").get_config("tiny")
    config.update_from_flattened_dict(CHANGES | {"data.data_dir": data_dir})
    experiment = make_experiment(config)
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    abstract = abstract_state(experiment, mesh)
    items = checkpoints.load(newest(workdir), items_of(abstract))
    return jax.device_get(state_of(items, NUM_STEPS, abstract))


def newest(workdir: Path):
    """The checkpoint of the last step."""
    found, damaged = checkpoints.find(checkpoints.folder(str(workdir)))
    assert found[0].step == NUM_STEPS
    assert not damaged
    return found[0]


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    return [json.loads(line)["train/loss"] for line in lines]


def assert_same_run(workdir: Path, expected: Path, data_dir: str) -> None:
    """Up to the rounding of other devices."""
    np.testing.assert_allclose(losses(workdir), losses(expected), rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        state(workdir, data_dir),
        state(expected, data_dir),
    )
    picture, other = (
        np.asarray(Image.open(path / f"progress/{NUM_STEPS:08d}.png"), int)
        for path in (workdir, expected)
    )
    assert np.abs(picture - other).max() <= 1
    assert np.mean(picture != other) < 0.01


def test_two_processes_and_one_through_a_kill_damage_and_a_signal(start, alone, data_dir, tmp_path):
    """Two begin; the same command resumes when one was killed; one process finishes the run.

    That two come to the bits of two that nothing disturbed: python -m tests.pod_kills.
    """
    workdir = tmp_path / "run"
    pod = start(workdir, TWO, heartbeat=15)
    pod.wait_for((workdir / "checkpoints" / "2").exists)
    os.kill(pod.pid(1), signal.SIGKILL)
    killed = time.monotonic()
    assert pod.end() == 128 + signal.SIGKILL, pod.log
    assert time.monotonic() - killed < 60
    ours = r"\[0\] error: process 1 \(.*\) gave no sign of life; "  # else JAX was first
    assert re.search(rf"{ours}|task:?\s*1\b|^\[0\] 1$", pod.log, re.MULTILINE), pod.log

    # what it had saved since step 2 is damaged too
    for step in (4, 6):
        shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
        shutil.copytree(alone / "checkpoints" / str(step), workdir / f"checkpoints/{step}")
    for path in (workdir / "checkpoints" / "6" / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 4000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (workdir / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("{")

    both = {"checkpoint__every_steps": 1, "ema__snapshot_every_steps": 1}  # at the same time
    earlier = len(pod.log)
    pod = start(workdir, TWO, **both)
    pod.wait_for(lambda: "step 3/" in pod.log[earlier:])
    os.kill(pod.pid(1), signal.SIGTERM)
    assert pod.end() == PREEMPTED, pod.log
    assert "checkpoint 6 is damaged: it cannot be read" in pod.log
    assert "checkpoint 4 is damaged: its metadata" in pod.log
    assert "resumed from checkpoint 2 " in pod.log
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"4-0", "6-0"}
    for index in (0, 1):
        assert re.search(rf"\[{index}\] preempted: process 1 \(.*\): SIGTERM", pod.log), pod.log
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved > 2  # where both were

    pod = start(workdir, ALONE)
    assert pod.end() == 0, pod.log
    resumed = f"resumed from checkpoint {saved} "  # or a slow signal was heard at the last step
    assert (resumed if saved < NUM_STEPS else "is trained to step 6") in pod.log, pod.log
    counts = json.loads(pod.log.rpartition("counts: ")[2].splitlines()[0])
    # what converts the restored step is compiled; training, checksums and samples are kept
    assert counts.get("cache_hits", 0) > 10 or saved == NUM_STEPS
    assert counts.get("cache_misses", 0) <= 1
    assert_same_run(workdir, alone, data_dir)
    names, expected = ({path.name for path in folder.iterdir()} for folder in (workdir, alone))
    assert names == expected | {"damaged", "snapshots"}


def test_samples_by_two_processes_are_those_of_one_to_the_byte(start, alone, tmp_path):
    """Every file, though one process had begun and was killed."""
    samples = {}
    for name, layout in (("one", ALONE), ("two", TWO)):
        workdir = tmp_path / name
        shutil.copytree(alone / "checkpoints", workdir / "checkpoints")
        flags = ["--num=87", "--classes=random", "--config.sampler.images_per_device=4",
                 "--config.sampler.name=dpmpp_2m", "--config.sampler.eta=1.0"]  # fmt: skip
        if name == "two":
            pod = start(workdir, ALONE, mode="sample", flags=flags)
            pod.wait_for(lambda workdir=workdir: any(workdir.glob("samples/*/parts/*.npz")))
            os.kill(pod.pid(0), signal.SIGKILL)
            assert pod.end() == 128 + signal.SIGKILL, pod.log
            assert not list(workdir.glob("samples/*/record.json"))
        pod = start(workdir, layout, mode="sample", flags=flags)
        assert pod.end() == 0, pod.log
        found = sorted(path for path in (workdir / "samples").rglob("*") if path.is_file())
        samples[name] = {path.relative_to(workdir): path.read_bytes() for path in found}
    arrays = np.load(next(workdir.glob("samples/*/samples.npz")))
    assert arrays["images"].shape == (87, 8, 8, 1)
    assert arrays["images"].std() > 10
    assert len(samples["one"]) == 87 + 3  # the grid, samples.npz, record.json
    assert samples["two"] == samples["one"]


def test_two_processes_find_the_figures_that_one_finds(start, alone, data_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    pod = start(workdir, TWO, mode="evaluate", flags=["--config.sampler.images_per_device=4"])
    assert pod.end() == 0, pod.log
    (path,) = (workdir / "evaluation").glob("*.json")
    two = json.loads(path.read_text())
    assert two["num_samples"] == 20
    path.unlink()
    config = load("digits").get_config("tiny")
    config.update_from_flattened_dict(
        CHANGES | {"data.data_dir": data_dir, "sampler.images_per_device": 4}
    )
    one = evaluate.evaluate(config, str(workdir))
    assert one["figures"] == pytest.approx(two["figures"], rel=1e-6)


def test_a_mistake_ends_every_process_with_its_message(start, tmp_path):
    pod = start(tmp_path / "run", (2, 1, {"fsdp": 3}))
    assert pod.end(120) == 2
    message = "mesh.data -1 x mesh.fsdp 3 x mesh.tensor 1 does not cover 2 devices"
    for index in (0, 1):
        assert len(re.findall(rf"\[{index}\] error: .*{message}", pod.log)) == 1, pod.log


def started(*commands: list[str], **environment) -> list[tuple[int, str]]:
    """(exit code, errors) of processes that were started one by one."""
    address = free_address()
    running = []
    for index, command in enumerate(commands):
        variables = {
            "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands)),
            "JAX_PROCESS_ID": str(index), "XLA_FLAGS": xla.FAST, **environment,
        }  # fmt: skip
        running.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=os.environ | variables,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        errors = [process.communicate(timeout=200)[1] for process in running]
    finally:  # those that wait for each other for ever
        for process in running:
            process.kill()
    return [(process.returncode, err) for process, err in zip(running, errors, strict=True)]


def test_other_fields_are_named_before_anything_starts(tmp_path):
    command = ["-m", "rin_jax.main", "--config=configs/digits.py:tiny", f"--workdir={tmp_path}/run"]
    unusable = {"JAX_PLATFORMS": "no such platform"}  # so that a device that is touched fails
    for code, error in started(command, [*command, "--config.model.depth=3"], **unusable):
        assert code == 2, error
        assert re.search(r"model.depth: [12] in process 0 \(.*\), 3 in process 1 \(", error)


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


SAVES = """
import sys, jax, numpy as np
from etils import epath
from rin_jax.checkpointing.checkpoints import Checkpoints, Policy
from rin_jax.runtime import cluster
cluster.connect(cluster.find_cluster(60.0), 60.0, 30)
place = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
array = jax.make_array_from_callback((8, 64), place, lambda at: np.ones((8, 64), np.float32)[at])
first, second = (epath.Path(sys.argv[1]) / name for name in ("checkpoints", "snapshots"))
keep = Policy(every_steps=1, keep=1, keep_every_steps=None, keep_best=0)
with Checkpoints(first, keep) as one, Checkpoints(second, keep) as other:
    for step in range(10):
        one.save(step, {"params": {"w": array}}, {})
        other.save(step, {"params": {"w": array}}, {})
"""


def test_a_step_is_saved_in_two_folders_at_once(tmp_path):
    """As checkpoint and as snapshot: the processes' barriers for the two are not mixed up."""
    ends = started(*[["-c", SAVES, str(tmp_path)]] * 2)
    assert [code for code, _ in ends] == [0, 0], ends[0][1]
    for name in ("checkpoints", "snapshots"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["9"]
