"""The smallest experiment that has every part, and how tests change it."""

import copy

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from rin_jax.checkpointing.checkpoints import Checkpoints, Policy, folder
from rin_jax.configuration.stored import SINCE_FORMAT_2
from rin_jax.experiment import Experiment, make_experiment
from rin_jax.runtime import machine
from rin_jax.training.state import TrainState, abstract_state, items_of, metadata_of

TINY = {
    "seed": 0,
    "model": {
        "patch_size": 4, "num_blocks": 2, "depth": 1, "num_latents": 6, "latent_dim": 16,
        "interface_dim": 8, "num_heads": 2, "routing_heads": 2, "latent_mlp_ratio": 2,
        "interface_mlp_ratio": 2, "dropout": 0.1, "drop_path": 0.1, "remat": "none",
        "dtype": "float32", **SINCE_FORMAT_2,
    },
    "diffusion": {
        "schedule": {"name": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9},
        "prediction_type": "eps", "loss_type": "eps", "input_scale": 1.0,
        "normalize_input": False, "self_cond_rate": 0.9, "cond_dropout": 0.1,
        "sigmoid_bias": None, "logit_normal_times": None,
    },
    "sampler": {
        "name": "ddim", "num_steps": 3, "schedule": {"name": "offset_cosine"},
        "eta": 0.0, "time_difference": 0.0, "latents": "carry", "refresh": 0, "latent_decay": 0.0,
        "guidance_scale": 0.0, "guidance_interval": (0.0, 1.0), "guidance_latents": "shared",
        "guide": None, "guide_checkpoint": None, "images_per_device": 100,
    },
    "data": {
        "name": "digits", "split": "train[:64]", "data_dir": None, "cache_dir": None,
        "image_size": 8, "clip": None, "channels": 1, "num_classes": 10, "flip": True,
        "num_threads": 4, "prefetch": 2,
    },
    "optimizer": {
        "name": "lamb", "learning_rate": 1e-2, "warmup_steps": 2,
        "decay": {"name": "cosine", "end_factor": 0.0, "rate": 0.8}, "b1": 0.9, "b2": 0.999,
        "eps": 1e-8, "weight_decay": 1e-2, "clip_norm": None,
    },
    "train": {
        "batch_size": 16, "num_steps": 6, "accumulation_steps": 1,
        "max_skipped_steps": 3, "init_from": None, "log_every_steps": 2, "sample_every_steps": 3,
        "wandb": None,
    },
    "ema": {"decays": (0.9,), "power_lengths": (0.1,), "snapshot_every_steps": None},
    "checkpoint": {"every_steps": 2, "keep": 2, "keep_every_steps": None, "keep_best": 0},
    "evaluation": {
        "num_samples": 20, "labels": "balanced", "networks": ("classifier",),
        "measures": ("frechet", "agreement"), "count_cond_frames": True,
        "inception_protocol": "adm", "inception_weights": None, "dinov2_weights": None,
        "i3d_weights": None, "reference": None, "real_samples": None, "every_steps": None,
        "trend_samples": 20, "held_out_every_steps": None, "keep_best": False,
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "runtime": dict(machine.DEFAULTS),
}  # fmt: skip


def config(**changes) -> ml_collections.ConfigDict:
    """TINY with fields changed: config(model__depth=2)."""
    tree = copy.deepcopy(TINY)
    for path, value in changes.items():
        *sections, field = path.split("__")
        node = tree
        for section in sections:
            node = node[section]
        node[field] = value
    return ml_collections.ConfigDict(tree)


def experiment(**changes) -> Experiment:
    """The experiment of a changed TINY."""
    return make_experiment(config(**changes))


def batches(count: int, size: int = 16) -> list[dict[str, np.ndarray]]:
    """Random batches for TINY."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, 8, 8, 1), dtype=np.uint8),
            "label": rng.integers(0, 10, size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def state(experiment: Experiment, mesh: Mesh, seed: int = 0) -> TrainState:
    """A state whose numbers are random, each part's its own; no program is compiled for it."""
    abstract, rng = abstract_state(experiment, mesh), np.random.default_rng(seed)

    def leaf(path, shape):
        values = 0.3 * rng.normal(size=shape.shape) + (path[-1] == jax.tree_util.DictKey("scale"))
        return jax.device_put(values.astype(shape.dtype), shape.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def save(workdir, experiment: Experiment, states: dict, policy: Policy | None = None) -> None:
    """Checkpoints of a run that never ran: {step: state}; step x batch size images are read."""
    with Checkpoints(folder(str(workdir)), policy) as saver:
        for step, state in states.items():
            images = step * experiment.train.batch_size
            saver.save(step, items_of(state), metadata_of(state, experiment, images))
