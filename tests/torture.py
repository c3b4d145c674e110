"""Kills a real training again and again, and compares what comes out with an undisturbed one.

    python -m tests.torture --kills=200 --workdir=DIR     prints where the kills fell

Every life of the training is ended at a random moment by SIGKILL, SIGTERM or SIGINT, now and then
it is an evaluation that is ended instead; then the same command goes on.
"""

import argparse
import collections
import json
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rin_jax.training import noise_levels
from rin_jax.training.metrics import SCALARS
from tests import xla

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("start", "compile", "restore", "input", "step", "save", "samples", "end")
CHANGES = {
    "data.image_size": 8, "model.num_blocks": 1, "train.log_every_steps": 5,
    "train.sample_every_steps": 40, "checkpoint.every_steps": 10, "checkpoint.keep": 2,
    "ema.snapshot_every_steps": 25, "sampler.num_steps": 8, "evaluation.num_samples": 100,
    "evaluation.every_steps": 100,
}  # fmt: skip
MEANS = (*SCALARS.values(), noise_levels.PREFIX)  # over the steps since the log line before


def child(phase_file: str, arguments: list[str]) -> None:
    """The real command line, with each phase noted in a file while it lasts."""
    with open(phase_file, "r+b") as file:
        note = mmap.mmap(file.fileno(), 1)

    def noted(phase, function):
        def call(*args, **kwargs):
            before, note[0] = note[0], PHASES.index(phase)
            try:
                return function(*args, **kwargs)
            finally:
                note[0] = before

        return call

    from rin_jax import main
    from rin_jax.evaluation import classifier
    from rin_jax.jobs import evaluate, train
    from rin_jax.training import loop, resume

    classifier.EPOCHS, classifier.FEWEST_STEPS, classifier.WARMUP = 1, 20, 5  # it need not be good
    run_loop = train.run_loop

    def stepping(*args, **kwargs):
        note[0] = PHASES.index("step")
        try:
            return run_loop(*args, **kwargs)
        finally:
            note[0] = PHASES.index("end")

    train.run_loop = stepping
    train.compile_train_step = noted("compile", train.compile_train_step)
    resume.restore_state = noted("restore", resume.restore_state)
    loop.next_unless = noted("input", loop.next_unless)
    loop.Saver.save = noted("save", loop.Saver.save)
    loop.Saver.wait = noted("save", loop.Saver.wait)
    for module, name in ((loop, "make_generate"), (evaluate, "make_device_sampler")):
        make = getattr(module, name)
        setattr(module, name, lambda *args, make=make: noted("samples", make(*args)))
    sys.argv[1:] = arguments  # ml_collections looks there too
    main.start()


class Life:
    """One run of the command.

    Its log is beside the folder `workdir`, which is its --workdir if `address` is not given;
    `module` is what runs as the child, with more `flags`.
    """

    def __init__(
        self, workdir: Path, data_dir: str, num_steps: int, mode: str, address: str | None = None,
        module: str = "tests.torture", flags: Sequence[str] = (), **environment: str,
    ):  # fmt: skip
        self._phase_file = Path(f"{workdir}.phase")
        self._phase_file.write_bytes(b"\0")
        changes = CHANGES | {"data.data_dir": data_dir, "train.num_steps": num_steps}
        environment = dict(
            os.environ,
            XLA_FLAGS=xla.FAST,
            JAX_COMPILATION_CACHE_DIR=f"{data_dir}/cache",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            PYTHONPATH=str(ROOT),
            **environment,
        )
        self._log = Path(f"{workdir}.log")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", module, "--child", str(self._phase_file)),
                f"--config={ROOT}/configs/digits.py:tiny",
                *(f"--workdir={address or workdir}", f"--mode={mode}", *flags),
                *(f"--config.{field}={value}" for field, value in changes.items()),
            ],
            cwd=ROOT,
            env=environment,
            stdout=self._log.open("a"),
            stderr=subprocess.STDOUT,
        )

    @property
    def phase(self) -> str:
        return PHASES[self._phase_file.read_bytes()[0]]

    @property
    def log(self) -> str:
        return self._log.read_text()


def undisturbed(workdir: Path, data_dir: str, num_steps: int) -> float:
    """Trains without a kill; returns the seconds that the run took."""
    began = time.monotonic()
    life = Life(workdir, data_dir, num_steps, "train")
    assert life.process.wait() == 0, life.log
    return time.monotonic() - began


def torture(
    workdir: Path, data_dir: str, num_steps: int, kills: int, longest: float, seed: int
) -> dict:
    """Trains to the end, with at least `kills` kills if the training lasts that long.

    Args:
      workdir: of the training.
      data_dir: of the data set and the compiled programs.
      num_steps: of the training.
      kills: to spread over it; afterwards it runs undisturbed.
      longest: seconds after which a life is ended at the latest.
      seed: of the moments and the signals.

    Returns:
      What was done: numbers of kills by signal and phase, and the slowest end in seconds of those
      that may end by themselves.
    """
    rng = random.Random(seed)
    where: collections.Counter = collections.Counter()
    slowest, done = 0.0, 0
    while done < kills:
        saved = any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
        mode = "evaluate" if saved and rng.random() < 0.1 else "train"
        number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        life = Life(workdir, data_dir, num_steps, mode)
        try:
            code = life.process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            phase = f"{number.name} {'' if mode == 'train' else 'evaluate: '}{life.phase}"
            life.process.send_signal(number)
            ended = time.monotonic()
            code = life.process.wait(60)
            slowest = max(slowest, (time.monotonic() - ended) * (number != signal.SIGKILL))
            where[phase] += 1
            done += 1
            # before the program listens, a signal has its ordinary effect
            allowed = (-number,) if number == signal.SIGKILL else (75, -number, 0)
            assert code in allowed, (code, life.log[-3000:])
            continue
        assert code == 0, (code, life.log[-3000:])
        if mode == "train":
            break
    undisturbed(workdir, data_dir, num_steps)
    return {"kills": done, "where": dict(where), "slowest_end_seconds": slowest}


def contents(workdir: Path) -> dict[str, object]:
    """Everything that a run leaves but times: arrays by their digests, curves, pictures."""
    found: dict[str, object] = {}
    for path in sorted(workdir.glob("*/*/_CHECKPOINT_METADATA")):
        if path.parent.parent.name in ("checkpoints", "snapshots"):
            saved = json.loads(path.read_text())["custom_metadata"]
            saved["facts"].pop("config")  # names folders
            found[str(path.parent.relative_to(workdir))] = saved["digests"], saved["facts"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timing = "time/"
    found["metrics"] = [
        {name: value for name, value in line.items() if not name.startswith(timing)}
        for line in lines
    ]
    for path in sorted(workdir.glob("progress/*.png")):
        found[str(path.relative_to(workdir))] = path.read_bytes()
    return found


def main() -> None:
    """Prints the record of a torture as JSON; fails if anything differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=15.0)
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True)
    data_dir = str(options.workdir / "data")
    expected, tortured = options.workdir / "undisturbed", options.workdir / "tortured"
    seconds = undisturbed(expected, data_dir, options.steps)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    record = torture(
        tortured, data_dir, options.steps, options.kills, options.longest, options.seed
    )
    assert_same(tortured, expected, Path(f"{tortured}.log").read_text())
    print(json.dumps(record, indent=2))


def assert_same(workdir: Path, expected: Path, log: str) -> None:
    """Bit for bit, for all that both have kept; `log` is what the lives of `workdir` have said.

    A life that resumes between two log lines has in the next one the means of its own steps.
    """
    ours, theirs = contents(workdir), contents(expected)
    newest = max(int(path.name) for path in (expected / "checkpoints").iterdir())
    assert f"checkpoints/{newest}" in ours
    common = set(ours) & set(theirs)
    assert {"metrics", f"checkpoints/{newest}"} <= common
    assert {name for name in theirs if name.startswith(("progress", "snapshots"))} <= common
    losses = [line["train/loss"] for line in ours["metrics"] if "train/loss" in line]
    assert not np.isnan(losses).any()
    every = CHANGES["train.log_every_steps"]
    resumed = {int(step) for step in re.findall(r"resumed from checkpoint (\d+)", log)}
    partial = {step - step % every + every for step in resumed if step % every}
    for line in ours["metrics"] + theirs["metrics"]:
        if line["step"] in partial:
            for name in [x for x in line if x.startswith(MEANS)]:
                del line[name]
    different = [name for name in common if ours[name] != theirs[name]]
    assert not different, different


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
