"""Kills a real training in a bucket, which fails too, and compares it with an undisturbed one.

    python -m tests.bucket_kills --kills=30 --workdir=DIR     prints what happened

The bucket is `tests/storage.py`'s; a few of all requests meet a fault of each kind. Every life of
the training is ended after a random number of requests by SIGKILL or SIGTERM; now and then a bit of
the newest checkpoint is flipped before the next, or the same command is started twice. At last the
run is sampled, evaluated and exported to the bucket. The undisturbed run is one in a folder. Some
ten minutes on two cores.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from rin_jax.runtime import workdir_lock
from tests import torture
from tests.storage import Fault, Storage
from tests.torture import Life

ADDRESS = "gs://bucket/run"
KINDS = ("error", "limit", "cut", "lost", "half", "slow", "stale")
RENEWAL, EXPIRY = 0.5, 4.0  # seconds, of the lock; a life begins after the one before has expired


def child(arguments: list[str]) -> None:
    """`torture.child` with a lock that expires sooner."""
    workdir_lock.RENEWAL, workdir_lock.EXPIRY = RENEWAL, EXPIRY
    torture.child(arguments[0], arguments[1:])


def start(
    storage: Storage, folder: Path, name: str, num_steps: int, mode: str = "train", *flags: str
) -> Life:
    """One life of the run in the bucket, with a log of its own."""
    return Life(
        folder / name, str(folder / "data"), num_steps, mode, ADDRESS, "tests.bucket_kills", flags,
        **storage.environment,
    )  # fmt: skip


def finish(storage: Storage, folder: Path, num_steps: int) -> None:
    """The same command, undisturbed, to the end; then the bucket as the folder "bucket"."""
    for mode, *flags in (
        ("train",),
        ("sample", "--num=4"),
        ("evaluate",),
        ("export", "--to=gs://bucket/export"),
        ("sample", "--num=4", "--export=gs://bucket/export"),
    ):
        life = start(storage, folder, "killed", num_steps, mode, *flags)
        assert life.process.wait(3600) == 0, life.log[-3000:]
    for name in storage.names("bucket", "run/"):
        path = folder / "bucket" / name.removeprefix("run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.get("bucket", name).data)


def flip(storage: Storage, rng: random.Random) -> bool:
    """Flips a bit of the newest checkpoint's arrays, if there is another one to fall back to."""
    names = [name.split("/") for name in storage.names("bucket", "run/checkpoints/")]
    steps = sorted({int(name[2]) for name in names if name[3] == "commit_success.txt"})
    if len(steps) < 2:
        return False
    large = storage.names("bucket", f"run/checkpoints/{steps[-1]}/params/ocdbt.process_0/d/")
    data = bytearray(storage.get("bucket", large[0]).data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    storage.put("bucket", large[0], data)
    return True


def holder(storage: Storage) -> int | None:
    """The process that the lock names."""
    lock = storage.get("bucket", "run/lock.json")
    return json.loads(lock.data)["pid"] if lock else None


def kill_again_and_again(
    storage: Storage, folder: Path, num_steps: int, kills: int, most: int, rng: random.Random
) -> dict:
    """Lives of up to `most` requests until `kills` of them were ended; counts by what happened.

    A life may end by itself with exit code 1, which the launcher repeats, if the bucket failed it.
    """
    happened: collections.Counter = collections.Counter()
    while happened["SIGKILL"] + happened["SIGTERM"] < kills:
        happened["bits flipped"] += rng.random() < 0.2 and flip(storage, rng)
        life = start(storage, folder, "killed", num_steps)
        number, end = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.randrange(most)
        end += len(storage.requests)
        while life.process.poll() is None and len(storage.requests) < end:
            time.sleep(0.01)
        if life.process.poll() is None:
            if rng.random() < 0.2 and holder(storage) == life.process.pid:
                second = start(storage, folder, "second", num_steps)
                code, holds = second.process.wait(600), life.process.poll() is None
                assert code == 2 or not holds, (code, second.log[-3000:])
                happened["second starts"] += holds
            happened[f"in {life.phase}"] += 1
            life.process.send_signal(number)
            code = life.process.wait(60)
            happened[number.name] += 1
            assert code in (-number, 75, 1, 0), (code, life.log[-3000:])
            continue
        code = life.process.wait()
        assert code in (0, 1), (code, life.log[-3000:])
        if code == 0:
            break
        happened["ended by the bucket"] += 1
    return dict(happened)


def free(storage: Storage) -> bool:
    """Whether a lock was left; fails if the next run could not take it."""
    left = holder(storage) is not None
    os.environ.update(storage.environment)
    workdir_lock.EXPIRY = EXPIRY
    with workdir_lock.hold(ADDRESS):
        pass
    assert holder(storage) is None
    return left


def main() -> None:
    """Prints the record as JSON; fails if anything differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=1000, help="requests of a life")
    parser.add_argument("--chance", type=float, default=0.002, help="of each fault and request")
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    folder, rng = options.workdir, random.Random(options.seed)
    folder.mkdir(parents=True)
    seconds = torture.undisturbed(folder / "undisturbed", str(folder / "data"), options.steps)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    with Storage(options.seed) as storage:
        storage.faults += [Fault(kind, chance=options.chance, seconds=0.5) for kind in KINDS]
        record = kill_again_and_again(
            storage, folder, options.steps, options.kills, options.most, rng
        )
        storage.faults.clear()
        finish(storage, folder, options.steps)
        faults = dict(collections.Counter(storage.happened))
        record |= {"requests": len(storage.requests), "faults": faults}
        record["lock left by a life that had nothing left to do"] = free(storage)
    log = (folder / "killed.log").read_text()
    torture.assert_same(folder / "bucket", folder / "undisturbed", log)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
