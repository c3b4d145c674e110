"""What each idea brings: trainings that differ in one thing, on a small data set.

    python -m benchmarks.ablations --out=runs/ablations

trains each cell of the table, a change and a seed, by the same command as any run, measures it by
--mode=evaluate, and writes OUT/ablations.json, OUT/ablations.md and OUT/cost.svg, a plot of quality
against the cost of a network. What the JSON file has is not computed again, and a training that was
interrupted goes on, so that the command may be stopped and started at any time; --jobs trains so
many at once. docs/ablations.md has the tables.

Figures of a row, mean and range over the seeds: the Frechet distance of the samples to all real
images in the features of the data set's classifier, and the share that the classifier reads as the
class asked for, without guidance. Where "equal FLOPs" is said, the number of steps is scaled so
that all cells cost what the first does.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# so that `python benchmarks/ablations.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_collections import ConfigDict

from benchmarks import plain_transformer
from benchmarks.chart import scatter
from rin_jax.experiment import make_experiment
from rin_jax.network.cost import training_flops

BASES = "digits_modern", "fashion_mnist"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row: what is changed, and what the literature expects of it."""

    group: str  # the question
    name: str  # the answer that this cell gives to it
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the configuration
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the sampler alone
    ema: str = "decay_0.998"  # which average of the weights is measured
    equal_flops: bool = False
    plain: bool = False  # whether the network is a plain transformer

    @property
    def key(self) -> str:
        """The name in the JSON file."""
        return f"{self.group}: {self.name}"

    @property
    def training(self) -> "Cell":
        """The first cell of the table that is trained as this one is, which may be itself."""

        def trained(cell):
            return dict(cell.changes), cell.equal_flops, cell.plain

        return next(cell for cell in CELLS if trained(cell) == trained(self))


def _layers(blocks: int, depth: int) -> dict[str, int]:
    return {"model.num_blocks": blocks, "model.depth": depth}


def _schedule(name: str, **parameters: float) -> dict[str, Any]:
    return {"diffusion.schedule": {"name": name, **parameters}}


def _prediction(kind: str, loss: str) -> dict[str, str]:
    return {"diffusion.prediction_type": kind, "diffusion.loss_type": loss}


def _optimizer(name: str, rate: float, b1: float, b2: float) -> dict[str, Any]:
    return {"optimizer.name": name, "optimizer.learning_rate": rate, "optimizer.b1": b1,
            "optimizer.b2": b2}  # fmt: skip


def _plain(blocks: int, width: int) -> dict[str, Any]:
    rest = {"model.interface_dim": width, "diffusion.self_cond_rate": 0.0}
    return _layers(blocks, 2) | rest


def _sigmoid(bias: float) -> dict[str, Any]:
    return _prediction("x0", "x0") | {"diffusion.sigmoid_bias": bias}


_EQUAL = {"equal_flops": True}
_POWER = "by a power average, 0.05"
_PLAIN = "plain transformer, equal FLOPs"
CELLS = (
    Cell("base", "as the configuration"),
    Cell(
        "self-conditioning", "rate 0, none at sampling", {"diffusion.self_cond_rate": 0.0},
        sampling={"latents": "reset"},
    ),
    Cell("self-conditioning", "rate 0.5", {"diffusion.self_cond_rate": 0.5}),
    Cell("latents at sampling", "reset at each step", sampling={"latents": "reset"}),
    Cell("optimizer", "LAMB, 5e-3", _optimizer("lamb", 5e-3, 0.9, 0.999)),
    Cell("optimizer", "LAMB, 1e-2", _optimizer("lamb", 1e-2, 0.9, 0.999)),
    Cell("optimizer", "AdamW, 1e-3", _optimizer("adamw", 1e-3, 0.9, 0.99)),
    Cell("optimizer", "AdamW, 3e-3", _optimizer("adamw", 3e-3, 0.9, 0.99)),
    Cell("optimizer", "Muon, 4e-3", _optimizer("muon", 4e-3, 0.95, 0.95)),
    Cell("prediction, loss", "eps, eps", _prediction("eps", "eps")),
    Cell("prediction, loss", "v, v", _prediction("v", "v")),
    Cell("prediction, loss", "x0, x0", _prediction("x0", "x0")),
    Cell("schedule of training", "linear", _schedule("linear")),
    Cell("schedule of training", "cosine", _schedule("cosine", start=0.0, end=1.0, tau=1.0)),
    Cell("schedule of training", "sigmoid", _schedule("sigmoid", start=-3.0, end=3.0, tau=0.9)),
    Cell("input scale", "1", {"diffusion.input_scale": 1.0}),
    Cell("input scale", "2", {"diffusion.input_scale": 2.0}),
    Cell("network", "no convolution", {"model.conv_size": 0}),
    Cell("network", "no norm on what is read", {"model.norm_context": False}),
    Cell("network", "learned positions alone", {"model.interface_positions": "learned"}),
    Cell("latents, equal FLOPs", "8", {"model.num_latents": 8}, **_EQUAL),
    Cell("latents, equal FLOPs", "16", {"model.num_latents": 16}, **_EQUAL),
    Cell("latents, equal FLOPs", "32", {"model.num_latents": 32}, **_EQUAL),
    Cell("latents, equal FLOPs", "64", {"model.num_latents": 64}, **_EQUAL),
    Cell(_PLAIN, "4 layers of 64", _plain(2, 64), equal_flops=True, plain=True),
    Cell(_PLAIN, "6 layers of 64", _plain(3, 64), equal_flops=True, plain=True),
    Cell(_PLAIN, "4 layers of 96", _plain(2, 96), equal_flops=True, plain=True),
    Cell("blocks x depth, equal FLOPs", "1 x 4", _layers(1, 4), **_EQUAL),
    Cell("blocks x depth, equal FLOPs", "4 x 1", _layers(4, 1), **_EQUAL),
    Cell("average of the weights", "power 0.05", ema="power_0.05"),
    Cell("average of the weights", "power 0.1", ema="power_0.1"),
    *(
        Cell(_POWER, name, changes, ema="power_0.05", equal_flops=equal)
        for name, changes, equal in (
            ("as the configuration", {}, False),
            ("no norm on what is read", {"model.norm_context": False}, False),
            ("v, v", _prediction("v", "v"), False),
            ("x0, x0", _prediction("x0", "x0"), False),
            ("x0 weighted by a sigmoid, bias -4", _sigmoid(-4.0), False),
            ("x0 weighted by a sigmoid, bias -2", _sigmoid(-2.0), False),
            ("x0 weighted by a sigmoid, bias 0", _sigmoid(0.0), False),
            ("logit-normal times, 0, 1", {"diffusion.logit_normal_times": (0.0, 1.0)}, False),
            ("norms of queries and keys", {"model.qk_norm": True}, False),
            ("1 x 4 blocks x depth", _layers(1, 4), True),
            ("8 latents", {"model.num_latents": 8}, True),
        )
    ),
)  # fmt: skip


def make_config(base: str, cell: Cell, seed: int, steps: int, num: int) -> ConfigDict:
    """The configuration of a cell: it leaves no pictures, and measures nothing while it trains.

    Times are uniform but where the cell says otherwise, and there are the averages of CELLS.
    """

    def build(changes):
        config = importlib.import_module(f"configs.{base}").get_config()
        with config.unlocked():
            for name, value in changes.items():
                section, field = name.split(".")
                config[section][field] = value
        return config

    config = build({"diffusion.logit_normal_times": None} | dict(cell.changes))
    config.seed = seed
    scale = flops(build({})) / flops(config, cell.plain) if cell.equal_flops else 1
    config.train.num_steps = round(steps * scale)
    config.train.sample_every_steps = config.train.num_steps
    config.checkpoint.every_steps = max(1, config.train.num_steps // 4)
    config.ema.decays, config.ema.power_lengths = (0.998,), (0.05, 0.1)
    config.ema.snapshot_every_steps = None
    config.sampler.guidance_scale = 0.0
    config.evaluation.num_samples = num
    config.evaluation.every_steps = None
    config.evaluation.held_out_every_steps = None
    config.evaluation.keep_best = False
    return config


def flops(config: ConfigDict, plain: bool = False) -> int:
    """Of a training step's forward and backward passes, one image."""
    experiment = make_experiment(config)
    if plain:
        return 3 * plain_transformer.forward_flops(experiment.rin)
    return training_flops(experiment.rin, experiment.objective.self_cond_rate > 0)


class Table:
    """The figures so far, in a JSON file."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = json.loads(path.read_text()) if path.exists() else {}
        self._lock = threading.Lock()

    def has(self, cell: Cell, seed: int) -> bool:
        """Whether a cell was measured."""
        return str(seed) in self.rows.get(cell.key, {})

    def add(self, cell: Cell, seed: int, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of a cell."""
        with self._lock:
            self.rows.setdefault(cell.key, {})[str(seed)] = dict(figures)
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")

    def cost_plot(self) -> str:
        """Distance against the cost of a network, as SVG: each point has the same FLOPs in all."""
        series: dict[str, list] = {"RIN": [], "plain transformer": []}
        for cell in CELLS:
            kind = "plain transformer" if cell.plain else "RIN"
            compared = cell.plain or cell is CELLS[0] or cell.group.startswith("latents, equal")
            if compared and (measured := list(self.rows.get(cell.key, {}).values())):
                distances = [row["distance"] for row in measured]
                name = "base" if cell is CELLS[0] else cell.name
                series[kind].append((measured[0]["flops"] / 1e9, distances, name))
        return scatter(
            series, "GFLOPs of a training step, one image", "Frechet distance, all at equal FLOPs"
        )

    def markdown(self) -> str:
        """The table."""
        lines = [
            "| | | steps | GFLOPs an image | Frechet distance | read as asked, % |",
            "|---|---|---|---|---|---|",
        ]
        for cell in CELLS:
            if measured := list(self.rows.get(cell.key, {}).values()):
                distance, agreement = (
                    _spread([row[name] for row in measured]) for name in ("distance", "agreement")
                )
                lines.append(
                    f"| {cell.group} | {cell.name} | {measured[0]['steps']:,} | "
                    f"{measured[0]['flops'] / 1e9:.3f} | {distance} | {agreement} |"
                )
        return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


class Runs:
    """The trainings and measurements, in folders of `out`."""

    def __init__(self, out: Path, base: str, steps: int, num: int):
        self.out, self.base, self.steps, self.num = out, base, steps, num
        self.real = out / "real"

    def prepare(self) -> None:
        """Learns the classifier and the statistics of the real images, once for all cells."""
        config = make_config(self.base, CELLS[0], 0, self.steps, self.num)
        self._run("rin_jax.main", self._stored("real", config), self.real, "--mode=reference")

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Trains a cell, unless it has been, and measures it."""
        config = make_config(self.base, cell, seed, self.steps, self.num)
        trained = cell.training.key
        name = "".join(c if c.isalnum() else "_" for c in trained) + f"-{seed}"
        workdir = self.out / name
        program = "benchmarks.plain_transformer" if cell.plain else "rin_jax.main"
        self._run(program, self._stored(name, config), workdir)
        (workdir / "evaluation").mkdir(exist_ok=True)
        for file in (self.real / "evaluation").glob("classifier-*.npz"):
            shutil.copy(file, workdir / "evaluation")
        config.evaluation.reference = str(self.real / "evaluation" / "reference")
        config.sampler.update(cell.sampling)
        for record in (workdir / "evaluation").glob("*.json"):
            record.unlink()  # of another row, whose figures are kept, or one that was cut short
        stored = self._stored(f"{name}-{cell.name}", config)
        self._run(program, stored, workdir, "--mode=evaluate", f"--ema={cell.ema}")
        (record,) = (workdir / "evaluation").glob("*.json")
        found = json.loads(record.read_text())["figures"]
        return {
            "distance": found["classifier/frechet"],
            "agreement": 100 * found["classifier/agreement"],
            "steps": config.train.num_steps,
            "flops": flops(config, cell.plain),
        }

    def _stored(self, name: str, config: ConfigDict) -> Path:
        path = self.out / f"{name}.json".replace(" ", "_")
        path.write_text(config.to_json_best_effort())
        return path

    def _run(self, program: str, config: Path, workdir: Path, *flags: str) -> None:
        flags = (f"--config={config}", f"--workdir={workdir}", *flags)
        with (self.out / f"{config.stem}.log").open("a") as log:
            command = [sys.executable, "-m", program, *flags]
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--base", choices=BASES, default=BASES[0], help="the experiment")
    parser.add_argument("--steps", type=int, default=1000, help="of the base; default 1000")
    parser.add_argument("--num", type=int, default=2000, help="samples of a cell; default 2000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    groups = list(dict.fromkeys(cell.group for cell in CELLS))
    parser.add_argument("--groups", nargs="+", choices=groups, help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table(args.out / "ablations.json")
    runs = Runs(args.out, args.base, args.steps, args.num)
    runs.prepare()

    together: dict[str, list[Cell]] = {}  # the cells of one training, which one job measures
    for cell in CELLS:
        if not args.groups or cell.group in args.groups:
            together.setdefault(cell.training.key, []).append(cell)

    def measure(seed: int, cells: list[Cell]) -> None:
        for cell in cells:
            if not table.has(cell, seed):
                table.add(cell, seed, runs.measure(cell, seed))
                row = table.rows[cell.key][str(seed)]
                print(f"{cell.key}, seed {seed}: {row['distance']:.2f}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        some = [(seed, cells) for seed in args.seeds for cells in together.values()]
        jobs = [pool.submit(measure, *one) for one in some]
        failed = [job for job in jobs if job.exception()]
    (args.out / "ablations.md").write_text(table.markdown())
    (args.out / "cost.svg").write_text(table.cost_plot())
    print(table.markdown())
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} failed: {failed[0].exception()}; see the logs.")


if __name__ == "__main__":
    main()
