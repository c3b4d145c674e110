"""Configurations that checkpoints, workdirs and exports keep, and which weights belong to them."""

import contextlib
import copy
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from rin_jax import ConfigError
from rin_jax.configuration import STORED
from rin_jax.diffusion.process import Process
from rin_jax.experiment import Experiment, fields_of
from rin_jax.network.rin import RIN
from rin_jax.runtime import console, files, machine

# Attributes of the network that may change while its weights are used.
NOT_ARCHITECTURE = "remat", "dtype", "dropout", "attention_dropout", "drop_path", "conv_dropout"
# Fields that configurations of older checkpoints and exports lack, and what their code had instead.
SINCE_FORMAT_2 = {
    "latent_positions": "learned", "interface_positions": "learned", "latent_self_cond": True,
    "interface_self_cond": False, "norm_context": False, "time_on_latents": True,
    "label_on_latents": True, "cond_route": "read", "cond_dim": None, "time_scale": 1000.0,
    "video": None, "sequence": None, "label_in_time": False, "conv_size": 0, "conv_dropout": 0.0,
    "attention_dropout": 0.0, "qk_norm": False,
}  # fmt: skip
# The section `evaluation` of configurations that were saved before it said how figures are made.
OLD_EVALUATION = {
    "num_samples": 50_000, "labels": "random", "networks": None, "measures": ("frechet",),
    "count_cond_frames": True, "inception_protocol": "adm", "inception_weights": None,
    "dinov2_weights": None, "i3d_weights": None, "reference": None, "real_samples": None,
    "every_steps": None, "trend_samples": 2000, "keep_best": False, "held_out_every_steps": None,
}  # fmt: skip


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration that a checkpoint or an export keeps, with what it lacks.

    What it has is not checked: a section may be missing, or something else.
    """
    config = copy.deepcopy(dict(saved))
    older = {
        "data": {"clip": None, "cache_dir": None}, "model": SINCE_FORMAT_2,
        "diffusion": {"sigmoid_bias": None, "logit_normal_times": None},
        "train": {"wandb": None}, "evaluation": OLD_EVALUATION,
    }  # fmt: skip
    for name, fields in older.items():
        if isinstance(found := config.get(name), Mapping):
            kept = {key: x for key, x in found.items() if name != "evaluation" or key in fields}
            config[name] = fields | kept
    return {"runtime": dict(machine.DEFAULTS)} | config


def saved_config(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration that a checkpoint of ours keeps, with the fields it may lack."""
    return ml_collections.ConfigDict(completed(saved))


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on, by field: the network's attributes and the process's."""
    of_model = [field for field in fields_of(RIN) if field not in NOT_ARCHITECTURE]
    plain = json.loads(json.dumps(config))  # tuples are lists in a checkpoint
    of_data = ("image_size", "channels", "num_classes")
    parts = {"data": of_data, "model": of_model, "diffusion": fields_of(Process)}
    found = {f"{name}.{field}": plain[name][field] for name in parts for field in parts[name]}
    clip = plain["data"]["clip"] or {}
    return found | {f"data.clip.{field}": clip.get(field) for field in ("frames", "cond_frames")}


def check_architecture(experiment: Experiment, saved: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError naming each field in which saved weights are of another architecture.

    `saved`: the configuration that was kept with the weights, `where` is what has them.
    """
    now = architecture(experiment.config.to_dict())
    before = architecture(saved_config(saved).to_dict())
    differ = [
        f"\n  {field}: checkpoint {before[field]!r}, now {value!r}"
        for field, value in now.items()
        if before[field] != value
    ]
    if differ:
        listed = f"{where} belongs to another architecture:{''.join(differ)}"
        raise ConfigError(f"{listed}\nUse another --workdir, or the checkpoint's values.")


def store(experiment: Experiment, workdir: str) -> None:
    """Writes WORKDIR/config.json, as a whole or not at all."""
    text = json.dumps(experiment.config.to_dict(), indent=2) + "\n"
    files.write_whole(epath.Path(workdir) / STORED, text.encode())


def read(path: epath.PathLike) -> dict[str, Any]:
    """The configuration in the config.json of a workdir or an export, with what it may lack.

    Of an export it names no folder, which may be a stranger's. Raises ConfigError if the file is
    not there, damaged, or something else.
    """
    try:
        content = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        text = f"{path} cannot be read: {' '.join(str(error).split())}"
        raise ConfigError(f"{text}; name a configuration file, --config=FILE.") from error
    of_export = isinstance(content, dict) and {"format", "config"} <= set(content)
    sections = content["config"] if of_export else content
    if not isinstance(sections, dict) or not isinstance(sections.get("data"), dict):
        raise ConfigError(f"{path} is not the configuration of a run or an export.")
    sections = completed(sections)
    if of_export:
        sections["data"] |= {"data_dir": None, "cache_dir": None}
        sections["runtime"] = dict(machine.DEFAULTS)
        sampler = sections.get("sampler")
        if isinstance(sampler, dict) and sampler.get("guide") is not None:
            raise ConfigError(f"{path} sets sampler.guide, but an export holds one network.")
    return sections


def say_differences(experiment: Experiment, workdir: str) -> None:
    """Says which fields are not those that a run has stored in `workdir`, if one has."""
    path = epath.Path(workdir) / STORED
    if path.exists():
        with contextlib.suppress(ConfigError):  # it is damaged, and nothing needs it
            say_changes(experiment, read(path), str(path))


def say_changes(experiment: Experiment, before: Mapping[str, Any], where: str) -> None:
    """Says which fields are not those of the stored configuration `before`."""
    old, new = _flat(before), _flat(experiment.config.to_dict())
    changes = [
        f"\n  {field}: {old.get(field)!r} there, {new.get(field)!r} now"
        for field in new | old
        if old.get(field) != new.get(field)
    ]
    if changes:
        console.say(f"fields that are not as in {where}:{''.join(changes)}")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.depth": value}, lists for tuples."""
    found = {}
    for section, fields in json.loads(json.dumps(config)).items():
        parts = fields if isinstance(fields, dict) else {"": fields}
        found |= {f"{section}.{field}".rstrip("."): value for field, value in parts.items()}
    return found
