"""Bytes that a chip sends in a training step as the slice grows: counted in compiled programs.

    python -m benchmarks.weak_scaling --json=weak_scaling.json --svg=docs/weak_scaling.svg

compiles imagenet256 at 64 images a chip for v5p slices of 16 to 4,096 chips (minutes each, on any
machine with libtpu; figures that the JSON file has already are kept) and draws them.
"""

import argparse
import collections
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

# so that `python benchmarks/weak_scaling.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

from rin_jax.experiment import make_experiment
from rin_jax.jobs import plan
from rin_jax.runtime import chips, tpu_compiler
from rin_jax.training.step import compile_train_step

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {16: "2x2x4", 64: "4x4x4", 256: "4x8x8", 1024: "8x8x16", 4096: "16x16x16"}
IMAGES = 64  # a chip
FSDP = {1: "parameters on every chip (fsdp 1)", 16: "parameters over 16 chips (fsdp 16)"}
COLORS = {1: "#1f6f8b", 16: "#c0582b"}


def measure(num_chips: int, fsdp: int) -> dict[str, float]:
    """Bytes sent by a chip in a step, by collective."""
    config = runpy.run_path(str(ROOT / "configs" / "imagenet256.py"))["get_config"]()
    config.train.batch_size = IMAGES * num_chips
    config.model.remat = "full"
    config.mesh.fsdp = fsdp
    experiment = make_experiment(config)
    topology = f"v5p:{SHAPES[num_chips]}"
    changed, mesh = plan.change(experiment, tpu_compiler.topology_devices(topology, 1))
    result = tpu_compiler.compiled(
        lambda: compile_train_step(changed, mesh), mesh.size, 1, chips.by_topology(topology)
    )
    sent: collections.Counter = collections.Counter()
    for collective in result.collectives:
        sent[collective.kind] += collective.bytes
    return {"memory": result.used, **sent}


def draw(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """The plot as SVG: a line for each way to hold the parameters, a point for each slice."""
    width, height, left, bottom, top = 640, 360, 70, 300, 40
    total = {
        int(fsdp): {int(n): sum(v for k, v in row.items() if k != "memory") / 1e9
                    for n, row in rows.items()}
        for fsdp, rows in figures.items()
        if rows
    }  # fmt: skip
    highest = 1.15 * max(value for row in total.values() for value in row.values())

    def x(num_chips):
        return left + 40 + list(SHAPES).index(num_chips) * (width - left - 80) / (len(SHAPES) - 1)

    def y(value):
        return bottom - value / highest * (bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-weight="bold">imagenet256, {IMAGES} images a chip: '
        "GB that a chip sends in a step</text>",
    ]
    for tick in range(int(highest) + 1):
        parts.append(
            f'<path d="M{left} {y(tick):.1f}H{width - 20}" stroke="#ddd"/>'
            f'<text x="{left - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for num_chips in SHAPES:
        parts.append(
            f'<text x="{x(num_chips):.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{num_chips:,}</text>"
        )
    parts.append(f'<text x="{width / 2}" y="{bottom + 44}" text-anchor="middle">chips</text>')
    for fsdp, row in total.items():
        points = [(x(n), y(value), value) for n, value in sorted(row.items())]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{COLORS[fsdp]}" stroke-width="2"/>'
        )
        for px, py, value in points:
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{COLORS[fsdp]}"/>'
                f'<text x="{px:.1f}" y="{py - 10:.1f}" text-anchor="middle">{value:.2f}</text>'
            )
        parts.append(
            f'<text x="{left + 40}" y="{points[0][1] + 22:.1f}" fill="{COLORS[fsdp]}">'
            f"{FSDP[fsdp]}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles what is missing, writes the figures and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="weak_scaling.json", help="figures, added to")
    parser.add_argument("--svg", default="docs/weak_scaling.svg", help="the plot")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    path = Path(options.json)
    figures = json.loads(path.read_text()) if path.exists() else {}
    for fsdp in FSDP:
        rows = figures.setdefault(str(fsdp), {})
        for num_chips in SHAPES:
            if str(num_chips) not in rows:
                rows[str(num_chips)] = measure(num_chips, fsdp)
                path.write_text(json.dumps(figures, indent=2) + "\n")
                print(num_chips, fsdp, rows[str(num_chips)], flush=True)
    Path(options.svg).write_text(draw(figures))


if __name__ == "__main__":
    main()
