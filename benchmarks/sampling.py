"""Images per second of the samplers, at several numbers of steps, on one device.

    python -m benchmarks.sampling --config=digits --batch=100 --json=sampling.json

The whole program of one device is timed, from noise to uint8 images, with random weights and
labels: compiled and run until warm, then timed N times. README.md in this folder says more.
"""

import argparse
import json
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# so that `python benchmarks/sampling.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import ml_collections
import numpy as np

from benchmarks.timing import environment, measure, positive
from rin_jax.experiment import Experiment, make_experiment
from rin_jax.network import conditioning
from rin_jax.runtime import sharding
from rin_jax.sampling.generate import jit_sampler
from rin_jax.training.state import create_state

ROOT = Path(__file__).resolve().parents[1]
# What differs from DDIM without guidance.
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddim, guidance": {"guidance_scale": 1.0},
    "ddim, refreshed once": {"refresh": 1},
    "ddpm_large": {"name": "ddpm_large"},
    "heun": {"name": "heun"},
    "dpmpp_2m": {"name": "dpmpp_2m"},
    "dpmpp_2m, eta 1": {"name": "dpmpp_2m", "eta": 1.0},
}


def make_config(name: str, batch: int, dtype: str | None) -> ml_collections.ConfigDict:
    """A file of configs/ that samples `batch` images at once."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    config.sampler.update(
        name="ddim", time_difference=0.0, latent_decay=0.0, guidance_scale=0.0,
        images_per_device=batch,
    )  # fmt: skip
    config.diffusion.cond_dropout = 0.1  # as guidance wants it; the weights are random anyway
    config.data.image_size = config.data.image_size or 8
    config.data.channels = config.data.channels or 1
    config.data.num_classes = 10 if config.data.num_classes is None else config.data.num_classes
    if dtype is not None:
        config.model.dtype = dtype
    return config


def time_sampler(
    experiment: Experiment, params: dict, repetitions: int, warmup: int
) -> dict[str, Any]:
    """Figures of one sampler; the first of the warm-up runs compiles."""
    batch = experiment.generation.images_per_device
    indices = np.arange(batch, dtype=np.int32)
    classes = experiment.rin.num_classes
    cond = conditioning.of_labels(indices % max(classes, 1), classes)
    program, key = jit_sampler(experiment), jax.random.key(0)
    start = time.perf_counter()
    compiled = program.lower(params, key, indices, cond).compile()
    compile_seconds = time.perf_counter() - start
    seconds = measure(
        (lambda _: compiled(params, key, indices, cond), None), repetitions, warmup
    )
    median = statistics.median(seconds)
    return {
        "evaluations": experiment.sampler.num_evaluations,
        "compile_seconds": compile_seconds,
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "images_per_second": batch / median,
    }


def run(
    config: ml_collections.ConfigDict, steps: list[int], repetitions: int, warmup: int
) -> dict[str, Any]:
    """Figures of every sampler at every number of steps."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    experiment = make_experiment(config)
    state = create_state(experiment, mesh, config.seed)
    rows = {}
    for name, changes in SAMPLERS.items():
        for num_steps in steps:
            changed = config.copy_and_resolve_references()
            changed.sampler.update(changes, num_steps=num_steps)
            rows[f"{name} | {num_steps}"] = time_sampler(
                make_experiment(changed), state.params, repetitions, warmup
            )
    return rows


def table(rows: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| sampler | steps | evaluations | compile, s | ms, median [min, max] | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['evaluations']} | {row['compile_seconds']:.1f} | "
            f"{row['median_ms']:.1f} [{row['min_ms']:.1f}, {row['max_ms']:.1f}] | "
            f"{row['images_per_second']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    configs = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", choices=configs, default="digits", help="default digits")
    parser.add_argument("--batch", type=positive, default=100, help="images at once; default 100")
    parser.add_argument("--dtype", help="float32 or bfloat16 instead of the file's own")
    parser.add_argument("--steps", type=positive, nargs="+", default=[10, 50], help="10 50")
    parser.add_argument("--repetitions", type=positive, default=5, help="timed runs; default 5")
    parser.add_argument("--warmup", type=positive, default=1, help="runs before them; default 1")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    report = environment()
    config = make_config(args.config, args.batch, args.dtype)
    rows = run(config, args.steps, args.repetitions, args.warmup)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(
        f"{args.config}, batch {args.batch}, {config.model.dtype}; {report['device']}, "
        f"{report['threads']} threads of {report['cores']} cores, load before {report['load']}; "
        f"{versions}; {report['date']}\n\n{table(rows)}"
    )
    if args.json:
        args.json.write_text(json.dumps(report | {"samplers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
