"""An experiment: one configuration, resolved and checked, as the objects that it describes.

Nothing here computes on a device or opens a workdir, so that every mistake in a configuration is
found before anything starts.
"""

import contextlib
import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import optax
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.data.dataset import Data
from rin_jax.diffusion.guidance import Guidance
from rin_jax.diffusion.objective import Objective
from rin_jax.diffusion.process import Process
from rin_jax.diffusion.samplers import Sampler
from rin_jax.diffusion.schedules import make_schedule
from rin_jax.evaluation.protocol import Evaluation
from rin_jax.network.rin import RIN
from rin_jax.runtime import sharding
from rin_jax.training import ema
from rin_jax.training.optimizer import make_optimizer

# Fields that a checkpoint's weights depend on: a run can only go on under the same ones.
ARCHITECTURE = (
    "data.image_size", "data.channels", "data.num_classes",
    "model.patch_size", "model.num_blocks", "model.depth", "model.num_latents",
    "model.latent_dim", "model.interface_dim", "model.num_heads", "model.routing_heads",
    "model.latent_mlp_ratio", "model.interface_mlp_ratio",
    "diffusion.prediction_type", "optimizer.name",
)  # fmt: skip


# Fields of the sections that are read one by one; the others go to what they configure.
FIELDS = {
    "data": (
        "name", "split", "data_dir", "image_size", "channels", "num_classes", "flip",
        "num_threads", "prefetch",
    ),
    "train": (
        "batch_size", "num_steps", "accumulation_steps", "max_skipped_steps", "init_from",
        "log_every_steps", "sample_every_steps",
    ),
    "ema": ("decays", "power_lengths", "snapshot_every_steps"),
    "checkpoint": ("every_steps", "keep", "keep_every_steps", "keep_best"),
    "evaluation": ("num_samples", "batch_size"),
    "mesh": ("data", "fsdp", "tensor"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration describes; see `make_experiment`.

    Attributes:
      config: the resolved configuration; no value is missing but those that may be.
      rin: the network.
      objective: the training loss.
      sampler: the sampling procedure.
      guidance: what guides it.
      optimizer: the optax transformation.
      learning_rate: its schedule.
      averages: the running averages of the parameters, by name.
    """

    config: ml_collections.FrozenConfigDict
    rin: RIN
    objective: Objective
    sampler: Sampler
    guidance: Guidance
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    averages: dict[str, ema.Weight]


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Resolves and checks a configuration.

    Raises:
      ConfigError: with the field, the values that disagree and the remedy.
    """
    with config_errors():
        return _make_experiment(config)


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
    """Turns a ValueError or ImportError of what a configuration describes into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error


def _make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    for section in FIELDS:
        check_section(config, section)
    config = _resolve_data(config)
    Evaluation(**config.evaluation)
    data, train = config.data, config.train
    rin = _call(
        RIN,
        "model",
        config.model,
        image_shape=(data.image_size, data.image_size, data.channels),
        num_classes=data.num_classes,
    )
    diffusion = config.diffusion.to_dict()
    process = {
        field: diffusion.pop(field)
        for field in ("prediction_type", "input_scale", "normalize_input")
        if field in diffusion
    }
    process = _call(Process, "diffusion", process)
    objective = _call(
        Objective,
        "diffusion",
        _with_schedule(diffusion, "diffusion"),
        process=process,
    )
    sampler, guidance = _make_sampler(config, process)
    optimizer, learning_rate = _call(
        make_optimizer, "optimizer", config.optimizer, num_steps=train.num_steps
    )
    _check_train(config)
    return Experiment(
        config=ml_collections.FrozenConfigDict(config),
        rin=rin,
        objective=objective,
        sampler=sampler,
        guidance=guidance,
        optimizer=optimizer,
        learning_rate=learning_rate,
        averages=ema.make_averages(config.ema.decays, config.ema.power_lengths),
    )


def _make_sampler(
    config: ml_collections.ConfigDict, process: Process
) -> tuple[Sampler, Guidance]:
    """The section `sampler`: the sampler itself, its guidance, and what sample.py reads."""
    section = config.sampler.to_dict()
    own = (
        "guidance_scale", "guidance_interval", "guidance_latents", "guide", "guide_checkpoint",
        "images_per_device",
    )  # fmt: skip
    _require("sampler", section, own)
    scale, interval, latents, guide, checkpoint, images = (section.pop(field) for field in own)
    sampler = _call(Sampler, "sampler", _with_schedule(section, "sampler"), process=process)
    guidance = Guidance(scale, tuple(interval), latents)
    if images < 1:
        raise ConfigError(f"sampler.images_per_device is {images}; it must be at least 1.")
    if guide is None and checkpoint is not None:
        raise ConfigError(
            f"sampler.guide_checkpoint is {checkpoint}, but sampler.guide is not set; set it to "
            "the guide's workdir."
        )
    if guide is not None and not scale:
        raise ConfigError(
            f"sampler.guide is {guide!r}, but sampler.guidance_scale is 0; set it above 0."
        )
    if scale and guide is None and not config.data.num_classes:
        raise ConfigError(
            f"sampler.guidance_scale is {scale}, but the network has no classes; set it to 0, or "
            "sampler.guide to the workdir of a weaker network."
        )
    if scale and guide is None and not config.diffusion.cond_dropout:
        raise ConfigError(
            f"sampler.guidance_scale is {scale}, but diffusion.cond_dropout is 0: the network "
            "never learns to go without a label; set one of them, or sampler.guide to the workdir "
            "of a weaker network."
        )
    return sampler, guidance


def _resolve_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills in image size, channels and classes from the data set where they are not set."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.update(dataclasses.asdict(Data(**config.data).resolved()))
    return config


def _with_schedule(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    _require(name, section, ("schedule",))
    try:
        schedule = make_schedule(**section["schedule"])
    except ValueError as error:
        raise ConfigError(f"{name}.schedule: {error}") from error
    return {**section, "schedule": schedule}


def _call(function: Callable, section: str, fields: Mapping[str, Any], **derived: Any) -> Any:
    """function(**fields, **derived) with an error that names unknown or missing fields."""
    allowed = [p for p in inspect.signature(function).parameters if p not in ("parent", "name")]
    allowed += ["name"] if function is not RIN else []
    fields = dict(fields)
    _check_fields(section, fields, allowed)
    try:
        inspect.signature(function).bind(**fields, **derived)
    except TypeError as error:
        raise ConfigError(f"section {section}: {error}.") from error
    return function(**fields, **derived)


def check_section(config: ml_collections.ConfigDict, section: str) -> None:
    """Raises ConfigError at a field of one of FIELDS' sections that is unknown or missing."""
    _check_fields(section, config[section], FIELDS[section])
    _require(section, config[section], FIELDS[section])


def _check_fields(section: str, fields: Iterable[str], allowed: Sequence[str]) -> None:
    """Raises ConfigError at a field that the section does not have, with the nearest name."""
    for field in fields:
        if field not in allowed:
            near = difflib.get_close_matches(field, allowed, n=1)
            hint = f"; did you mean {section}.{near[0]}?" if near else "."
            raise ConfigError(f"unknown field {section}.{field}{hint}")


def _require(section: str, fields: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Raises ConfigError at a field that is missing."""
    for field in wanted:
        if field not in fields:
            raise ConfigError(f"section {section}: missing field {field!r}.")


def _check_train(config: ml_collections.ConfigDict) -> None:
    train = config.train
    for section, field in (
        ("train", "batch_size"), ("train", "num_steps"), ("train", "accumulation_steps"),
        ("train", "log_every_steps"), ("train", "sample_every_steps"),
        ("train", "max_skipped_steps"), ("checkpoint", "every_steps"), ("checkpoint", "keep"),
    ):  # fmt: skip
        value = config[section][field]
        if not value >= 1:
            raise ConfigError(f"{section}.{field} is {value}; it must be at least 1.")
    if train.batch_size % train.accumulation_steps:
        raise ConfigError(
            f"train.batch_size {train.batch_size} is not divisible by train.accumulation_steps "
            f"{train.accumulation_steps}; choose a divisor."
        )
    if config.ema.snapshot_every_steps and not config.ema.power_lengths:
        raise ConfigError(
            f"ema.snapshot_every_steps is {config.ema.snapshot_every_steps}, but there is no power "
            "average to store; set ema.power_lengths, for instance (0.05, 0.1), or leave it out."
        )


def device_mesh(config: ml_collections.FrozenConfigDict, devices: list | None = None) -> Mesh:
    """The mesh of a configuration over all devices, or over those given.

    Raises:
      ConfigError: the axes do not fit the devices, or `tensor` the heads or hidden widths.
    """
    with config_errors():
        mesh = sharding.make_mesh(**config.mesh, devices=devices)
    model, tensor = config.model, mesh.shape["tensor"]
    for field, split in (
        ("num_heads", model.num_heads),
        ("routing_heads", model.routing_heads),
        ("latent_mlp_ratio x latent_dim", model.latent_mlp_ratio * model.latent_dim),
        ("interface_mlp_ratio x interface_dim", model.interface_mlp_ratio * model.interface_dim),
    ):
        if split % tensor:
            raise ConfigError(
                f"mesh.tensor {tensor} does not divide model.{field} {split}; choose a divisor, "
                "and give the other devices to mesh.data or mesh.fsdp."
            )
    return mesh


def check_devices(config: ml_collections.FrozenConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if a micro-batch does not split evenly over data x fsdp."""
    train, shards = config.train, sharding.batch_shards(mesh)
    micro_batch = train.batch_size // train.accumulation_steps
    if micro_batch % shards:
        raise ConfigError(
            f"train.batch_size {train.batch_size} / train.accumulation_steps "
            f"{train.accumulation_steps} = {micro_batch} images is not divisible by {shards}, the "
            "product of mesh.data and mesh.fsdp; choose a batch size that is a multiple of both."
        )


def check_architecture(
    config: ml_collections.FrozenConfigDict, saved: Mapping[str, Any], where: str
) -> None:
    """Raises ConfigError naming each field in which a checkpoint's architecture differs."""

    def values(tree):
        paths = (path.split(".") for path in ARCHITECTURE)
        return [tree.get(section, {}).get(field) for section, field in paths]

    current = json.loads(json.dumps(config.to_dict()))  # tuples are lists in a checkpoint

    differences = [
        f"{path}: checkpoint {before!r}, now {now!r}"
        for path, before, now in zip(
            ARCHITECTURE, values(saved), values(current), strict=True
        )
        if before != now
    ]
    if differences:
        raise ConfigError(
            f"{where} belongs to another architecture:\n  "
            + "\n  ".join(differences)
            + "\nUse another --workdir, or the checkpoint's values."
        )
