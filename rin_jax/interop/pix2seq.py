"""Weights of the authors' released code (google-research/pix2seq), by variable name.

The names are `tape/<unit>/...`; the mapping needs only the network's configuration. Layers
that we scan over are stacked: read, write and compute of a group of blocks of equal depth.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from rin_jax import ConfigError
from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN

DENSE = {"kernel": "kernel", "bias": "bias"}
NORM = {"scale": "gamma", "bias": "beta"}


def _nest(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{a}": f"{theirs}/{b}" for a, b in names.items()}


ATTENTION = (
    _nest("query", "query", DENSE)
    | _nest("key", "key", DENSE)
    | _nest("value", "value", DENSE)
    | _nest("out", "attention_output", DENSE)
)
FFN = _nest("hidden", "dense1", DENSE) | _nest("out", "dense2", DENSE)
MLP = _nest("norm", "ffn/ln", NORM) | _nest("ffn", "ffn", FFN)
CROSS = (
    _nest("norm", "cross_mha/ln", NORM)
    | _nest("context_norm", "cross_mha/enc_ln", NORM)
    | _nest("attention", "cross_mha", ATTENTION)
    | _nest("mlp/norm", "mlp/ffn/ln", NORM)
    | _nest("mlp/ffn", "mlp/ffn", FFN)
)
LAYER = (
    _nest("attention_norm", "mha/ln", NORM)
    | _nest("attention", "mha", ATTENTION)
    | _nest("ffn_norm", "mlp/ffn/ln", NORM)
    | _nest("ffn", "mlp/ffn", FFN)
)


def import_params(weights: Mapping[str, np.ndarray], rin: RIN) -> dict[str, Any]:
    """The parameters of `rin` from reference variables `tape/...`.

    Raises:
      ConfigError: variables are missing, left over, or of another shape; all are listed.
    """
    names = reference_names(rin)
    problems, used, params = [], set(), {}
    for ours, leaf in traverse_util.flatten_dict(param_shapes(rin), sep="/").items():
        theirs = [f"tape/{name}" for name in names[ours].ravel()]
        used.update(theirs)
        if missing := [name for name in theirs if name not in weights]:
            problems.append(f"{ours}: missing {', '.join(missing)}")
            continue
        layers = np.stack([weights[name] for name in theirs])
        stacked = layers.reshape(*names[ours].shape, *layers.shape[1:])
        if stacked.shape != leaf.shape:
            problems.append(f"{ours}: shape {stacked.shape} instead of {leaf.shape}")
        params[ours] = stacked.astype(np.float32)
    problems += [f"{name}: not used" for name in sorted(set(weights) - used)]
    if problems:
        raise ConfigError("reference weights do not fit the network:\n  " + "\n  ".join(problems))
    return traverse_util.unflatten_dict(params, sep="/")


def reference_names(rin: RIN) -> dict[str, np.ndarray]:
    """Our parameter path -> array of reference names without `tape/`, one per stacked layer."""
    single = (
        _nest("stem", "stem", DENSE)
        | _nest("stem/norm", "stem_ln", NORM)
        | _nest("time/hidden", "time_emb/dense0", DENSE)
        | _nest("time/out", "time_emb/dense1", DENSE)
        | _nest("label", "cond_proj", DENSE)
        | _nest("prev_latent_mlp", "latent_prev_proj", MLP)
        | _nest("prev_latent_norm", "latent_prev_ln", NORM)
        | _nest("prev_interface_mlp", "tape_prev_proj", MLP)
        | _nest("prev_interface_norm", "tape_prev_ln", NORM)
        | _nest("readout/norm", "output_ln", NORM)
        | _nest("readout/out", "output_linear", DENSE)
    )
    for ours, theirs, kind in (
        ("latents", "latent_pos_emb", rin.latent_positions),
        ("stem/positions", "tape_pos_emb", rin.interface_positions),
    ):
        leaf = "_res/kernel" if kind == "sin_cos_plus_learned" else "/kernel/vis_pos_embedding"
        single[f"{ours}/table"] = f"{theirs}{leaf}"
    names = {ours: np.array(theirs) for ours, theirs in single.items()}
    first = 0
    for group, (depth, blocks) in enumerate(itertools.groupby(rin.depths)):
        block_ids = range(first, first := first + len(list(blocks)))
        for unit, (ours, theirs) in itertools.product(
            ("read", "read_cond", "write"), CROSS.items()
        ):
            layers = [f"{unit}_unit_{i}/transformer_decoder_layer/{theirs}" for i in block_ids]
            names[f"blocks_{group}/{unit}/{ours}"] = np.array(layers)
        suffixes = ("", *(f"_{layer}" for layer in range(1, depth)))[:depth]
        for ours, theirs in LAYER.items():
            layers = [
                [f"latent_processing_unit{i}/transformer_encoder{s}/{theirs}" for s in suffixes]
                for i in block_ids
            ]
            names[f"blocks_{group}/compute/{ours}"] = np.array(layers)
    return names
