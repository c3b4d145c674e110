"""Configurations that checkpoints, workdirs and exports keep, and which weights belong to them."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from rin_jax import ConfigError
from rin_jax.diffusion.process import Process
from rin_jax.experiment import Experiment, fields_of
from rin_jax.network.rin import RIN

# Attributes of the network that may change while its weights are used.
NOT_ARCHITECTURE = "remat", "dtype", "dropout", "attention_dropout", "drop_path", "conv_dropout"
# Fields that configurations of older checkpoints and exports lack, and what their code had instead.
SINCE_FORMAT_2 = {
    "latent_positions": "learned", "interface_positions": "learned", "latent_self_cond": True,
    "interface_self_cond": False, "norm_context": False, "time_on_latents": True,
    "label_on_latents": True, "cond_route": "read", "cond_dim": None, "time_scale": 1000.0,
    "video": None, "sequence": None, "label_in_time": False, "conv_size": 0, "conv_dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip
# The section `evaluation` of configurations that were saved before it said how figures are made.
OLD_EVALUATION = {
    "num_samples": 50_000, "labels": "random", "networks": None, "measures": ("frechet",),
    "count_cond_frames": True, "inception_protocol": "adm", "inception_weights": None,
    "dinov2_weights": None, "i3d_weights": None, "reference": None, "real_samples": None,
    "every_steps": None, "trend_samples": 2000, "keep_best": False,
}  # fmt: skip


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a configuration that a checkpoint or an export keeps, with what it lacks.

    What it has is not checked: a section may be missing, or something else.
    """
    config = copy.deepcopy(dict(saved))
    data = {"clip": None, "cache_dir": None}
    older = {"data": data, "model": SINCE_FORMAT_2, "evaluation": OLD_EVALUATION}
    for name, fields in older.items():
        if isinstance(found := config.get(name), Mapping):
            kept = {key: x for key, x in found.items() if name != "evaluation" or key in fields}
            config[name] = fields | kept
    return config


def saved_config(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration that a checkpoint of ours keeps, with the fields it may lack."""
    return ml_collections.ConfigDict(completed(saved))


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on, by field: the network's attributes and the process's."""
    of_model = fields_of(RIN, "example_shape", "cond_frames", "num_classes", *NOT_ARCHITECTURE)
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
