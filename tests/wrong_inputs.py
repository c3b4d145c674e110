"""Gives the command line inputs that are wrong, each in a fresh folder.

    python -m tests.wrong_inputs [--only WORD ...]    prints a table; some minutes on two cores

Each must end with exit code 2 and one sentence, "error: ..." alone on stderr, and leave every file
as it was. Where one does not, its row is marked and the exit code is 1. In an input run is the
workdir of the tiny digits, export an export of it, and the other names are as `prepare` makes them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import xla

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 120  # seconds until an input counts as hanging
TINY = "--config=digits:tiny "
INPUTS = (
    # which experiment
    "",
    "--workdir=new",
    "--config=digts --workdir=new",
    "--config digits.py:tiny --workdir=new",
    "--config=digits:small --workdir=new",
    "--config=notes.txt --workdir=new",
    "--config=broken.py --workdir=new",
    "--config=folder --workdir=new",
    "--confg=digits --workdir=new",
    "digits --workdir=new",
    TINY + "--mode=trian --workdir=new",
    TINY + "--mode",
    TINY,
    TINY + "--workdir=notes.txt",
    TINY + "--workdir=/proc/run",
    TINY + "--workdir=s3://bucket/run",
    TINY + "--workdir=new --steps=100",
    TINY + "--workdir=new --batch-gpu=4",
    TINY + "--workdir=new --onnx",
    # fields
    TINY + "--workdir=new --config.model.dpeth=2",
    TINY + "--workdir=new --config.modl.depth=2",
    TINY + "--workdir=new --config.model=5",
    TINY + "--workdir=new --config.model.depth=two",
    TINY + "--workdir=new --config.model.depth=1.5",
    TINY + "--workdir=new --config.model.depth=-1",
    TINY + "--workdir=new --config.model.patch_size=3",
    TINY + "--workdir=new --config.model.dtype=fp16",
    TINY + "--workdir=new --config.model.dropout=1.5",
    TINY + "--workdir=new --config.model.num_heads=-2",
    TINY + "--workdir=new --config.optimizer.learning_rate=fast",
    TINY + "--workdir=new --config.optimizer.learning_rate=-1.0",
    TINY + "--workdir=new --config.optimizer.learning_rate=nan",
    TINY + "--workdir=new --config.optimizer.decay=cosin",
    TINY + "--workdir=new --config.train.num_steps=-5",
    TINY + "--workdir=new --config.train.num_steps=1e3",
    TINY + "--workdir=new --config.train.batch_size=0",
    TINY + "--workdir=new --config.train.batch_size=100000",
    TINY + "--workdir=new --config.train.log_every_steps=0",
    TINY + "--workdir=new --config.train.init_from=missing",
    TINY + "--workdir=new --config.train.init_from=folder",
    TINY + "--workdir=new --config.train.wandb=project",
    TINY + "--workdir=new --config.seed=-1",
    TINY + "--workdir=new --config.ema.decays=1.5",
    TINY + "--workdir=new --config.ema.decays=abc",
    TINY + "--workdir=new --config.checkpoint.every_steps=0",
    TINY + "--workdir=new --config.mesh.fsdp=3",
    TINY + "--workdir=new --config.mesh.data=0",
    TINY + "--workdir=new --config.diffusion.schedule=cosin",
    TINY + "--workdir=new --config.diffusion.schedule=cosine --config.diffusion.schedule.tau=1.0",
    TINY + "--workdir=new --config.diffusion.input_scale=0.0",
    TINY + "--workdir=new --config.diffusion.prediction_type=epsilon",
    # data
    TINY + "--workdir=new --config.data.name=digts",
    TINY + "--workdir=new --config.data.name=fashion_mnist --config.data.data_dir=folder",
    TINY + "--workdir=new --config.data.name=animals --config.data.data_dir=missing",
    TINY + "--workdir=new --config.data.split=trian",
    TINY + "--workdir=new --config.data.image_size=9",
    TINY + "--workdir=new --config.data.num_classes=3",
    TINY + "--workdir=new --config.data.channels=4",
    TINY + "--mode=prepare --source=missing --config.data.name=mine --config.data.image_size=32",
    TINY + "--mode=prepare --source=folder --config.data.name=mine --config.data.image_size=32",
    TINY + "--mode=prepare --source=notes.txt --config.data.name=mine --config.data.image_size=32",
    "--config=fashion_mnist --mode=prepare --downloaded=missing",
    # a run
    "--mode=sample --workdir=folder",
    TINY + "--mode=sample --workdir=new",
    "--mode=sample --workdir=run --classes=12",
    "--mode=sample --workdir=run --classes=Town",
    "--mode=sample --workdir=run --classes=all --num=3",
    "--mode=sample --workdir=run --num=0",
    "--mode=sample --workdir=run --num=ten",
    "--mode=sample --workdir=run --seeds=0-9",
    "--mode=sample --workdir=run --checkpoint=999",
    "--mode=sample --workdir=run --ema=0.99",
    "--mode=sample --workdir=run --rollout=2",
    "--mode=sample --workdir=run --config.sampler.name=euler",
    "--mode=sample --workdir=run --config.sampler.num_steps=0",
    "--mode=sample --workdir=run --config.sampler.guidance_scale=-0.5",
    "--mode=sample --workdir=run --config.sampler.schedule={}",
    "--mode=sample --workdir=run --config.sampler.guide=missing",
    "--mode=sample --workdir=run --config.model.latent_dim=64",
    "--mode=sample --workdir=run --config.mesh.fsdp=2",
    "--workdir=run --config.model.depth=2 --config.train.num_steps=30",
    "--mode=sample --export=missing --workdir=new",
    "--mode=sample --export=https://example.com/digits --workdir=new",
    "--mode=sample --export=export --workdir=new --ema=best",
    "--mode=evaluate --workdir=run --samples=missing",
    "--mode=evaluate --workdir=run --samples=folder",
    "--mode=evaluate --workdir=run --samples=images",
    "--mode=evaluate --workdir=run --config.evaluation.measures=fid",
    "--mode=evaluate --workdir=run --config.evaluation.networks=inception",
    "--mode=export --workdir=run",
    "--mode=export --workdir=run --to=images",
    "--mode=export --workdir=run --to=run",
    "--mode=export --workdir=run --to=new --push=digits",
    "--mode=reconstruct --workdir=run",
    "--mode=reconstruct --workdir=run --length=0.5",
    TINY + "--mode=import_pix2seq --workdir=new --source=missing",
    TINY + "--mode=plan --topology=v9:2x2",
)


def start(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """python -m rin_jax.main in a folder, on one device of this machine's CPU."""
    environment = os.environ | {
        "XLA_FLAGS": xla.FAST, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax-cli"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "rin_jax.main", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False,
    )  # fmt: skip


def prepare(folder: Path) -> None:
    """A folder with a run, its export, and things that are something else."""
    for command in (f"{TINY}--workdir=run", "--mode=export --workdir=run --to=export --nogrid"):
        done = start(command.split(), folder)
        assert done.returncode == 0, done.stderr
    (folder / "folder").mkdir()
    (folder / "notes.txt").write_text("notes\n")
    (folder / "broken.py").write_text("def get_config(arg=''):\n    return unknown\n")
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_text("no image\n")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file, and the folders."""
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")))
    return {
        str(path.relative_to(folder)): (x.st_size, x.st_mtime_ns) if path.is_file() else (0, 0)
        for path, x in found
    }


def try_out(arguments: str, prepared: Path) -> tuple[str, str, str, bool]:
    """Exit code, what was printed, which files changed, and whether all is as it must be."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "here"
        shutil.copytree(prepared, folder)
        before = contents(folder)
        try:
            done = start(arguments.split(), folder)
        except subprocess.TimeoutExpired:
            return "-", "HANGS", "", False
        after = contents(folder)
    changed = sorted(x for x in before | after if before.get(x) != after.get(x))
    printed = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    said = done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    good = done.returncode == 2 and not changed and said
    return str(done.returncode), " / ".join(printed[-8:]), ", ".join(changed) or "none", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="inputs that have one of these")
    only, failures = parser.parse_args().only, 0
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        print("| | input | exit code | what it printed | files written |\n|---|---|---|---|---|")
        for arguments in INPUTS:
            if any(word in arguments for word in only):
                code, printed, changed, good = try_out(arguments, Path(temporary))
                failures += not good
                cells = f"`{arguments.strip()}`", code, printed.replace("|", "\\|"), changed
                print(f"| {'' if good else 'WRONG'} |", " | ".join(cells), "|", flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
