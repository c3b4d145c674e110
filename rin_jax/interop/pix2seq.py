"""Checkpoints of the authors' released code (google-research/pix2seq), by variable name.

TensorFlow's files are of one of two kinds: TensorFlow 2 stores an object graph, in which the
variable `tape/stem/kernel` lies below `model/denoiser` and its running average, of the same name,
below `model/denoiser_ema`; a name-based file has each variable once. Reading needs the extra `tf`.

The names are `tape/<unit>/...`; the mapping needs only the network's configuration. Layers
that we scan over are stacked: read, write and compute of a group of blocks of equal depth.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from rin_jax import ConfigError
from rin_jax.network.embeddings import sincos_positions
from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
PREFIX = "tape/"
AVERAGE = "denoiser_ema"  # the part of a path that marks running averages
SLOT = ".OPTIMIZER_SLOT"  # and the one of an optimizer's moments
STEPS = ("global_step", "optimizer/iter", "optimizer/iterations")

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
    | _nest("mlp", "mlp", MLP)
)
LAYER = (
    _nest("attention_norm", "mha/ln", NORM)
    | _nest("attention", "mha", ATTENTION)
    | _nest("ffn_norm", "mlp/ffn/ln", NORM)
    | _nest("ffn", "mlp/ffn", FFN)
)
CONV = (
    _nest("depthwise", "depthwise_conv", {"kernel": "depthwise_kernel", "bias": "bias"})
    | _nest("norm", "gn", NORM)
    | _nest("pointwise", "pointwise_conv", DENSE)
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a checkpoint has of a denoiser."""

    params: dict[str, np.ndarray]  # reference name -> array; empty if there are only averages
    average: dict[str, np.ndarray]  # the same of the running average; empty if there is none
    keys: dict[tuple[str, bool], str]  # (reference name, whether it is an average) -> key in file
    step: int | None  # training steps; None if the file does not tell
    others: dict[str, tuple[int, ...]]  # shapes of all that is neither (moments, counters), by key


def read(source: str) -> Found:
    """Reads a checkpoint: its prefix (`.../ckpt-1000`), or a folder with its newest one.

    Raises:
      ConfigError: there is no checkpoint, it has no variable `tape/...` or one twice, or TensorFlow
        is not installed.
    """
    if not any(epath.Path(path).exists() for path in (source, f"{source}.index")):
        raise ConfigError(
            f"--source is {source}, but there is no such folder and no file {source}.index; name a "
            "TensorFlow checkpoint, .../ckpt-1000, or the folder of one."
        )
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(
            "--mode=import_pix2seq reads TensorFlow's files with TensorFlow: "
            'pip install "rin-jax[tf]"'
        ) from error
    try:
        reader = tf.train.load_checkpoint(source)
    except (ValueError, tf.errors.OpError) as error:
        raise ConfigError(f"--source={source} is not a TensorFlow checkpoint: {error}") from error
    shapes = reader.get_variable_to_shape_map()
    found = Found({}, {}, {}, _step(reader, shapes), dict(shapes))
    for key, name in _names(reader, shapes).items():
        if name.startswith(PREFIX) and SLOT not in key:
            average = AVERAGE in key.split("/")
            if (name, average) in found.keys:
                raise ConfigError(f"{source} has {name} twice: {found.keys[name, average]}, {key}.")
            found.keys[name, average] = key
            (found.average if average else found.params)[name] = reader.get_tensor(key)
            del found.others[key]
    if not found.keys:
        raise ConfigError(
            f"{source} has no variable {PREFIX}..., so it is not a checkpoint of the released "
            f"denoiser. It has {', '.join(sorted(shapes)[:5])}{', ...' if len(shapes) > 5 else ''}"
        )
    return found


def _names(reader: Any, shapes: dict) -> dict[str, str]:
    """Key in the file -> variable name."""
    if GRAPH not in shapes:
        return {key: key for key in shapes}
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(GRAPH))
    attributes = [attribute for node in graph.nodes for attribute in node.attributes]
    return {attribute.checkpoint_key: attribute.full_name for attribute in attributes}


def _step(reader: Any, shapes: dict) -> int | None:
    for key, shape in sorted(shapes.items()):
        if not shape and key.partition("/.ATTRIBUTES")[0] in STEPS:
            return int(reader.get_tensor(key))
    return None


def import_params(weights: Mapping[str, np.ndarray], rin: RIN) -> dict[str, Any]:
    """The parameters of `rin` from reference variables `tape/...`.

    Raises:
      ConfigError: variables are missing, left over, or of another shape; all are listed.
    """
    names, weights = reference_names(rin), _completed(weights, rin)
    problems, used, params = [], set(), {}
    for ours, leaf in traverse_util.flatten_dict(param_shapes(rin), sep="/").items():
        theirs = [f"{PREFIX}{name}" for name in names[ours].ravel()]
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


def _completed(weights: Mapping[str, np.ndarray], rin: RIN) -> dict[str, np.ndarray]:
    """`weights` under the names of TensorFlow 2.15, and with what the reference only computes.

    Its fixed codes of a video run over (row, column, time) where the tokens run over (time, row,
    column). A network of positions "sin_cos_plus_learned" holds the difference in its table.
    """
    kernel = "depthwise_conv/kernel", "depthwise_conv/depthwise_kernel"
    weights = {name.replace(*kernel): array for name, array in weights.items()}
    table = f"{PREFIX}tape_pos_emb_res/kernel"
    if rin.video and rin.interface_positions == "sin_cos_plus_learned" and table not in weights:
        _, rows, cols = rin.grid
        codes = sincos_positions((rows, cols), rin.interface_dim, rin.time_scale)
        times = (rin.num_tokens + rin.num_frame_tokens) // (rows * cols)
        weights[table] = np.asarray(codes.repeat(times, 0) - np.tile(codes, (times, 1)))
    return weights


def reference_names(rin: RIN) -> dict[str, np.ndarray]:
    """Our parameter path -> array of reference names without PREFIX, one per stacked layer."""
    single = (
        _nest("stem", "stem", DENSE)
        | _nest("stem/norm", "stem_ln", NORM)
        | _nest("time/hidden", "time_emb/dense0", DENSE)
        | _nest("time/out", "time_emb/dense1", DENSE)
        | _nest("label", "cond_proj", DENSE)
        | _nest("sequence", "cond_proj", DENSE)
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
        for ours, theirs in CONV.items():
            conv = [f"conv_units_{i}/{theirs}" for i in block_ids]
            names[f"blocks_{group}/conv/{ours}"] = np.array(conv)
        suffixes = ("", *(f"_{layer}" for layer in range(1, depth)))[:depth]
        for ours, theirs in LAYER.items():
            layers = [
                [f"latent_processing_unit{i}/transformer_encoder{s}/{theirs}" for s in suffixes]
                for i in block_ids
            ]
            names[f"blocks_{group}/compute/{ours}"] = np.array(layers)
    return names
