"""Our step beside others, each in a process of its own that lives as long as the measurement.

    python -m benchmarks.step --size=s64 --peers

    twin         our own export in PyTorch (interop/rin_torch.py): the same arithmetic
    rin-pytorch  the package of that name, with our widths, depths, patches and heads
    plain        ours with attention in its plain form

"twin" and "rin-pytorch" also come "-compiled", by torch.compile. The processes take turns, forwards
and then backwards (A B C, C B A, ...), so that another program's load meets all of them, and a
round gives one ratio to each peer. What rin-pytorch needs is installed into a folder for the
packages of `peers.txt`, beside the PyTorch of this interpreter; or --peer-python names an
interpreter that has it all.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.sizes import ROOT, make_config
from rin_jax.experiment import make_experiment
from rin_jax.interop import export_format, formulas

PEERS = ("twin", "rin-pytorch", "twin-compiled", "rin-pytorch-compiled", "plain")
PARTS = ("forward_backward", "sampler_step", "training_step")  # the last gives its state away
KEYS = ("seconds", "cpu_seconds")  # of an answer
PACKAGES = ROOT / ".cache" / "peers"  # what peers.txt names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that --peers alone uses."""
    group = parser.add_argument_group("with --peers")
    group.add_argument("--threads", type=int, nargs="+", help="cores to use; default all of them")
    group.add_argument("--rounds", type=int, default=9, help="turns of each; default 9")
    group.add_argument("--peer-python", help="an interpreter with the peers' packages")
    group.add_argument("--against", help="another checkout of this repository, as a peer too")


class Process:
    """One of those that are measured; `about` is what it says of itself."""

    def __init__(self, command: Sequence[str], folder: str, environment: Mapping[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, **pipes
        )
        self.about: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The next answer; RuntimeError if the process has ended."""
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{' '.join(self._process.args[:3])} has ended; see above.")
        return json.loads(line)

    def turn(self, part: str) -> dict[str, Any]:
        """The seconds of a call of a part, or its error."""
        self._process.stdin.write(part + "\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def packages() -> str:
    """The folder of rin-pytorch and what it needs, which is filled once."""
    wanted = ROOT / "benchmarks" / "peers.txt"
    installed = PACKAGES / wanted.name
    if not installed.exists() or installed.read_text() != wanted.read_text():
        install = ("-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target")
        subprocess.run([sys.executable, *install, PACKAGES, "-r", wanted], check=True)
        installed.write_text(wanted.read_text())
    return str(PACKAGES)


@contextlib.contextmanager
def processes(
    names: Sequence[str], args: argparse.Namespace, threads: int
) -> Iterator[dict[str, Process]]:
    """All processes by name, ours first; they start at the same time, and some may not."""
    ours = {name: getattr(args, name) for name in ("size", "batch", "dtype", "remat")}
    ours["threads"] = threads
    # on a GPU no process may take all memory at once
    environment = {"OMP_NUM_THREADS": str(threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    attention = {"ours": args.attention, "plain": "xla", "against": args.attention}
    search = [os.environ.get("PYTHONPATH")]
    if not args.peer_python and any(name.startswith("rin-pytorch") for name in names):
        search.insert(0, packages())
    of_peers = environment | {"PYTHONPATH": os.pathsep.join(filter(None, search))}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        theirs = {"threads": threads, **describe(args, Path(scratch))}

        def start(name: str) -> Process:
            if name in attention:
                options = json.dumps(ours | {"attention": attention[name]})
                command = [sys.executable, "-m", "benchmarks.peer_ours", options]
                where = args.against if name == "against" else ROOT
                return Process(command, where, environment)
            peer = name.removesuffix("-compiled")
            options = json.dumps(theirs | {"peer": peer, "compiled": peer != name})
            python = args.peer_python or sys.executable
            return Process([python, "-m", "benchmarks.peer_torch", options], ROOT, of_peers)

        started = {name: start(name) for name in ("ours", *names)}
        for process in started.values():
            stack.callback(process.end)
        for name, process in list(started.items()):
            try:
                process.about = process.read()
            except RuntimeError as error:
                if name == "ours":
                    raise
                del started[name]
                print(f"without {name}: {error}", file=sys.stderr)
        yield started


def describe(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the peers are told of the network, with a copy of our PyTorch file in `folder`."""
    config = make_config(args.size, args.batch, args.dtype, args.remat)
    experiment = make_experiment(config)
    path = folder / formulas.TORCH_FILE.name
    path.write_text(formulas.torch_file())
    network, content = export_format.network_fields(experiment.rin), experiment.config.to_dict()
    return {
        "batch": experiment.train.batch_size,
        "input_scale": experiment.objective.process.input_scale,
        "twin": str(path),
        "description": {"network": network, "config": content, "class_names": None},
    }


def measure(started: Mapping[str, Process], part: str, rounds: int) -> dict[str, Any]:
    """The answers of each process in each round, by name; or the error of a process."""
    answers: dict[str, Any] = {name: [] for name in started}
    for i in range(rounds):
        for name in list(started)[:: 1 if i % 2 == 0 else -1]:
            if isinstance(answers[name], list):
                answer = started[name].turn(part)
                answers[name] = answer.get("error") or [*answers[name], answer]
    return answers


def compare(answers: Mapping[str, Any], name: str, key: str) -> str:
    """Our time over a peer's: the median of the rounds and their range, as text."""
    if name == "ours" or isinstance(answers["ours"], str):
        return ""
    pairs = zip(answers["ours"], answers[name], strict=True)
    ratios = [ours[key] / peer[key] for ours, peer in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def rows(
    part: str, answers: Mapping[str, Any], abouts: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The rows of a part in the table; `abouts` is what each process says of itself."""
    for name, times in answers.items():
        cells = [part.replace("_", " "), name]
        if isinstance(times, str):
            cells += [times, "", "", ""]
        else:
            median = statistics.median(answer["seconds"] for answer in times)
            gflops = abouts["ours"]["flops"][part] / median / 1e9
            share = f"{gflops / abouts[name]['ceiling_gflops_per_second']:.0%}"
            share = "" if name.startswith("rin-pytorch") else share
            cells += [f"{1e3 * median:.1f}", share, *(compare(answers, name, k) for k in KEYS)]
        yield f"| {' | '.join(cells)} |"


def heading(abouts: Mapping[str, Mapping[str, Any]], rounds: int) -> str:
    """What is measured where, and the head of the table."""
    ours = abouts["ours"]
    versions = dict(ours["versions"])
    for about in abouts.values():
        versions |= about["versions"]
    counts = ", ".join(f"{name} {about['parameters']:,}" for name, about in abouts.items())
    ceilings = ", ".join(
        f"{name} {about['ceiling_gflops_per_second']:.0f}" for name, about in abouts.items()
    )
    return (
        f"batch {ours['batch']}, {ours['dtype']}, remat {ours['remat']}; {ours['device']}, "
        f"{ours['threads']} of {ours['cores']} cores, load before {ours['load']}; "
        f"{rounds} rounds; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {ours['date']}\nparameters: {counts}\n"
        f"its own matrix product, GFLOP/s: {ceilings}\n\n"
        "| part | program | ms | of its ceiling | ours / this, time | ours / this, CPU time |\n"
        "|---|---|---|---|---|---|"
    )


def main(args: argparse.Namespace) -> None:
    """The command `benchmarks.step --peers`."""
    jax.config.update("jax_platforms", "cpu")  # this process leaves a GPU to the others
    names = list(args.peers or PEERS[:4]) + ["against"] * bool(args.against)
    results = []
    for threads in args.threads or [len(os.sched_getaffinity(0))]:
        with processes(names, args, threads) as started:
            abouts = {name: process.about for name, process in started.items()}
            print(f"{args.size}, {heading(abouts, args.rounds)}", flush=True)
            parts = {}
            for part in (part for part in PARTS if part in args.parts):
                parts[part] = measure(started, part, args.rounds)
                print("\n".join(rows(part, parts[part], abouts)), flush=True)
        load = os.getloadavg()[0]
        print(f"\nload after {load:.1f}\n", flush=True)
        results.append({"about": abouts, "load_after": load, "parts": parts})
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
