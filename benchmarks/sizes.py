"""The networks that `benchmarks.step` times: files of configs/ and what differs from them."""

import runpy
from pathlib import Path
from typing import Any

import ml_collections

ROOT = Path(__file__).resolve().parents[1]
# A file of configs/, the batch, and what differs from that file.
SIZES: dict[str, dict[str, Any]] = {
    "s64": {  # the heads are our choice
        "config": "imagenet64",
        "batch": 4,
        "model": {
            "patch_size": 8, "num_blocks": 2, "depth": 2, "num_latents": 128, "latent_dim": 384,
            "interface_dim": 256, "num_heads": 8, "routing_heads": 8, "latent_mlp_ratio": 4,
            "interface_mlp_ratio": 4, "dtype": "float32", "remat": "dots",  # see README.md
        },
        "data": {"image_size": 64, "channels": 3, "num_classes": 10},
    },
    "digits": {
        "config": "digits",
        "batch": 64,
        "model": {},
        "data": {"image_size": 8, "channels": 1, "num_classes": 10},
    },
    "s32": {  # a regularised peer would draw other numbers, so nothing is dropped
        "config": "cifar10",
        "batch": 4,
        "model": {"dropout": 0.0, "drop_path": 0.0, "remat": "dots"},  # see README.md
        "data": {"image_size": 32, "channels": 3, "num_classes": 10},
    },
    "imagenet64": {"config": "imagenet64", "batch": 32, "model": {}, "data": {}},
    "imagenet256": {"config": "imagenet256", "batch": 16, "model": {}, "data": {}},
}  # fmt: skip


def make_config(
    size: str, batch: int | None, dtype: str | None, remat: str | None = None
) -> ml_collections.ConfigDict:
    """The configuration of a size; `batch`, `dtype` and `remat` replace its own if given.

    Self-conditioning is always on and the sampler is DDIM without guidance.
    """
    row = SIZES[size]
    config = runpy.run_path(str(ROOT / "configs" / f"{row['config']}.py"))["get_config"]()
    config.model.update(row["model"])
    config.data.update(row["data"])
    config.train.batch_size = row["batch"] if batch is None else batch
    if dtype is not None:
        config.model.dtype = dtype
    if remat is not None:
        config.model.remat = remat
    config.diffusion.self_cond_rate = 1.0
    config.sampler.name = "ddim"
    config.sampler.guidance_scale = 0.0
    return config
