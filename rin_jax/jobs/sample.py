"""The job --mode=sample: images of a run's or an export's weights, with their labels, as files.

    WORKDIR/samples/STEP.png           a grid of the first hundred, by class
    WORKDIR/samples/STEP/000000.png    each image
    WORKDIR/samples/STEP/samples.npz   images uint8 [N, H, W, C], labels, indices [N], seed
    WORKDIR/samples/STEP/record.json   what they were made with

A later call for the same step writes over them. The label of image i follows from the rule, the
seed and i, and the image from its label, the seed and i: more images never change the first ones.
"""

import contextlib
import io
import json
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.data import catalog
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.interop.loading import Model, load
from rin_jax.runtime import console, files
from rin_jax.sampling import grids, trace
from rin_jax.sampling import labels as label_rules
from rin_jax.sampling.conditions import make_conditions
from rin_jax.sampling.generate import generate_all, guide_experiment
from rin_jax.sampling.weights import load_ema

PICTURED = 8  # images whose way is shown


def sample(
    config, workdir: str, num: int | None, classes: Sequence[str], ema: str | None,
    checkpoint: int | None, export: str | None, show: bool,
) -> epath.Path:  # fmt: skip
    """Samples images 0..num-1 of config.seed and writes the files; returns their folder.

    `num` and `classes` as `labels.choose`; `ema` and `checkpoint` as `load_ema`; `export` as
    `loading.load`, whose weights are used instead of a run's: `workdir` is then any folder. `show`:
    whether to draw trajectories and reads of the first images as well.
    """
    experiment = make_experiment(config)
    seed, num_classes = experiment.seed, experiment.rin.num_classes
    labels = label_rules.choose(classes, num, num_classes, seed)
    experiment.sampler.check_grid()
    guide_experiment(experiment)  # its mistakes too, before anything is loaded
    if export is None:
        mesh = device_mesh(experiment)
        found = load_ema(experiment, mesh, workdir, ema, checkpoint)
        model = Model(experiment, found.params, mesh, None, found.step, found.name)
    else:
        model = load(export, experiment)
    folder = epath.Path(workdir) / "samples" / f"{model.step:08d}"
    part = model.experiment.generation.images_per_device * model.mesh.size
    conditions = make_conditions(model.experiment, labels)
    images = generate_all(model.experiment, model.mesh, seed, model.params, conditions, part)
    if show:
        few = np.arange(min(PICTURED, len(labels)))
        cond = conditions.of(few)
        trajectory = trace.trace(experiment, model.mesh, model.params, seed, few, cond)
    if jax.process_index() == 0:
        write(model, folder, images, conditions.labels)
        if show:
            trace.write(folder, trajectory)
    made = f"{len(labels)} samples of step {model.step} ({model.ema} weights)"
    console.say(f"{made}: {folder}.png and {folder}")
    return folder


def write(model: Model, folder: epath.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """The grid, each image, the arrays and the record."""
    config, names = model.config, class_names(model.config, model.class_names or ())
    first = np.argsort(labels[: label_rules.GRID], kind="stable")
    grid = grids.grid(images[first], grids.COLUMNS)
    if names:
        captions = [names[label] for label in labels[first]]
        grid = grids.captioned_grid(images[first], captions, grids.COLUMNS)
    files.write_png(folder.parent / f"{folder.name}.png", grid)
    for i, image in enumerate(images):
        files.write_png(folder / f"{i:06d}.png", image)
    arrays = io.BytesIO()
    np.savez(arrays, images=images, labels=labels, indices=np.arange(len(labels)), seed=config.seed)
    (folder / "samples.npz").write_bytes(arrays.getvalue())
    record = {
        "step": model.step, "ema": model.ema, "seed": config.seed, "num": len(labels),
        "evaluations": model.experiment.sampler.num_evaluations,
        "sampler": config.sampler.to_dict(), "dtype": config.model.dtype, "class_names": names,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def class_names(config, known: Sequence[str]) -> list[str]:
    """A name for each class: as `known`, else as the data set's if that is here, else a number."""
    data, names = config.data, known
    if data.num_classes and not known:
        with contextlib.suppress(ConfigError):  # samples need no data set
            frames = data.clip and data.clip.frames
            where = data.name, data.split, data.data_dir, data.image_size, frames
            names = catalog.describe(*where).class_names
    names = list(names[: data.num_classes])
    return names + [str(i) for i in range(len(names), data.num_classes)]
