"""The job --mode=sample: images of a run's or an export's weights, with their labels, as files.

    WORKDIR/samples/STEP.png           a grid of the first hundred, by class
    WORKDIR/samples/STEP/000000.png    each image
    WORKDIR/samples/STEP/samples.npz   images uint8 [N, H, W, C], labels, indices [N], seed
    WORKDIR/samples/STEP/record.json   what they were made with

Of clips, where frames were given with the truth beside or above them (`moving_pictures.py`):

    WORKDIR/samples/STEP.png                   the frames of the first ones, a clip in a row
    WORKDIR/samples/STEP.gif                   the first ones, moving in a grid, by class
    WORKDIR/samples/STEP/000000.gif and .mp4   each clip; MP4 where PyAV is installed
    WORKDIR/samples/STEP/samples.npz           images uint8 [N, T, H, W, C] and the given frames too

A later call for the same step writes over them. The label of image i follows from the rule, the
seed and i, and the image from its label, the seed and i: more images never change the first ones.
Where frames are given they are those of real clips, and the label is that of clip i
(`sampling/conditions.py`).
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.data import catalog
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop.loading import Model, load
from rin_jax.runtime import console, files
from rin_jax.sampling import grids, moving_pictures, trace
from rin_jax.sampling import labels as label_rules
from rin_jax.sampling.conditions import Conditions, make_conditions
from rin_jax.sampling.generate import generate_all, guide_experiment, jit_sampler
from rin_jax.sampling.rollout import Rollout
from rin_jax.sampling.weights import load_ema

PICTURED = 8  # images whose way is shown


def sample(
    config, workdir: str, num: int | None, classes: Sequence[str], ema: str | None,
    checkpoint: int | None, export: str | None, show: bool, windows: int | None,
    rollout_latents: str,
) -> epath.Path:  # fmt: skip
    """Samples images 0..num-1 of config.seed and writes the files; returns their folder.

    `num` and `classes` as `labels.choose`; `ema` and `checkpoint` as `load_ema`; `export` as
    `loading.load`, whose weights are used instead of a run's: `workdir` is then any folder. `show`:
    whether to draw trajectories and reads of the first images as well. `windows` and
    `rollout_latents` as `Rollout`; None: no roll-out.
    """
    experiment = make_experiment(config)
    seed = experiment.seed
    rollout = None if windows is None else Rollout(windows, rollout_latents)
    if rollout is not None:
        rollout.check(experiment)
    conditions = make_conditions(experiment, choose_labels(experiment, classes, num))
    experiment.sampler.check_grid()
    guide_experiment(experiment)  # its mistakes too, before anything is loaded
    if export is None:
        mesh = device_mesh(experiment)
        found = load_ema(experiment, mesh, workdir, ema, checkpoint)
        model = Model(experiment, found.params, mesh, None, found.step, found.name)
    else:
        model = load(export, experiment)
    folder = epath.Path(workdir) / "samples" / f"{model.step:08d}"
    part = experiment.generation.images_per_device * model.mesh.size
    program = jit_sampler if rollout is None else rollout.program
    images = generate_all(experiment, model.mesh, seed, model.params, conditions, part, program)
    if show:
        few = np.arange(min(PICTURED, len(conditions)))
        cond = conditions.of(few)
        trajectory = trace.trace(experiment, model.mesh, model.params, seed, few, cond)
    if jax.process_index() == 0:
        write(model, folder, images, conditions, rollout)
        if show:
            trace.write(folder, trajectory)
    made = f"{len(conditions)} samples of step {model.step} ({model.ema} weights)"
    console.say(f"{made}: {folder}.png and {folder}")
    return folder


def choose_labels(experiment: Experiment, classes: Sequence[str], num: int | None) -> np.ndarray:
    """As `labels.choose`; where frames are given only the number counts: clips have their labels.

    Raises ConfigError as that, and at --classes where frames are given.
    """
    given = experiment.rin.cond_frames
    if given and classes:
        raise ConfigError(
            f"--classes has {', '.join(classes)}, but data.clip.cond_frames is {given}: a sample "
            "has the class of the real clip that it goes on from; leave the flag out."
        )
    known = 0 if given else experiment.rin.num_classes
    return label_rules.choose(classes, num, known, experiment.seed)


def write(
    model: Model, folder: epath.Path, images: np.ndarray, conditions: Conditions,
    rollout: Rollout | None,
) -> None:  # fmt: skip
    """The pictures, the arrays and the record."""
    config, names = model.config, class_names(model.config, model.class_names or ())
    labels, indices, clip = conditions.labels, np.arange(len(conditions)), config.data.clip
    arrays = {"images": images, "labels": labels, "indices": indices, "seed": config.seed}
    first = np.argsort(labels[: label_rules.GRID], kind="stable")
    captions = [names[label] for label in labels[first]] if names else []
    if clip is None:
        write_images(folder, images, first, captions)
    else:
        write_clips(folder, images, conditions, first, captions)
        if conditions.cond_frames:
            arrays["frames"] = conditions.truth(indices)[:, : conditions.cond_frames]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (folder / "samples.npz").write_bytes(buffer.getvalue())
    record = {
        "step": model.step, "ema": model.ema, "seed": config.seed, "num": len(labels),
        "evaluations": model.experiment.sampler.num_evaluations,
        "sampler": config.sampler.to_dict(), "dtype": config.model.dtype, "class_names": names,
    }  # fmt: skip
    if clip is not None:
        record |= {"frames": clip.frames, "cond_frames": clip.cond_frames}
        record["rollout"] = rollout and dataclasses.asdict(rollout)
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def write_images(
    folder: epath.Path, images: np.ndarray, first: np.ndarray, captions: Sequence[str]
) -> None:
    """The grid of images `first`, with their captions if there are any, and each image."""
    grid = grids.grid(images[first], grids.COLUMNS)
    if captions:
        grid = grids.captioned_grid(images[first], captions, grids.COLUMNS)
    files.write_png(folder.parent / f"{folder.name}.png", grid)
    for i, image in enumerate(images):
        files.write_png(folder / f"{i:06d}.png", image)


def write_clips(
    folder: epath.Path, clips: np.ndarray, conditions: Conditions, first: np.ndarray,
    captions: Sequence[str],
) -> None:  # fmt: skip
    """The frames of the first clips, some of `first` moving with their captions, and each clip."""
    few = np.arange(min(moving_pictures.CLIPS, len(clips)))
    strips = moving_pictures.strips(clips[few], conditions, few)
    files.write_png(folder.parent / f"{folder.name}.png", moving_pictures.still(strips))
    few = first[: moving_pictures.MOVING]
    strips = moving_pictures.strips(clips[few], conditions, few)
    pictures = moving_pictures.moving(strips, captions)
    files.write_gif(folder.parent / f"{folder.name}.gif", pictures)
    mp4 = files.can_write_mp4()
    if not mp4:
        console.say('GIF files alone; for MP4 too: pip install "rin-jax[video]"')
    for i in range(len(clips)):
        strips = moving_pictures.strips(clips[i : i + 1], conditions, np.array([i]))
        (pictures,) = moving_pictures.beside(strips)
        files.write_gif(folder / f"{i:06d}.gif", pictures)
        if mp4:
            files.write_mp4(folder / f"{i:06d}.mp4", pictures)


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
