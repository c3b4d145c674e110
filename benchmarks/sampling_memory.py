"""Peak memory of each process that samples, for few images and many; and whether files are equal.

    python -m benchmarks.sampling_memory --workdir=DIR

samples the digits, enlarged so that the images would be seen in the memory, by 1, 2 and 4 processes
with random weights. It prints a table and ends with an error if a file differs from that of one
process, or is another one after all processes were killed in the middle (some ten minutes on two
cores, and 3 GB in DIR). Linux.
"""

import argparse
import hashlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATCH = 50
CHANGES = {
    "data.image_size": 64, "model.patch_size": 16, "sampler.num_steps": 2,
    "sampler.images_per_device": BATCH,
}  # fmt: skip


def save_weights(workdir: Path) -> None:
    """A checkpoint with random weights; in a process of its own, see `run`."""
    import jax

    from rin_jax.checkpointing.checkpoints import Checkpoints, folder
    from rin_jax.experiment import make_experiment
    from rin_jax.runtime import sharding
    from rin_jax.training.state import create_state, items_of, metadata_of

    jax.config.update("jax_platforms", "cpu")
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]("tiny")
    config.update_from_flattened_dict(CHANGES)
    experiment = make_experiment(config)
    state = create_state(experiment, sharding.make_mesh(1, 1, 1, jax.devices()[:1]), 0)
    with Checkpoints(folder(str(workdir))) as saver:
        saver.save(1, items_of(state), metadata_of(state, experiment, 0))


def start(weights: Path, workdir: Path, count: int, num: int, port: int) -> list[subprocess.Popen]:
    """The processes of a job that samples `num` images with the weights in another folder."""
    if not workdir.exists():
        shutil.copytree(weights, workdir)
    command = [
        *(sys.executable, "-m", "rin_jax.main", "--config=configs/digits.py:tiny"),
        *(f"--config.{field}={value}" for field, value in CHANGES.items()),
        *(f"--workdir={workdir}", "--mode=sample", "--classes=random", f"--num={num}"),
    ]
    running = []
    for index in range(count):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        if count > 1:
            environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
            environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        quiet = subprocess.DEVNULL
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet))
    return running


def finish(running: Sequence[subprocess.Popen]) -> tuple[list[int], list[float]]:
    """Exit codes and peak memory in MB of the processes, when all have ended."""
    codes, peaks = [], []
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        codes.append(process.returncode)
        peaks.append(usage.ru_maxrss / 1024)
    return codes, peaks


def fingerprint(workdir: Path) -> str:
    """Equal for the same files of samples with the same bytes."""
    found = hashlib.sha256()
    for path in sorted((workdir / "samples").rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(workdir)).encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def run(folder: Path, counts: Sequence[int], nums: Sequence[int], port: int) -> list[dict]:
    """A row for each number of processes and of images, and one that is killed for each count."""
    rows, known = [], {}
    # the system counts the memory of this process as theirs, from before they became others
    saving = multiprocessing.get_context("spawn").Process(
        target=save_weights, args=(folder / "weights",)
    )
    saving.start()
    saving.join()
    jobs = [(count, num, False) for num in nums for count in counts]
    for count, num, kill in jobs + [(count, nums[-1], True) for count in counts]:
        workdir = folder / f"{count}-{num}-{kill}"
        began = time.monotonic()
        running = start(folder / "weights", workdir, count, num, port)
        if kill:
            parts, half = "samples/*/parts/*.npz", num / 2 / BATCH
            while sum(1 for _ in workdir.glob(parts)) < half:
                time.sleep(0.1)
                assert all(process.poll() is None for process in running), "it was too fast"
            for process in running:
                process.send_signal(signal.SIGKILL)
            finish(running)
            assert not list(workdir.glob("samples/*/record.json"))
            running = start(folder / "weights", workdir, count, num, port)
        codes, peaks = finish(running)
        assert codes == [0] * count, f"exit codes {codes}"
        digest = fingerprint(workdir)
        assert known.setdefault(num, digest) == digest, f"{workdir} has other files"
        shutil.rmtree(workdir)
        row = {"processes": count, "images": num, "killed": kill, "peak_mb": peaks}
        rows.append(row | {"seconds": time.monotonic() - began})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    """A row of the table."""
    how = "killed and gone on" if row["killed"] else ""
    peaks = ", ".join(f"{peak:.0f}" for peak in row["peak_mb"])
    return (
        f"| {row['processes']} | {row['images']:,} | {peaks} | {row['seconds']:.0f} s | {how} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--port", type=int, default=8477)
    args = parser.parse_args()
    print("| processes | images | peak of each process in MB | time | |\n|---|---|---|---|---|")
    run(args.workdir.absolute(), args.processes, args.images, args.port)
    print("all files are equal")


if __name__ == "__main__":
    main()
