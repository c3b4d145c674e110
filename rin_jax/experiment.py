"""An experiment: one configuration, resolved and checked, as the objects that it describes.

Each section is a frozen dataclass, documented and checked in the room that reads it; here they are
put together, and what two sections must agree on is checked. Nothing here computes on a device or
opens a workdir, so that every mistake in a configuration is found before anything starts.
"""

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import optax
from flax import linen as nn
from jax.sharding import Mesh

from rin_jax import ConfigError, at_least_one
from rin_jax.checkpointing.checkpoints import Policy
from rin_jax.data.dataset import Data
from rin_jax.diffusion.guidance import Guidance
from rin_jax.diffusion.objective import Objective
from rin_jax.diffusion.process import Process
from rin_jax.diffusion.samplers import Sampler
from rin_jax.diffusion.schedules import Schedule, make_schedule
from rin_jax.evaluation.protocol import Evaluation
from rin_jax.network.rin import RIN
from rin_jax.runtime import sharding
from rin_jax.runtime.sharding import MeshSizes
from rin_jax.training.ema import Ema, Weight
from rin_jax.training.optimizer import Optimizer
from rin_jax.training.settings import Train

# Attributes of the network that may change while its weights are used.
NOT_ARCHITECTURE = ("remat", "dtype", "dropout", "drop_path")
# Fields that configurations of older checkpoints and exports lack, and what their code had instead.
SINCE_FORMAT_2 = {
    "latent_positions": "learned", "interface_positions": "learned", "latent_self_cond": True,
    "interface_self_cond": False, "norm_context": False, "time_on_latents": True,
    "label_on_latents": True, "cond_route": "read", "cond_dim": None, "time_scale": 1000.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the section `sampler` says beside the sampling procedure and its guidance.

    Attributes:
      guide: workdir of a weaker network that guides (autoguidance); None: no such network.
      guide_checkpoint: step of its checkpoint; None: the newest.
      images_per_device: drawn at once; an image is the same only under the same number.
    """

    guide: str | None
    guide_checkpoint: int | None
    images_per_device: int

    def __post_init__(self):
        at_least_one("sampler", self, "images_per_device")
        if self.guide is None and self.guide_checkpoint is not None:
            raise ConfigError(
                f"sampler.guide_checkpoint is {self.guide_checkpoint}, but sampler.guide is not "
                "set; set it to the guide's workdir."
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration describes; see `make_experiment`.

    Attributes:
      config: the resolved configuration; no value is missing but those that may be.
      seed: of all randomness of a run.
      data, train, ema, checkpoint, evaluation, mesh: the sections of these names.
      rin: the network, section `model`.
      objective: the training loss, section `diffusion`.
      sampler, guidance, generation: the three parts of section `sampler`.
      optimizer: the optax transformation of section `optimizer`.
      learning_rate: its schedule.
      averages: the running averages of the parameters, by name.
    """

    config: ml_collections.FrozenConfigDict
    seed: int
    data: Data
    rin: RIN
    objective: Objective
    sampler: Sampler
    guidance: Guidance
    generation: Generation
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    train: Train
    ema: Ema
    averages: dict[str, Weight]
    checkpoint: Policy
    evaluation: Evaluation
    mesh: MeshSizes


SECTIONS = (
    "data", "model", "diffusion", "sampler", "optimizer", "train", "ema", "checkpoint",
    "evaluation", "mesh",
)  # fmt: skip


def make_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Resolves and checks a configuration.

    Raises:
      ConfigError: with the field, the values that disagree and the remedy.
    """
    sections = config.to_dict()
    check_fields("", sections, ("seed", *SECTIONS))
    data = section(Data, "data", sections).resolved()
    sections["data"] = dataclasses.asdict(data)
    rin = section(
        RIN,
        "model",
        sections,
        example_shape=(data.image_size, data.image_size, data.channels),
        num_classes=data.num_classes,
    )
    objective = make_objective(sections["diffusion"])
    sampler, guidance, generation = make_sampler(sections["sampler"], objective.process)
    check_guidance(guidance, generation, objective, data)
    train = section(Train, "train", sections)
    optimizer, learning_rate = section(Optimizer, "optimizer", sections).make(train.num_steps)
    ema = section(Ema, "ema", sections)
    return Experiment(
        config=ml_collections.FrozenConfigDict(sections),
        seed=sections["seed"],
        data=data,
        rin=rin,
        objective=objective,
        sampler=sampler,
        guidance=guidance,
        generation=generation,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train=train,
        ema=ema,
        averages=ema.weights(),
        checkpoint=section(Policy, "checkpoint", sections),
        evaluation=section(Evaluation, "evaluation", sections),
        mesh=section(MeshSizes, "mesh", sections),
    )


def fields_of(kind: type, *derived: str) -> tuple[str, ...]:
    """The fields of a dataclass that a section gives: all but Flax's own and `derived`."""
    left_out = {*derived, *(("parent", "name") if issubclass(kind, nn.Module) else ())}
    names = (field.name for field in dataclasses.fields(kind) if field.init)
    return tuple(name for name in names if name not in left_out)


def section(kind: type, name: str, sections: Mapping[str, Any], **derived: Any) -> Any:
    """The object of a section of a configuration."""
    check_fields(name, sections[name], fields_of(kind, *derived))
    return kind(**sections[name], **derived)


def check_fields(name: str, given: Iterable[str], wanted: Sequence[str]) -> None:
    """Raises ConfigError at a field that is unknown, with the nearest name, or missing."""
    prefix = f"{name}." if name else ""
    for field in given:
        if field not in wanted:
            near = difflib.get_close_matches(field, wanted, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else "."
            raise ConfigError(f"unknown field {prefix}{field}{hint}")
    for field in wanted:
        if field not in given:
            raise ConfigError(f"section {name or 'config'}: missing field {field!r}.")


def make_objective(given: Mapping[str, Any]) -> Objective:
    """The training loss of the section `diffusion`."""
    of_process, own = fields_of(Process), fields_of(Objective, "process")
    check_fields("diffusion", given, (*of_process, *own))
    process = Process(**{field: given[field] for field in of_process})
    fields = {field: given[field] for field in own}
    return Objective(process=process, **fields | {"schedule": schedule_of("diffusion", given)})


def make_sampler(
    given: Mapping[str, Any], process: Process
) -> tuple[Sampler, Guidance, Generation]:
    """The sampling procedure, its guidance and the rest of the section `sampler`."""
    of_guidance = {f"guidance_{field}": field for field in fields_of(Guidance)}
    own, rest = fields_of(Sampler, "process"), fields_of(Generation)
    check_fields("sampler", given, (*own, *of_guidance, *rest))
    fields = {field: given[field] for field in own}
    sampler = Sampler(process=process, **fields | {"schedule": schedule_of("sampler", given)})
    guidance = Guidance(**{field: given[name] for name, field in of_guidance.items()})
    return sampler, guidance, Generation(**{field: given[field] for field in rest})


def schedule_of(name: str, given: Mapping[str, Any]) -> Schedule:
    """The noise schedule of a section."""
    try:
        return make_schedule(**given["schedule"])
    except ConfigError as error:
        raise ConfigError(f"{name}.schedule: {error}") from error


def check_guidance(
    guidance: Guidance, generation: Generation, objective: Objective, data: Data
) -> None:
    """Raises ConfigError if nothing is there that could guide, or what is there does not."""
    scale, guide = guidance.scale, generation.guide
    if guide is not None and not scale:
        raise ConfigError(
            f"sampler.guide is {guide!r}, but sampler.guidance_scale is 0; set it above 0."
        )
    if scale and guide is None and not (data.num_classes and objective.cond_dropout):
        why = (
            "diffusion.cond_dropout is 0: the network never learns to go without a label"
            if data.num_classes
            else "the network has no classes"
        )
        raise ConfigError(
            f"sampler.guidance_scale is {scale}, but {why}; set it to 0, or sampler.guide to the "
            "workdir of a weaker network."
        )


def device_mesh(experiment: Experiment, devices: list | None = None) -> Mesh:
    """The mesh of an experiment over all devices, or over those given.

    Raises:
      ConfigError: the axes do not fit the devices, or `tensor` the heads or hidden widths.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh), devices=devices)
    rin, tensor = experiment.rin, mesh.shape["tensor"]
    for field, split in (
        ("num_heads", rin.num_heads),
        ("routing_heads", rin.routing_heads),
        ("latent_mlp_ratio x latent_dim", rin.latent_mlp_ratio * rin.latent_dim),
        ("interface_mlp_ratio x interface_dim", rin.interface_mlp_ratio * rin.interface_dim),
    ):
        if split % tensor:
            raise ConfigError(
                f"mesh.tensor {tensor} does not divide model.{field} {split}; choose a divisor, "
                "and give the other devices to mesh.data or mesh.fsdp."
            )
    return mesh


def check_devices(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ConfigError if a micro-batch does not split evenly over data x fsdp."""
    train, shards = experiment.train, sharding.batch_shards(mesh)
    micro_batch = train.batch_size // train.accumulation_steps
    if micro_batch % shards:
        raise ConfigError(
            f"train.batch_size {train.batch_size} / train.accumulation_steps "
            f"{train.accumulation_steps} = {micro_batch} images is not divisible by {shards}, the "
            "product of mesh.data and mesh.fsdp; choose a batch size that is a multiple of both."
        )


def saved_config(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration that a checkpoint or an export keeps, with the fields it may lack."""
    config = copy.deepcopy(dict(saved))
    config["model"] = SINCE_FORMAT_2 | config["model"]
    return ml_collections.ConfigDict(config)


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on, by field: the network's attributes and the process's."""
    of_model = fields_of(RIN, "example_shape", "num_classes", *NOT_ARCHITECTURE)
    plain = json.loads(json.dumps(config))  # tuples are lists in a checkpoint
    of_data = ("image_size", "channels", "num_classes")
    parts = {"data": of_data, "model": of_model, "diffusion": fields_of(Process)}
    return {f"{name}.{field}": plain[name][field] for name in parts for field in parts[name]}


def check_architecture(experiment: Experiment, saved: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError naming each field in which saved weights are of another architecture.

    `saved`: the configuration that was kept with the weights, `where` is what has them.
    """
    now = architecture(experiment.config.to_dict())
    before = architecture(saved_config(saved).to_dict())
    differences = [
        f"{field}: checkpoint {before[field]!r}, now {now[field]!r}"
        for field in now
        if before[field] != now[field]
    ]
    if differences:
        listed = "\n  ".join([f"{where} belongs to another architecture:", *differences])
        raise ConfigError(f"{listed}\nUse another --workdir, or the checkpoint's values.")
