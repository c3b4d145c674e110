"""Kills each of four training processes in turn, and compares what comes out with a quiet run.

    python -m tests.pod_kills --workdir=DIR

prints for each process the seconds until the others ended, who was named, and whether the same
command then came to the undisturbed run's bits. Some ten minutes on two cores.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests import xla
from tests.torture import contents

ROOT = Path(__file__).resolve().parents[1]
PROCESSES, KILLED_AFTER, LONGEST = 4, "step 50/", 40.0
CHANGES = {
    "model.num_blocks": 1, "train.num_steps": 80, "train.log_every_steps": 10,
    "train.sample_every_steps": 1000, "checkpoint.every_steps": 20, "checkpoint.keep": 2,
    "ema.snapshot_every_steps": 40, "mesh.data": PROCESSES, "sampler.num_steps": 2,
}  # fmt: skip


class Pod:
    """launch/local_pod.sh, training."""

    def __init__(self, workdir: Path, folder: Path):
        python = folder / "python"
        python.write_text(
            "#!/bin/sh\n[ \"$2\" = -m ] && shift 3 && set -- -u -m tests.jobs.caching \"$@\"\n"
            f"exec {sys.executable} \"$@\"\n"
        )
        python.chmod(0o755)
        environment = os.environ | {
            "PYTHON": str(python), "XLA_FLAGS": xla.FAST,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "POD_HEARTBEAT": "",  # that which the package has
        }  # fmt: skip
        self._log = Path(f"{workdir}.{time.monotonic_ns()}.log")
        arguments = [f"--config.{field}={value}" for field, value in CHANGES.items()]
        self.process = subprocess.Popen(
            ["launch/local_pod.sh", str(PROCESSES), "--", "--config=configs/digits.py:tiny",
             f"--workdir={workdir}", f"--config.data.data_dir={folder / 'data'}", *arguments],
            cwd=ROOT, env=environment, stdout=self._log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid(self, index: int) -> int:
        return int(re.findall(rf"process {index} is pid (\d+)", self.log)[-1])


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended waits for its parent for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(workdir: Path, folder: Path, index: int) -> str:
    """What happened when process `index` was killed; fails if that is not as it should be."""
    pod = Pod(workdir, folder)
    while KILLED_AFTER not in pod.log:
        assert pod.process.poll() is None, pod.log
        time.sleep(0.02)
    pids = [pod.pid(i) for i in range(PROCESSES)]
    os.kill(pids[index], signal.SIGKILL)
    since, ended = time.monotonic(), {}
    while len(ended) < PROCESSES - 1:
        for i in set(range(PROCESSES)) - {index} - set(ended):
            if not alive(pids[i]):
                ended[i] = time.monotonic() - since
        assert time.monotonic() - since < 2 * LONGEST, pod.log
        time.sleep(0.02)
    code = pod.process.wait(LONGEST)
    assert max(ended.values()) <= LONGEST, ended
    named = re.search(rf"(?i)process {index}\b(?! is pid)|task:{index}\b|task {index}\b", pod.log)
    assert named, pod.log
    again = Pod(workdir, folder)
    assert again.process.wait(600) == 0, again.log
    times = ", ".join(f"{i}: {ended[i]:.1f} s" for i in sorted(ended))
    return f"process {index} killed: the others ended after {times}; exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    folder = parser.parse_args().workdir
    folder.mkdir(parents=True)
    quiet = Pod(folder / "quiet", folder)
    assert quiet.process.wait(600) == 0, quiet.log
    for index in range(PROCESSES):
        line = kill(folder / f"killed_{index}", folder, index)
        ours, theirs = contents(folder / f"killed_{index}"), contents(folder / "quiet")
        wrong = [name for name in ("metrics", "checkpoints/80") if ours[name] != theirs[name]]
        assert not wrong, wrong
        print(f"{line}; resumed to the same bits", flush=True)


if __name__ == "__main__":
    main()
