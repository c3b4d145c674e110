"""An experiment: one configuration, resolved and checked, as the objects that it describes.

Each section is a frozen dataclass, documented and checked in the room that reads it; here they are
put together, and what two sections must agree on is checked. Nothing here computes on a device or
opens a workdir, so that every mistake in a configuration is found before anything starts.
"""

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import optax
from jax.sharding import Mesh

from rin_jax import ConfigError, at_least_one, check_types, nearest
from rin_jax.checkpointing.checkpoints import Policy
from rin_jax.data.dataset import Data
from rin_jax.diffusion.guidance import Guidance
from rin_jax.diffusion.objective import Objective
from rin_jax.diffusion.process import Process
from rin_jax.diffusion.samplers import Sampler
from rin_jax.diffusion.schedules import SCHEDULES, make_schedule
from rin_jax.evaluation import frames
from rin_jax.evaluation.protocol import Evaluation
from rin_jax.network import validation
from rin_jax.network.rin import RIN
from rin_jax.runtime import sharding
from rin_jax.runtime.machine import Runtime
from rin_jax.training.ema import Ema, Weight
from rin_jax.training.optimizer import DECAY_DEFAULTS, Optimizer
from rin_jax.training.settings import Train


@dataclasses.dataclass(frozen=True)
class Generation:
    """What the section `sampler` says beside the sampling procedure and its guidance."""

    guide: str | None  # workdir of a weaker network that guides (autoguidance); None: no such one
    guide_checkpoint: int | None  # step of the guide's checkpoint; None: the newest
    images_per_device: int  # sampled at once; an image is the same only under the same number

    def __post_init__(self):
        at_least_one("sampler", self, "images_per_device")
        if self.guide is None and self.guide_checkpoint is not None:
            raise ConfigError(
                f"sampler.guide_checkpoint is {self.guide_checkpoint}, but sampler.guide is not "
                "set; set it to the guide's workdir."
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration describes, section by section; see `make_experiment`."""

    config: ml_collections.FrozenConfigDict  # resolved; no value is missing but those that may be
    seed: int  # of all randomness of a run; 0..4294967295
    data: Data
    rin: RIN  # the network, section `model`
    objective: Objective  # the training loss, section `diffusion`
    sampler: Sampler  # of section `sampler`, as are the next two
    guidance: Guidance
    generation: Generation
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule  # of the optimizer
    train: Train
    ema: Ema
    averages: dict[str, Weight]  # the running averages of the parameters, by name
    checkpoint: Policy
    evaluation: Evaluation
    mesh: sharding.MeshSizes
    runtime: Runtime


# The dataclasses that have the fields of each section, with what a section puts before their names.
SECTIONS: dict[str, tuple[tuple[type, str], ...]] = {
    "data": ((Data, ""),),
    "model": ((RIN, ""),),
    "diffusion": ((Process, ""), (Objective, "")),
    "sampler": ((Sampler, ""), (Guidance, "guidance_"), (Generation, "")),
    "optimizer": ((Optimizer, ""),),
    "train": ((Train, ""),),
    "ema": ((Ema, ""),),
    "checkpoint": ((Policy, ""),),
    "evaluation": ((Evaluation, ""),),
    "mesh": ((sharding.MeshSizes, ""),),
    "runtime": ((Runtime, ""),),
}
# Their fields that a section does not give: they follow from others, or are Flax's own.
DERIVED = {
    RIN: ("example_shape", "cond_frames", "num_classes", "parent", "name"),
    Objective: ("process",), Sampler: ("process",),
}  # fmt: skip
# Fields that are a name with its parameters, and the parameters where the name is all there is.
SCHEDULE_DEFAULTS = {name: family.defaults for name, family in SCHEDULES.items()}
DEFAULTS = {
    ("diffusion", "schedule"): SCHEDULE_DEFAULTS, ("sampler", "schedule"): SCHEDULE_DEFAULTS,
    ("optimizer", "decay"): DECAY_DEFAULTS,
}  # fmt: skip


def make_experiment(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Experiment:
    """Resolves and checks a configuration; ConfigError names field, values and remedy."""
    sections = dict(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
    check_sections(sections)
    for (name, field), defaults in DEFAULTS.items():
        given = sections[name].get(field)
        if isinstance(given, Mapping) and set(given) == {"name"}:
            whole = {**given, **defaults.get(str(given["name"]), {})}
            sections[name] = {**sections[name], field: whole}
    data = section(Data, "data", sections).resolved()
    sections["data"] = dataclasses.asdict(data)
    rin = section(
        RIN, "model", sections, example_shape=data.example_shape, cond_frames=data.cond_frames,
        num_classes=data.num_classes,
    )  # fmt: skip
    validation.check_heads(rin)
    objective = make_objective(sections["diffusion"])
    sampler, guidance, generation = make_sampler(sections["sampler"], objective.process)
    check_guidance(guidance.scale, generation.guide, objective, data)
    validation.check_memory(rin, generation.images_per_device)
    evaluation = section(Evaluation, "evaluation", sections)
    if data.cond_frames and "ssim" in evaluation.measures:
        frames.check_size(data.image_size)
    train = section(Train, "train", sections)
    optimizer, learning_rate = section(Optimizer, "optimizer", sections).make(train.num_steps)
    ema = section(Ema, "ema", sections)
    return Experiment(
        seed=sections["seed"], data=data, rin=rin, objective=objective,
        sampler=sampler, guidance=guidance, generation=generation,
        optimizer=optimizer, learning_rate=learning_rate, train=train,
        ema=ema, averages=ema.weights(),
        checkpoint=section(Policy, "checkpoint", sections),
        evaluation=evaluation,
        mesh=section(sharding.MeshSizes, "mesh", sections),
        runtime=section(Runtime, "runtime", sections),
        config=ml_collections.FrozenConfigDict(sections),  # when all of it is checked
    )  # fmt: skip


def check_sections(sections: Mapping[str, Any]) -> None:
    """Raises ConfigError at a section that is unknown, missing or not a mapping, or an odd seed."""
    check_fields("", sections, ("seed", *SECTIONS))
    check_types("", Experiment, {"seed": sections["seed"]})
    if not 0 <= sections["seed"] < 2**32:
        raise ConfigError(f"seed is {sections['seed']}; it must be in 0..{2**32 - 1}.")
    for name in SECTIONS:
        if not isinstance(found := sections[name], Mapping):
            raise ConfigError(f"{name} is {reprlib.repr(found)}; it must be a section of fields.")


def fields_of(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass that a section gives."""
    left_out = DERIVED.get(kind, ())
    return tuple(x.name for x in dataclasses.fields(kind) if x.init and x.name not in left_out)


def section(kind: type, name: str, sections: Mapping[str, Any], **derived: Any) -> Any:
    """The object of a section of a configuration."""
    check_fields(name, sections[name], fields_of(kind))
    check_types(f"{name}.", kind, sections[name])
    return kind(**sections[name], **derived)


def check_fields(name: str, given: Iterable[str], wanted: Sequence[str]) -> None:
    """Raises ConfigError at a field that is unknown, with the nearest name, or missing."""
    prefix = f"{name}." if name else ""
    for field in given:
        if field not in wanted:
            raise ConfigError(f"unknown field {prefix}{field}{nearest(field, wanted, prefix)}")
    for field in wanted:
        if field not in given:
            raise ConfigError(f"section {name or 'config'}: missing field {field!r}.")


def make_objective(given: Mapping[str, Any]) -> Objective:
    """The training loss of the section `diffusion`."""
    of_process, own = fields_of(Process), fields_of(Objective)
    check_fields("diffusion", given, (*of_process, *own))
    of_process = {field: given[field] for field in of_process}
    check_types("diffusion.", Process, of_process)
    fields = with_schedule("diffusion", Objective, given, own)
    return Objective(process=Process(**of_process), **fields)


def make_sampler(
    given: Mapping[str, Any], process: Process
) -> tuple[Sampler, Guidance, Generation]:
    """The sampling procedure, its guidance and the rest of the section `sampler`."""
    of_guidance = {f"guidance_{field}": field for field in fields_of(Guidance)}
    own, rest = fields_of(Sampler), fields_of(Generation)
    check_fields("sampler", given, (*own, *of_guidance, *rest))
    sampler = Sampler(process=process, **with_schedule("sampler", Sampler, given, own))
    guidance = {field: given[name] for name, field in of_guidance.items()}
    check_types("sampler.guidance_", Guidance, guidance)
    generation = {field: given[field] for field in rest}
    check_types("sampler.", Generation, generation)
    return sampler, Guidance(**guidance), Generation(**generation)


def with_schedule(name: str, kind: type, given: Mapping, fields: Sequence[str]) -> dict[str, Any]:
    """The values of some fields of `kind` in a section, with its noise schedule made."""
    values = {field: given[field] for field in fields if field != "schedule"}
    check_types(f"{name}.", kind, values)
    schedule = given["schedule"]
    if not isinstance(schedule, Mapping) or not isinstance(schedule.get("name"), str):
        raise ConfigError(f"{name}.schedule is {reprlib.repr(schedule)}; it must have a name.")
    try:
        return values | {"schedule": make_schedule(**schedule)}
    except ConfigError as error:
        raise ConfigError(f"{name}.schedule: {error}") from error


def check_guidance(scale: float, guide: str | None, objective: Objective, data: Data) -> None:
    """Raises ConfigError if nothing is there that could guide, or what is there does not."""
    if guide is not None and not scale:
        raise ConfigError(
            f"sampler.guide is {guide!r}, but sampler.guidance_scale is 0; set it above 0."
        )
    if scale and guide is None and not (data.num_classes and objective.cond_dropout):
        why = "the network has no classes"
        if data.num_classes:
            why = "diffusion.cond_dropout is 0: the network never learns to go without a label"
        raise ConfigError(
            f"sampler.guidance_scale is {scale}, but {why}; set it to 0, or sampler.guide to the "
            "workdir of a weaker network."
        )


def device_mesh(experiment: Experiment, devices: list | None = None) -> Mesh:
    """The mesh of an experiment over all devices, or over those given.

    Raises ConfigError if the axes do not fit the devices, or `tensor` the heads or hidden widths.
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
