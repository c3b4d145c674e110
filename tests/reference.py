"""Reference tensors: where they are, how they are read, how errors are measured.

They lie in $RIN_PARITY_DIR, or in ../shared/parity beside the project. Without them the
tests that need them are skipped, unless $RIN_PARITY_DIR says that they must be there.
"""

import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from rin_jax.interop import pix2seq
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.network.rin import RIN

DIRECTORY = Path(
    os.environ.get("RIN_PARITY_DIR") or Path(__file__).resolve().parents[2] / "shared" / "parity"
)
needed = pytest.mark.skipif(
    not DIRECTORY.is_dir() and "RIN_PARITY_DIR" not in os.environ,
    reason="no reference tensors: set RIN_PARITY_DIR to their folder",
)

FIELDS = {  # attribute of RIN -> field of a reference configuration
    "patch_size": "patch_size", "latent_dim": "latent_dim", "interface_dim": "tape_dim",
    "num_latents": "latent_slots", "num_heads": "latent_num_heads", "routing_heads": "rw_num_heads",
    "latent_mlp_ratio": "latent_mlp_ratio", "interface_mlp_ratio": "tape_mlp_ratio",
    "latent_positions": "latent_pos_encoding", "interface_positions": "tape_pos_encoding",
    "dropout": "drop_units", "drop_path": "drop_path", "norm_context": "xattn_enc_ln",
    "time_on_latents": "time_on_latent", "time_scale": "time_scaling",
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays by name, meta) of one reference file."""
    arrays = dict(np.load(DIRECTORY / f"{name}.npz"))
    return arrays, json.loads(str(arrays.pop("meta")))


def names(pattern: str) -> list[str]:
    """Reference files that match a pattern."""
    return sorted(path.stem for path in DIRECTORY.glob(f"{pattern}.npz"))


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def error(value, expected) -> float:
    """Largest difference over max(1, largest reference value)."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape, (value.shape, expected.shape)
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def labels_of(one_hot: np.ndarray) -> np.ndarray:
    """One-hot rows to labels; an all-zero row is no label."""
    return np.where(one_hot.any(-1), one_hot.argmax(-1), NO_LABEL).astype(np.int32)


def rin_of(config: dict, num_classes: int) -> RIN:
    """The RIN of a reference's network configuration (`latent_slots`, `num_layers`, ...).

    `num_classes` is the width of its one-hot condition, 0 if it has none.
    """
    for name, value in {"cond_proj": True, "conv_kernel_size": 0, "drop_att": 0.0}.items():
        assert config.get(name, value) == value, f"RIN has no {name}"
    depths = tuple(int(depth) for depth in str(config["num_layers"]).split(","))
    self_cond = config["self_cond"]
    route = "decoupled" if config["cond_decoupled_read"] else "read"
    route = "write" if config["cond_tape_writable"] else route
    return RIN(
        **{ours: config[theirs] for ours, theirs in FIELDS.items()},
        example_shape=(config["image_height"], config["image_width"], config["image_channels"]),
        num_classes=num_classes, num_blocks=len(depths), depth=depths,
        latent_self_cond="latent" in self_cond, interface_self_cond="tape" in self_cond,
        label_on_latents=config["cond_on_latent_n"] > 0,
        cond_route=route, cond_dim=config["cond_dim"] or None, remat="none", dtype="float32",
    )  # fmt: skip


def network(name: str) -> tuple[RIN, dict]:
    """(RIN, params) of an architecture file."""
    arrays, meta = load(name)
    num_classes = arrays["in/cond"].shape[-1] if meta["cond"] == "class" else 0
    rin = rin_of(meta["config"], num_classes)
    return rin, pix2seq.import_params(under(arrays, "w/"), rin)


def denoiser(rin: RIN, params: dict):
    """denoise_fn of a network for samplers and losses; their condition is labels, or None."""

    @jax.jit
    def denoise(xt, gamma, labels, prev_latents):
        cond = {} if labels is None else {"label": labels}
        return rin.apply({"params": params}, xt, gamma, cond, prev_latents)

    return denoise
