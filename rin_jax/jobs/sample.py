"""The job --mode=sample: images of a run's or an export's weights, with their labels, as files.

    WORKDIR/samples/NAME.png           a grid of the first hundred, by class
    WORKDIR/samples/NAME/000000.png    each image
    WORKDIR/samples/NAME/samples.npz   images uint8 [N, H, W, C], labels, indices [N], seed
    WORKDIR/samples/NAME/record.json   what they were made with

Of clips, where frames were given with the truth beside or above them (`moving_pictures.py`):

    WORKDIR/samples/NAME.png                   the frames of the first ones, a clip in a row
    WORKDIR/samples/NAME.gif                   the first ones, moving in a grid, by class
    WORKDIR/samples/NAME/000000.gif and .mp4   each clip; MP4 where PyAV is installed
    WORKDIR/samples/NAME/samples.npz           images uint8 [N, T, H, W, C] and the given frames too

NAME is STEP-EMA-SAMPLER_STEPS-guidance_SCALE-seed_SEED-nNUM-HASH, and the hash is that of all that
the images depend on: images that are made otherwise have another folder.

Every process writes the images that it makes, and keeps them as arrays in

    WORKDIR/samples/NAME/parts/        removed when the record is there

until process 0 joins these to samples.npz: no process holds all images. A job that is interrupted
and started again goes on where it was, with any number of processes. The label of image i follows
from the rule, the seed and i, and the image from its label, the seed and i: more images never
change the first ones. Where frames are given they are those of real clips, and the label is that of
clip i (`sampling/conditions.py`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent import futures

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.configuration import stored
from rin_jax.data import catalog
from rin_jax.evaluation import protocol
from rin_jax.evaluation.parts import Parts
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop.loading import Model, exported_names, load
from rin_jax.runtime import console, files, processes
from rin_jax.sampling import grids, measuring, moving_pictures, shares, trace
from rin_jax.sampling import labels as label_rules
from rin_jax.sampling.conditions import Conditions, make_conditions
from rin_jax.sampling.generate import describe_images, jit_sampler, make_device_sampler
from rin_jax.sampling.guide import guide_experiment
from rin_jax.sampling.rollout import Rollout
from rin_jax.sampling.weights import load_ema

PICTURED = 8  # images whose way is shown
WRITERS = 8  # files of images that are written at the same time


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
    stored.say_differences(experiment, workdir)
    seed = experiment.seed
    rollout = None if windows is None else Rollout(windows, rollout_latents)
    if rollout is not None:
        rollout.check(experiment)
    names = class_names(experiment.config, exported_names(export) if export else ())
    conditions = make_conditions(experiment, choose_labels(experiment, classes, num, names))
    experiment.sampler.check_grid()
    guide_experiment(experiment)  # its mistakes too, before anything is loaded
    if export is None:
        mesh = device_mesh(experiment)
        found = load_ema(experiment, mesh, workdir, ema, checkpoint)
        model = Model(experiment, found.params, mesh, None, found.step, found.name)
    else:
        model = load(export, experiment)
    folder = epath.Path(workdir) / "samples" / name_of(model, conditions, rollout)
    parts = Parts(folder / "parts")
    if jax.process_index() == 0:
        for name in ("samples.npz", "record.json"):  # they are there when all the rest is
            (folder / name).unlink(missing_ok=True)
    program = jit_sampler if rollout is None else rollout.program
    images = make_device_sampler(experiment, model.mesh, seed, program)(model.params, conditions)
    draw(folder, experiment, model.mesh, images, conditions, parts)
    if show:
        few = np.arange(min(PICTURED, len(conditions)))
        cond = conditions.of(few)
        trajectory = trace.trace(experiment, model.mesh, model.params, seed, few, cond)
    if jax.process_index() == 0:
        if show:
            trace.write(folder, trajectory)
        write(model, folder, parts, conditions, rollout, names)
        parts.remove()
    processes.agree("files of samples")
    made = f"{len(conditions)} samples of step {model.step} ({model.ema} weights)"
    console.say(f"{made} in {folder}\nthe first of them: {folder}.png")
    return folder


def choose_labels(
    experiment: Experiment, classes: Sequence[str], num: int | None, names: Sequence[str]
) -> np.ndarray:
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
    return label_rules.choose(classes, num, known, experiment.seed, names)


def name_of(model: Model, conditions: Conditions, rollout: Rollout | None) -> str:
    """The name of the folder of samples, which says and tells apart what they are made with."""
    description = describe_images(model.experiment, model.step, model.ema, model.params) | {
        "all_labels": hashlib.sha256(conditions.labels.tobytes()).hexdigest(),
        "frames": conditions.fingerprint, "rollout": rollout and dataclasses.asdict(rollout),
    }  # fmt: skip
    sampler, config = model.config.sampler, model.config
    return (
        f"{model.step:08d}-{model.ema}-{sampler.name}_{sampler.num_steps}"
        f"-guidance_{sampler.guidance_scale:g}-seed_{config.seed}-n{len(conditions)}"
        f"-{protocol.digest(description)}"
    )


def draw(
    folder: epath.Path, experiment: Experiment, mesh: Mesh, images: measuring.Images,
    conditions: Conditions, parts: Parts,
) -> None:  # fmt: skip
    """Makes the images that `parts` lacks, a file of each, and adds them; all processes.

    The files of a batch are written while the next one is made. An image whose part is there has
    its files too.
    """
    size, clips = experiment.generation.images_per_device, experiment.data.clip is not None
    write_one = functools.partial(write_clip, conditions=conditions) if clips else write_image
    if clips and not files.can_write_mp4():
        console.say('GIF files alone; for MP4 too: pip install "rin-jax[video]"')

    def make(device: jax.Device, indices: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"images": np.asarray(images(device, indices)[0])[indices % size]}
        if conditions.cond_frames:
            arrays["frames"] = conditions.truth(indices)[:, : conditions.cond_frames]
        return arrays

    def keep(made: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]]) -> None:
        for indices, arrays in made:
            list(writers.map(functools.partial(write_one, folder), indices, arrays["images"]))
        parts.write(made)

    with futures.ThreadPoolExecutor(WRITERS) as writers, futures.ThreadPoolExecutor(1) as keeper:
        before = None
        for made in shares.rounds(make, size, len(conditions), parts, mesh):
            if before:
                before.result()
            before = keeper.submit(keep, made)
        if before:
            before.result()
    processes.agree("samples")


def write_image(folder: epath.Path, index: int, image: np.ndarray) -> None:
    """The file of an image."""
    files.write_png(folder / f"{index:06d}.png", image)


def write_clip(folder: epath.Path, index: int, clip: np.ndarray, conditions: Conditions) -> None:
    """The files of a clip."""
    strips = moving_pictures.strips(clip[None], conditions, np.array([index]))
    (pictures,) = moving_pictures.beside(strips)
    files.write_gif(folder / f"{index:06d}.gif", pictures)
    if files.can_write_mp4():
        files.write_mp4(folder / f"{index:06d}.mp4", pictures)


def write(
    model: Model, folder: epath.Path, parts: Parts, conditions: Conditions,
    rollout: Rollout | None, names: Sequence[str],
) -> None:  # fmt: skip
    """The pictures of the first images, the arrays and, when all is there, the record."""
    config, labels, count = model.config, conditions.labels, len(conditions)
    clip = config.data.clip
    first = np.argsort(labels[: label_rules.GRID], kind="stable")
    captions = [names[label] for label in labels[first]] if names else []
    images = np.concatenate([piece["images"] for piece in parts.pieces(len(first))])
    if clip is None:
        draw_grid(folder, images[first], captions)
    else:
        draw_clips(folder, images, conditions, first, captions)
    streamed = ["images", "frames"] if conditions.cond_frames else ["images"]
    small = {"labels": labels, "indices": np.arange(count), "seed": config.seed}
    parts.join(folder / "samples.npz", count, streamed, small)
    record = {
        "step": model.step, "ema": model.ema, "seed": config.seed, "num": count,
        "evaluations": model.experiment.sampler.num_evaluations,
        "sampler": config.sampler.to_dict(), "dtype": config.model.dtype, "class_names": names,
    }  # fmt: skip
    if clip is not None:
        record |= {"frames": clip.frames, "cond_frames": clip.cond_frames}
        record["rollout"] = rollout and dataclasses.asdict(rollout)
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


def draw_grid(folder: epath.Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """The first images, with their captions if there are any."""
    grid = grids.grid(images, grids.COLUMNS)
    if captions:
        grid = grids.captioned_grid(images, captions, grids.COLUMNS)
    files.write_png(folder.parent / f"{folder.name}.png", grid)


def draw_clips(
    folder: epath.Path, clips: np.ndarray, conditions: Conditions, first: np.ndarray,
    captions: Sequence[str],
) -> None:  # fmt: skip
    """The frames of the first clips, and some of `first` moving with their captions."""
    few = np.arange(min(moving_pictures.CLIPS, len(clips)))
    strips = moving_pictures.strips(clips[few], conditions, few)
    files.write_png(folder.parent / f"{folder.name}.png", moving_pictures.still(strips))
    few = first[: moving_pictures.MOVING]
    strips = moving_pictures.strips(clips[few], conditions, few)
    pictures = moving_pictures.moving(strips, captions)
    files.write_gif(folder.parent / f"{folder.name}.gif", pictures)


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
