"""The job --mode=evaluate: figures of samples against the real images of a data set.

    WORKDIR/evaluation/STEP-EMA-NUM-HASH.json    the record: figures, and all that they depend on
    WORKDIR/evaluation/parts/HASH/               features so far; removed when the record is there

Samples are those of a run's checkpoint, of an export, or the images of a folder. A job that is
interrupted and started again goes on where it was, with any number of processes.
"""

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError, __version__
from rin_jax.checkpointing.restore import find_checkpoints
from rin_jax.configuration import stored
from rin_jax.data.source import Source, open_source
from rin_jax.evaluation import protocol, records, sample_files
from rin_jax.evaluation.parts import Parts
from rin_jax.evaluation.protocol import Evaluation
from rin_jax.evaluation.real_statistics import Reference
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop.loading import load
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.runtime import console, processes
from rin_jax.sampling import labels as label_rules
from rin_jax.sampling import measuring, real_images
from rin_jax.sampling.conditions import make_conditions, source_of
from rin_jax.sampling.generate import describe_images, make_device_sampler
from rin_jax.sampling.guide import guide_experiment
from rin_jax.sampling.weights import load_ema

PACKAGES = "jax", "jaxlib", "flax", "numpy"


def evaluate(
    config: ml_collections.ConfigDict, workdir: str, ema: str | None = None,
    checkpoint: int | None = None, export: str | None = None, samples: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures `evaluation.num_samples` samples; writes, prints and returns the record.

    Measures of predicted frames are left out, which is said, where the network is given no frames.

    `ema` and `checkpoint` as `load_ema`, `export` as `loading.load`. `samples`: a folder of images,
    all of which are measured instead.

    Raises ConfigError before anything is sampled: a feature network lacks its weights; statistics
    of real images that do not suit; images of another size; too few images for a measure.
    """
    experiment = make_experiment(config)
    stored.say_differences(experiment, workdir)
    source, names = open_source(experiment.data), experiment.evaluation.chosen
    if samples is not None and experiment.data.clip is not None:
        raise ConfigError(
            f"--samples={samples} is meant for a folder of images, but data.clip is set; measure "
            "the clips of a checkpoint or of an export."
        )
    if experiment.evaluation.frame_measures and not experiment.data.cond_frames:
        console.say(
            f"{' and '.join(experiment.evaluation.frame_measures)} of evaluation.measures are left "
            "out: the network is given no frames, so that no clip is the true one."
        )
    for name in names:
        real_images.check_network(name, experiment, source)
    experiment.sampler.check_grid()
    guide_experiment(experiment)
    # their mistakes, before a network is trained
    if samples is not None:
        sample_files.find(samples, experiment.data.image_size, experiment.data.channels)
    elif export is None:
        find_checkpoints(workdir, checkpoint)
    mesh = device_mesh(experiment)
    networks = [real_images.open_network(name, experiment, source, workdir) for name in names]
    comparable = source_of(experiment, source)
    real = {x.name: real_images.find(experiment, comparable, x, workdir, mesh) for x in networks}
    drawn = (
        of_folder(experiment, samples) if samples is not None
        else of_model(experiment, source, mesh, workdir, ema, checkpoint, export, real)
    )  # fmt: skip
    count, evaluation = len(drawn.labels), drawn.evaluation
    features = {
        x.name: {
            "identity": dict(x.identity), "outputs": evaluation.outputs_of(x.name),
            "num_features": len(real[x.name].moments["pool"].mean), "accuracy": x.accuracy,
        }
        for x in networks
    }
    description = drawn.description | {"networks": features}
    parts = Parts(epath.Path(workdir) / "evaluation" / "parts" / protocol.digest(description))
    description |= {
        "num_samples": count, "measures": list(evaluation.measures),
        "reference": {
            name: {**x.description, "sha256": x.sha256, "floor": dict(x.floor)}
            for name, x in real.items()
        },
    }  # fmt: skip
    name = f"{drawn.name}-n{count}-{protocol.digest(description)}.json"
    path = epath.Path(workdir) / "evaluation" / name
    if processes.gather("a record", str(path.exists()))[0] != "True":
        outputs = [(x, evaluation.outputs_of(x.name)) for x in networks]
        programs = [measuring.make_features(x, wanted, mesh) for x, wanted in outputs]
        programs += drawn.of_frames
        found = measuring.figures(
            evaluation, mesh, drawn.images, drawn.size, count, programs, real, parts
        )
        if jax.process_index() == 0:
            path.write_text(json.dumps(make_record(found, description), indent=2) + "\n")
            parts.remove()
        processes.agree("measured")
    record = json.loads(path.read_text())
    console.say(describe(record, path))
    return record


class Samples(NamedTuple):
    """What is measured."""

    images: measuring.Images
    size: int  # of a batch on a device
    labels: np.ndarray  # that were asked for, int32 [N]
    evaluation: Evaluation
    description: dict[str, Any]  # all that the images depend on, JSON
    name: str  # in the record's file name
    of_frames: Sequence[measuring.Features] = ()  # measures of predicted frames


def of_model(
    experiment: Experiment, source: Source, mesh: Mesh, workdir: str, ema: str | None,
    checkpoint: int | None, export: str | None, real: Mapping[str, Reference],
) -> Samples:  # fmt: skip
    """Samples of a run's checkpoint or of an export, under labels by the rule or given frames."""
    if export is None:
        step, name, params = load_ema(experiment, mesh, workdir, ema, checkpoint)
    else:
        model = load(export, experiment)
        step, name, params, mesh = model.step, model.ema, model.params, model.mesh
    evaluation, seed, known = experiment.evaluation, experiment.seed, experiment.rin.num_classes
    histograms = [x.histogram[:known] for x in real.values()] or [None]
    labels = label_rules.by_rule(
        evaluation.labels, evaluation.num_samples, known, seed, histograms[0]
    )
    conditions = make_conditions(experiment, labels, source)
    images = make_device_sampler(experiment, mesh, seed)(params, conditions)
    images, of_frames = measuring.of_clips(experiment, images, conditions)
    description = {
        **describe_images(experiment, step, name, params),
        "labels": evaluation.labels if known else "none",
        **json.loads(json.dumps(real_images.describe_samples(experiment, source))),
    }
    return Samples(
        images, experiment.generation.images_per_device, conditions.labels, evaluation,
        description, f"{step:08d}-{name}", of_frames,
    )  # fmt: skip


def of_folder(experiment: Experiment, folder: str) -> Samples:
    """The images of a folder, whatever made them; no class was asked for."""
    data = experiment.data
    paths = sample_files.find(folder, data.image_size, data.channels)
    measures = tuple(x for x in experiment.evaluation.measures if x != "agreement")
    evaluation = dataclasses.replace(experiment.evaluation, measures=measures)

    labels = np.full(len(paths), NO_LABEL, np.int32)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        files = [sample_files.read(paths[i], data.image_size, data.channels) for i in indices]
        return np.stack(files), labels[indices]

    description = {"samples": folder, "files": sample_files.fingerprint(paths)}
    images, name = measuring.from_host(read), epath.Path(folder).name
    return Samples(images, measuring.AT_ONCE, labels, evaluation, description, name)


def make_record(figures: Mapping[str, float], description: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with all that they depend on, the versions, the device and the date."""
    return {
        "figures": dict(figures), **description,
        "versions": {"rin-jax": __version__}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def describe(record: Mapping[str, Any], path: epath.Path) -> str:
    """The figures and what a reader must know of them, for a person."""
    lines = [f"{record['num_samples']:,} samples; {path}"]
    lines += [f"  {name:28} {value:.4f}" for name, value in record["figures"].items()]
    return "\n".join([*lines, *(f"  {text}" for text in records.sentences(record))])
