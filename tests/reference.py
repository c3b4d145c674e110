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
from rin_jax.network.conditioning import NO_LABEL, Sequence
from rin_jax.network.rin import RIN
from rin_jax.network.tokenizer import Video

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
    "dropout": "drop_units", "attention_dropout": "drop_att", "drop_path": "drop_path",
    "norm_context": "xattn_enc_ln",
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


def rin_of(config: dict, num_classes: int, sequence: tuple | None = None) -> RIN:
    """The RIN of a reference's network configuration (`latent_slots`, `num_layers`, ...).

    `num_classes` is the width of its one-hot condition, `sequence` the (tokens, width) of a
    condition that is no class; 0 and None if it has none.
    """
    depths = tuple(int(depth) for depth in str(config["num_layers"]).split(","))
    self_cond = config["self_cond"]
    route = "decoupled" if config["cond_decoupled_read"] else "read"
    route = "write" if config["cond_tape_writable"] else route
    fields = {ours: config[theirs] for ours, theirs in FIELDS.items() if theirs in config}
    on_latents = config["cond_on_latent_n"] > 0
    cond_frames, video = 0, None
    if "num_tokens" in config:
        shape = (config["num_tokens"], config["token_output_dim"])
        fields["patch_size"] = 1
    else:
        shape = (config["image_height"], config["image_width"], config["image_channels"])
    if "seq_len" in config:
        cond_frames = config.get("seq_cond", 0)
        shape = (config["seq_len"] - cond_frames, *shape)
        video = Video(patch_frames=config["seq_stride"], positions="after", written=True)
        if fields["interface_positions"] == "sin_cos":
            fields["interface_positions"] = "sin_cos_plus_learned"  # of a table that is imported
    if sequence is not None:
        tokens, width = sequence
        sequence = Sequence(tokens, width, config.get("cond_proj", True), on_latents)
    return RIN(
        **fields, example_shape=shape, cond_frames=cond_frames, video=video,
        num_classes=num_classes, num_blocks=len(depths), depth=depths,
        latent_self_cond="latent" in self_cond, interface_self_cond="tape" in self_cond,
        label_on_latents=on_latents, label_in_time=video is not None and num_classes > 0,
        sequence=sequence, conv_size=config.get("conv_kernel_size", 0),
        conv_dropout=config.get("conv_drop_units", 0.0), qk_norm=False, cond_route=route,
        cond_dim=config["cond_dim"] or None, remat="none", dtype="float32",
    )  # fmt: skip


def inputs(name: str) -> dict:
    """(xt, gamma, cond) of an architecture file, by those names.

    Its condition is one-hot labels, frames, or a sequence, as are labels that are not projected; a
    video's classes are beside its gamma.
    """
    arrays, meta = load(name)
    gamma, given, cond = arrays["in/t"], arrays.get("in/cond"), {}
    if gamma.ndim == 2:
        if gamma.shape[1] > 1:
            cond["label"] = labels_of(gamma[:, 1:])
        gamma = gamma[:, 0]
    projected = meta["config"].get("cond_proj", True)
    if meta["cond"] == "class" and given is not None and projected:
        cond["label"] = labels_of(given)
    elif given is not None and given.ndim == 5:
        cond |= {"frames": given} if given.shape[1] else {}
    elif given is not None:
        cond["sequence"] = given[:, None] if given.ndim == 2 else given
    return {"xt": arrays["in/x"], "gamma": gamma, "cond": cond}


def network(name: str) -> tuple[RIN, dict]:
    """(RIN, params) of an architecture file."""
    arrays, meta = load(name)
    cond = inputs(name)["cond"]
    num_classes = 0
    if "label" in cond:
        classes = arrays["in/t"][:, 1:] if arrays["in/t"].ndim == 2 else arrays["in/cond"]
        num_classes = classes.shape[-1]
    sequence = cond["sequence"].shape[1:] if "sequence" in cond else None
    rin = rin_of(meta["config"], num_classes, sequence)
    return rin, pix2seq.import_params(under(arrays, "w/"), rin)


@functools.cache
def forward(rin: RIN):
    """`rin.apply`, compiled once for each shape however many tests ask."""
    return jax.jit(rin.apply)


def denoiser(rin: RIN, params: dict):
    """denoise_fn of a network for samplers and losses; their condition is labels, or None."""

    def denoise(xt, gamma, labels, prev_latents):
        cond = {} if labels is None else {"label": labels}
        return forward(rin)({"params": params}, xt, gamma, cond, prev_latents)

    return denoise
