"""Times one training step, its parts and one sampler step on one device.

    python -m benchmarks.step --size=s64 --json=s64.json
    python -m benchmarks.step --size=s64 --peers

Each part is compiled, run until warm, then timed N times until its results are ready; the table
gives the median and the range. Rates hold model FLOPs (network/cost.py) against the device's own
matrix product. With --peers it is timed beside others instead (peers.py). README.md in this folder
says how to read it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# so that `python benchmarks/step.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks.parts import ATTENTIONS, PARTS, make_parts, use_attention
from benchmarks.sizes import SIZES, make_config
from benchmarks.timing import (
    environment,
    matmul_rates,
    matmul_sides,
    measure,
    peak_memory,
    positive,
)  # fmt: skip
from rin_jax import ConfigError
from rin_jax.experiment import Experiment, make_experiment
from rin_jax.network import cost
from rin_jax.runtime import huge_pages

DTYPES = ("float32", "bfloat16")


def time_parts(
    experiment: Experiment, parts: Sequence[str], repetitions: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of `parts`."""
    makers = make_parts(experiment)
    chosen = (name for name in makers if name in parts)
    return {name: measure(makers[name](), repetitions, warmup) for name in chosen}


def figures(
    seconds: Sequence[float], images: int | None, flops: int | None, ceiling: float
) -> dict[str, Any]:
    """Figures of one part; `images` and `flops` are of a call, None where they do not apply.

    `ceiling` is in GFLOP/s.
    """
    median = statistics.median(seconds)
    gflops = None if flops is None else flops / median / 1e9
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "flops": flops,
        "gflops_per_second": gflops,
        "share_of_ceiling": None if gflops is None else gflops / ceiling,
        "images_per_second": None if images is None else images / median,
    }


def run(
    experiment: Experiment,
    matmul_sides: Sequence[int],
    parts: Sequence[str],
    repetitions: int,
    warmup: int,
) -> dict[str, Any]:
    """Times `parts`; returns the ceilings and the figures of each part."""
    dtype, batch = experiment.rin.dtype, experiment.train.batch_size
    matmul = {
        name: matmul_rates(matmul_sides, name, repetitions, warmup)
        for name in dict.fromkeys(("float32", dtype))
    }
    ceiling = max(matmul[dtype].values())
    times = time_parts(experiment, parts, repetitions, warmup)
    training = batch * cost.training_flops(experiment.rin, self_cond=True)
    forward = batch * cost.forward_flops(experiment.rin)
    work = {  # images and FLOPs of a call
        "forward_backward": (batch, training),
        "optimizer_update": (None, None),
        "ema_update": (None, None),
        "training_step": (batch, training),
        "sampler_step": (batch, forward),
    }
    return {
        "dtype": dtype,
        "batch": batch,
        "matmul_gflops_per_second": matmul,
        "ceiling_gflops_per_second": ceiling,
        "peak_memory_gib": peak_memory(),
        "parts": {
            name: figures(times[name], *work[name], ceiling) for name in work if name in parts
        },
    }


def table(report: dict[str, Any]) -> str:
    """The parts as a Markdown table."""

    def cell(value, form):
        return "" if value is None else format(value, form)

    lines = [
        "| part | ms, median [min, max] | GFLOP | GFLOP/s | of ceiling | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in report["parts"].items():
        gflop = None if part["flops"] is None else part["flops"] / 1e9
        cells = (
            name.replace("_", " "),
            "{median_ms:.2f} [{min_ms:.2f}, {max_ms:.2f}]".format(**part),
            cell(gflop, ".2f"),
            cell(part["gflops_per_second"], ".1f"),
            cell(part["share_of_ceiling"], ".0%"),
            cell(part["images_per_second"], ".1f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(report: dict[str, Any]) -> str:
    """The report for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    matmul = "; ".join(
        f"{dtype} " + ", ".join(f"{side}: {rate:.1f}" for side, rate in rates.items())
        for dtype, rates in report["matmul_gflops_per_second"].items()
    )
    peak = report["peak_memory_gib"]
    memory = "" if peak is None else f"; at most {peak:.1f} GiB of memory"
    return (
        f"{report['command']}\n"
        f"{report['device']}, {report['threads']} threads of {report['cores']} cores, "
        f"load before {report['load']}; {versions}; {report['date']}\n"
        f"batch {report['batch']}, {report['dtype']}; matrix product, GFLOP/s by side: {matmul}; "
        f"ceiling {report['ceiling_gflops_per_second']:.1f}{memory}\n\n"
        f"{table(report)}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="s64", help="the model; default s64")
    parser.add_argument("--batch", type=positive, help="images a step instead of the size's own")
    parser.add_argument("--dtype", choices=DTYPES, help="compute dtype instead of the size's own")
    parser.add_argument("--remat", help="none, full or dots instead of the size's own")
    parser.add_argument(
        "--attention", choices=ATTENTIONS, default="device",
        help="the form of the code, or one of jax.nn.dot_product_attention; default device",
    )  # fmt: skip
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what is timed; default all"
    )
    parser.add_argument("--repetitions", type=positive, default=20, help="timed runs; default 20")
    parser.add_argument(
        "--warmup", type=positive, default=3, help="runs before them, the first compiles; default 3"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(
        "--peers", nargs="*", choices=peers.PEERS, metavar="NAME",
        help=f"beside these networks, one after the other in turn: {', '.join(peers.PEERS)}",
    )  # fmt: skip
    peers.add_arguments(parser)
    args = parser.parse_args()
    if args.peers is not None:
        peers.main(args)
        return
    try:
        experiment = make_experiment(make_config(args.size, args.batch, args.dtype, args.remat))
    except ConfigError as error:
        parser.error(str(error))
    use_attention(args.attention)
    command = (
        f"python -m benchmarks.step --size={args.size} "
        f"--batch={experiment.train.batch_size} --dtype={experiment.rin.dtype} "
        f"--remat={experiment.rin.remat} --attention={args.attention} "
        f"--parts {' '.join(args.parts)} --repetitions={args.repetitions} --warmup={args.warmup}"
    )
    report = {
        "command": command,
        "size": args.size,
        "repetitions": args.repetitions,
        "warmup": args.warmup,
        **environment(),
        **run(experiment, matmul_sides(), args.parts, args.repetitions, args.warmup),
    }
    print(summary(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    huge_pages.use()
    main()
