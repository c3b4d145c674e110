"""The smallest RIN that has every part, its inputs, and parameters without symmetry."""

import jax
import numpy as np

from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN

SMALL = {
    "example_shape": (4, 6, 2), "cond_frames": 0, "video": None, "num_classes": 3, "patch_size": 2,
    "num_blocks": 2, "depth": 1,
    "num_latents": 5, "latent_dim": 16, "interface_dim": 8, "num_heads": 4, "routing_heads": 2,
    "latent_mlp_ratio": 2, "interface_mlp_ratio": 2, "interface_self_cond": True,
    "latent_positions": "learned", "interface_positions": "learned", "latent_self_cond": True,
    "norm_context": False, "qk_norm": False, "time_on_latents": True, "label_on_latents": True,
    "label_in_time": False, "sequence": None, "conv_size": 0, "conv_dropout": 0.0,
    "attention_dropout": 0.0, "cond_route": "read", "cond_dim": None, "time_scale": 1000.0,
    "dropout": 0.0, "drop_path": 0.0, "remat": "none",
    "dtype": "float32",
}  # fmt: skip
BATCH = 3
VIDEO = {"patch_frames": 2, "positions": "after", "written": True}
SEQUENCE = {"tokens": 2, "width": 5, "projected": True, "on_latents": False}


def small(**changes) -> RIN:
    """SMALL with fields changed."""
    return RIN(**(SMALL | changes))


def inputs(rin: RIN, seed: int = 0) -> list:
    """[images, gamma, condition, previous latents] of a batch of three."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(BATCH, rin.num_latents, rin.latent_dim)).astype(np.float32)
    if rin.interface_self_cond:
        tokens = rng.normal(size=(BATCH, rin.num_tokens, rin.interface_dim)).astype(np.float32)
        latents = {"latents": latents, "interface": tokens}
    return [
        rng.normal(size=(BATCH, *rin.example_shape)).astype(np.float32),
        rng.uniform(0.05, 0.95, BATCH).astype(np.float32),
        {
            name: np.arange(BATCH, dtype=np.int32) % rin.num_classes
            if name == "label"
            else rng.normal(size=shape.shape).astype(np.float32)
            for name, shape in rin.abstract_cond(BATCH).items()
        },
        latents,
    ]


def fill(shapes, seed: int = 0):
    """Random values for a tree of shapes: nothing is zero, one, or equal to its neighbour."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        value = 0.3 * rng.normal(size=shape.shape)
        return (value + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_params(rin: RIN, seed: int = 0):
    """Parameters under which every part of `rin` has an effect."""
    return fill(param_shapes(rin), seed)


def distance(a, b) -> float:
    """The largest difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)
