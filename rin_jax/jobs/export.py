"""The job that exports a checkpoint of a run, for rin_jax elsewhere and for other runtimes.

DIR gets model.safetensors and config.json (`rin_jax.load` needs these two), README.md (the model
card), samples.png, rin_torch.py, denoiser.stablehlo and sampler.stablehlo; with --onnx also
denoiser.onnx, with --page that and a page that samples in a browser. Where the network is given
frames, frames.npz has those of the samples in samples.png if it stays small; evaluation.json has
the records of these weights' evaluations if there are some. What is exported is the run's own
configuration, as its checkpoint has it; only the sampler is that of the command. One device is
enough, whatever the run had.

With --export the weights, the records and the given frames are those of another export.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.checkpointing import restore
from rin_jax.configuration.stored import check_architecture, saved_config, say_differences
from rin_jax.data.dataset import Data
from rin_jax.experiment import Experiment, device_mesh, make_experiment
from rin_jax.interop import card, export_format, formulas, hub, onnx, page, stablehlo
from rin_jax.interop.loading import ANY_MACHINE, GIVEN_FRAMES, Model, load
from rin_jax.runtime import console, files
from rin_jax.sampling import grids, moving_pictures
from rin_jax.sampling.conditions import Conditions, make_conditions
from rin_jax.sampling.generate import make_generate
from rin_jax.sampling.weights import load_ema

GRID_FILE, RECORDS = "samples.png", "evaluation.json"
MOST_BYTES = 100_000  # of frames.npz


def export(
    config: ml_collections.ConfigDict, workdir: str | None, to: str, ema: str | None,
    with_grid: bool, with_onnx: bool, push: str | None, checkpoint: int | None = None,
    source: str | None = None, with_page: bool = False,
) -> epath.Path:  # fmt: skip
    """Writes the export; see the flags of the same names, `source` is --export.

    ConfigError, before anything is written: no checkpoint, an average that the run does not have, a
    schedule without a formula for other runtimes, a folder that is not an export's, or a package
    that is missing.
    """
    path, with_onnx = epath.Path(to), with_onnx or with_page
    check_target(path, with_onnx, push)
    if source is None:
        model = checkpoint_model(config, workdir, ema, checkpoint)
        evaluated = sorted((epath.Path(workdir) / "evaluation").glob("*.json"))
        records = [json.loads(record.read_text()) for record in evaluated]
        records = [record for record in records if record.get("step") == model.step]
    else:
        model, records = exported_model(config, source, path)
    preview = preview_conditions(make_experiment(config)) if with_grid else None
    if model.clips is None and preview is not None and preview.clips is not None:
        model = dataclasses.replace(model, clips=given_clips(model, preview))
    if with_page:
        page.check(model.experiment.rin.cond_frames, model.clips is not None)
    write(path, model, records, preview=preview, with_onnx=with_onnx, with_page=with_page)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
    console.say(f"step {model.step} ({model.ema}, {size:,} parameters) exported: {path}")
    if push:
        console.say(f"pushed: {hub.push(str(path), push)}")
    return path


def write(
    path: epath.Path, model: Model, records: Sequence[Mapping], *, preview: Conditions | None,
    with_onnx: bool, with_page: bool = False,
) -> None:  # fmt: skip
    """Writes a model and the records of its evaluations; config.json last, when all is there.

    `preview`: what the samples of the grid are conditioned on; None: no grid is drawn. `with_page`
    needs `with_onnx`. ConfigError: the sampler's schedule has no formula for other runtimes, or
    those of `page.write`.
    """
    experiment = model.experiment
    formulas.check(experiment.config.sampler.schedule.name)
    path.mkdir(parents=True, exist_ok=True)
    for name in (export_format.CONFIG, GRID_FILE, GIVEN_FRAMES, RECORDS, *onnx.FILES, *page.FILES):
        (path / name).unlink(missing_ok=True)  # of an export that was here before
    metadata = {"format": "pt", "step": str(model.step), "ema": model.ema}
    description = export_format.Description(
        network=export_format.network_fields(experiment.rin), config=experiment.config.to_dict(),
        class_names=model.class_names, step=model.step, ema=model.ema,
        sha256=export_format.write_weights(path, model.params, metadata),
    )  # fmt: skip
    if preview is not None:
        rows = np.arange(len(preview))
        generate = make_generate(experiment, model.mesh, experiment.seed)
        samples = generate(model.params, rows, preview.of(rows))
        files.write_png(path / GRID_FILE, picture(samples, preview))
    if model.clips is not None:
        content = io.BytesIO()
        np.savez_compressed(content, **model.clips)
        (path / GIVEN_FRAMES).write_bytes(content.getvalue())
    if records:
        (path / RECORDS).write_text(json.dumps(list(records), indent=2) + "\n")
    stablehlo.write(path, experiment)
    (path / formulas.TORCH_FILE.name).write_text(formulas.torch_file())
    fields = dataclasses.asdict(description)
    shown = {"picture": preview is not None, "onnx": with_onnx, "clips": model.clips is not None}
    text = card.card(path.name, fields, records, **shown)
    (path / "README.md").write_text(text)
    if with_onnx:
        onnx.write(str(path), fields)
    if with_page:
        page.write(str(path), path.name, fields, model.clips)
    export_format.write(path, description)


def preview_conditions(experiment: Experiment) -> Conditions | None:
    """What the samples of the grid are conditioned on; None where its clips are not here."""
    try:
        return make_conditions(experiment, moving_pictures.grid_labels(experiment.rin))
    except ConfigError as error:
        console.say(f"no {GRID_FILE}, which needs real clips: {error}")
        return None


def picture(samples: np.ndarray, preview: Conditions) -> np.ndarray:
    """A grid of images, or the frames of clips, uint8 [H, W, C]."""
    if samples.ndim == 4:
        return grids.grid(samples, grids.COLUMNS)
    return moving_pictures.still(moving_pictures.strips(samples, preview, np.arange(len(samples))))


def given_clips(model: Model, preview: Conditions) -> dict[str, np.ndarray] | None:
    """`Model.clips`: what the samples of the grid are given; None if it is large."""
    frames = preview.truth(np.arange(len(preview)))[:, : model.experiment.rin.cond_frames]
    return {"frames": frames, "labels": preview.labels} if frames.nbytes <= MOST_BYTES else None


def check_target(path: epath.Path, with_onnx: bool, push: str | None) -> None:
    """Raises ConfigError at what would stop the export later."""
    if path.exists() and any(path.iterdir()) and not (path / export_format.WEIGHTS).exists():
        remedy = "name a new or empty folder."
        raise ConfigError(f"--to={path} has files that are not an export; {remedy}")
    if (with_onnx or push) and files.is_bucket(path):
        raise ConfigError(f"--to={path}: --onnx and --push need a folder on this machine.")
    if with_onnx:
        onnx.check()
    if push:
        hub.check_push(push)


def checkpoint_model(
    config: ml_collections.ConfigDict, workdir: str, ema: str | None, checkpoint: int | None = None
) -> Model:
    """A checkpoint of a run on one device, the newest if `checkpoint` is None.

    Its configuration is the run's own, with the command's sampler and nothing of a machine:
    devices and data folders are no part of a model.
    """
    experiment = make_experiment(config)
    say_differences(experiment, workdir)
    formulas.check(experiment.config.sampler.schedule.name)
    names = class_names(experiment.data)
    saved = restore.find_checkpoints(workdir, checkpoint)[0]
    check_architecture(experiment, saved.config, f"checkpoint {saved.step} in {workdir}")
    own = saved_config(saved.config)
    own.sampler = experiment.config.sampler.to_dict()
    own.mesh, own.runtime = ANY_MACHINE["mesh"], ANY_MACHINE["runtime"]
    own.data.data_dir = own.data.cache_dir = None
    experiment = make_experiment(own)
    check_exportable(experiment)
    mesh = device_mesh(experiment, jax.local_devices()[:1])
    found_ema = load_ema(experiment, mesh, workdir, ema, checkpoint)
    return Model(experiment, found_ema.params, mesh, names, found_ema.step, found_ema.name)


def exported_model(
    config: ml_collections.ConfigDict, source: str, to: epath.Path
) -> tuple[Model, list[dict]]:
    """The model of another export with the command's sampler, and its records.

    ConfigError: there is no such export, or it is the folder that is to be written.
    """
    folder = hub.find(source)
    if folder.resolve() == to.resolve():
        raise ConfigError(f"--to={to} is the folder of --export; name another one.")
    model = load(str(folder)).with_sampler(**config.sampler.to_dict())
    check_exportable(model.experiment)
    records = folder / RECORDS
    return model, json.loads(records.read_text()) if records.exists() else []


def check_exportable(experiment: Experiment) -> None:
    """Raises ConfigError at what the programs of an export do not have."""
    if (guide := experiment.generation.guide) is not None:
        text = f"sampler.guide is {guide}, but an export holds one network"
        raise ConfigError(f"{text}; leave the guide out.")
    if experiment.rin.sequence is not None:
        text = "model.sequence is set, but the programs of an export take no sequence"
        raise ConfigError(f"{text}; use the run's checkpoints.")


def class_names(data: Data) -> tuple[str, ...] | None:
    """Names of the classes; None where the data set is not known on this machine."""
    if not data.num_classes:
        return ()
    try:
        info = data.describe()
    except ConfigError as error:
        console.say(f"class names are not known here: {error}")
        return None
    return info.class_names or None
