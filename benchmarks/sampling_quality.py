"""Quality of samples against steps, sampler and treatment of the latents, on the digits.

    python -m rin_jax.main --config=configs/digits.py --workdir=runs/digits_lamb
    python -m benchmarks.sampling_quality --workdir=runs/digits_lamb --json=quality.json

For each setting and seed 1,000 images, classes in turn: the share that a classifier reads as the
class asked for, and the Frechet distance of its features to those of all real digits. Settings
whose figures are in the JSON file already are not computed again. docs/sampling.md has the tables.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# so that `python benchmarks/sampling_quality.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import ml_collections
import numpy as np

from configs import digits
from rin_jax.data import pipeline
from rin_jax.data.source import open_source
from rin_jax.evaluation import classifier
from rin_jax.evaluation.distances import frechet_distance, moments
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.network import conditioning
from rin_jax.runtime import sharding
from rin_jax.sampling.generate import jit_sampler, run_batches
from rin_jax.sampling.guide import load_guide
from rin_jax.sampling.weights import load_ema

SEEDS = (0, 1, 2)
LATENTS = {
    "carried": {},
    "reset": {"latents": "reset"},
    "refreshed": {"refresh": 1},
    "reset, refreshed": {"latents": "reset", "refresh": 1},
}
COMPARED = ("carried", "reset", "refreshed")
LATENTS_OF_SECOND = ("shared", "own")
RULES = {
    "DDIM": {"name": "ddim"},
    "DDPM, large": {"name": "ddpm_large"},
    "DDPM, small": {"name": "ddpm_small"},
    "Heun": {"name": "heun"},
    "2M": {"name": "dpmpp_2m"},
    "2M, eta 1": {"name": "dpmpp_2m", "eta": 1.0},
}
GRIDS = {
    "cosine": {"schedule": {"name": "cosine", "start": 0.0, "end": 1.0, "tau": 1.0}},
    "sigmoid": {"schedule": {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}},
    "log-SNR": {"schedule": {"name": "logsnr", "start": 6.0, "end": -9.0}},
    "EDM": {"schedule": {"name": "edm", "sigma_min": 0.02, "sigma_max": 80.0, "rho": 7.0}},
}


def settings(guide: str | None) -> dict[str, dict[str, Any]]:
    """Name -> what differs from the demo's sampler without guidance; what takes long comes last."""
    rows: dict[str, dict[str, Any]] = {}

    def add(rule, steps, latents="carried", grid="cosine"):
        name = f"{rule} | {grid} | {steps} | {latents}"
        rows[name] = {**RULES[rule], **GRIDS[grid], "num_steps": steps, **LATENTS[latents]}

    for steps, latents, rule in itertools.product((5, 10, 25), COMPARED, RULES):
        add(rule, steps, latents)
    add("DDIM", 10, "reset, refreshed")
    for rule, grid in itertools.product(("2M", "2M, eta 1"), ("sigmoid", "log-SNR", "EDM")):
        add(rule, 10, grid=grid)
    rows |= guidance_settings(guide)
    for latents, rule in itertools.product(COMPARED, RULES):
        add(rule, 250, latents)
    return rows


def guidance_settings(guide: str | None) -> dict[str, dict[str, Any]]:
    """The same for guidance: scale, interval, and the latents of the second pass."""
    base = {**RULES["2M, eta 1"], "num_steps": 10}
    rows = {}
    for scale, latents in itertools.product((0.5, 1.0), LATENTS_OF_SECOND):
        rows[f"null class | w {scale} | all gamma | {latents}"] = {
            **base, "guidance_scale": scale, "guidance_latents": latents,
        }  # fmt: skip
    for latents in LATENTS_OF_SECOND:
        rows[f"null class | w 1.0 | gamma 0.1 to 0.9 | {latents}"] = {
            **base, "guidance_scale": 1.0, "guidance_latents": latents,
            "guidance_interval": (0.1, 0.9),
        }  # fmt: skip
    for scale, latents in itertools.product((0.5,), LATENTS_OF_SECOND if guide else ()):
        rows[f"autoguidance | w {scale} | all gamma | {latents}"] = {
            **base, "guidance_scale": scale, "guidance_latents": latents, "guide": guide,
        }  # fmt: skip
    return rows


def changed(config: ml_collections.ConfigDict, changes: dict[str, Any]):
    """A copy of a configuration without guidance and with a sampler's fields replaced."""
    tree = config.to_dict()
    tree["sampler"] |= {"guidance_scale": 0.0} | changes
    return ml_collections.ConfigDict(tree)


def measure(config, changes, params, mesh, learned, real, num) -> dict[str, Any]:
    """Figures of one setting: lists of agreement and distance, one entry a seed."""
    config = changed(config, changes)
    experiment = make_experiment(config)
    guide = load_guide(experiment, mesh)
    program = jit_sampler(experiment, guide and guide.experiment.rin)
    both = (params, guide.params) if guide else params
    shape = (-1, experiment.generation.images_per_device)
    labels = np.arange(num, dtype=np.int32) % experiment.rin.num_classes
    cond = conditioning.of_labels(labels.reshape(shape), experiment.rin.num_classes)
    indices = np.arange(num, dtype=np.int32).reshape(shape)
    agreement, distance = [], []
    start = time.perf_counter()
    for seed in SEEDS:
        key = jax.random.key(seed)
        images = run_batches(program, both, key, indices, cond, mesh)
        images = images.reshape(num, *images.shape[2:])
        agreement.append(classifier.accuracy(learned, images, labels))
        distance.append(frechet_distance(moments(features_of(learned, images)), real))
    return {
        "evaluations": experiment.sampler.num_evaluations,
        "agreement": agreement,
        "distance": distance,
        "seconds": time.perf_counter() - start,
    }


def features_of(learned: classifier.Params, images: np.ndarray) -> np.ndarray:
    """Features [B, F] of images [B, H, W, C] of 0..255, which are few and small."""
    return np.asarray(classifier.extract(learned, images.astype(np.float32))["pool"])


def line(name: str, row: dict[str, Any]) -> str:
    """One row of a Markdown table: mean and range over the seeds."""
    agreement, distance = row["agreement"], row["distance"]
    return (
        f"| {name} | {row['evaluations']} | {100 * statistics.mean(agreement):.1f} "
        f"({100 * min(agreement):.1f} to {100 * max(agreement):.1f}) | "
        f"{statistics.mean(distance):.2f} ({min(distance):.2f} to {max(distance):.2f}) |"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="the trained digits")
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--num", type=int, default=1000, help="images a setting and seed")
    parser.add_argument("--guide", help="also autoguidance by the network of this workdir")
    args = parser.parse_args()
    config = digits.get_config()
    experiment = make_experiment(config)
    mesh = device_mesh(experiment)
    source = open_source(experiment.data)
    real = pipeline.fixed_examples(source, len(source))
    held_out = np.arange(len(source)) % 5 == 0
    seen = real["image"][~held_out], real["label"][~held_out]
    learned = classifier.train(*seen, experiment.rin.num_classes)
    accuracy = classifier.accuracy(learned, real["image"][held_out], real["label"][held_out])
    features = features_of(learned, real["image"])
    target = moments(features)
    step, _, params = load_ema(experiment, mesh, args.workdir)
    params = jax.device_put(params, sharding.replicated(mesh))
    report = json.loads(args.json.read_text()) if args.json.exists() else {"settings": {}}
    rng = np.random.default_rng(0)
    floor = [
        frechet_distance(moments(features[rng.permutation(len(features))[: args.num]]), target)
        for _ in SEEDS
    ]
    report |= {"step": step, "num": args.num, "seeds": SEEDS, "real_subset": floor}
    report["classifier_accuracy"] = accuracy
    print(f"classifier {100 * accuracy:.1f} %; {args.num} real digits: {floor}")
    for name, changes in settings(args.guide).items():
        if name not in report["settings"]:
            row = measure(config, changes, params, mesh, learned, target, args.num)
            report["settings"][name] = row
            args.json.write_text(json.dumps(report, indent=2) + "\n")
        print(line(name, report["settings"][name]), flush=True)


if __name__ == "__main__":
    main()
