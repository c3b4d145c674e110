"""TensorFlow checkpoint files of the authors' released code, by variable name.

The files are of one of two kinds: TensorFlow 2 stores an object graph, in which the variable
`tape/stem/kernel` lies below `model/denoiser` and its running average, of the same name, below
`model/denoiser_ema`; a name-based file has each variable once. Reading needs the extra `tf`.
"""

import dataclasses
from typing import Any

import numpy as np

from rin_jax import ConfigError

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
PREFIX = "tape/"
AVERAGE = "denoiser_ema"  # the part of a path that marks running averages
SLOT = ".OPTIMIZER_SLOT"  # and the one of an optimizer's moments
STEPS = ("global_step", "optimizer/iter", "optimizer/iterations")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a checkpoint has of a denoiser."""

    params: dict[str, np.ndarray]  # reference name -> array; empty if there are only averages
    average: dict[str, np.ndarray]  # the same of the running average; empty if there is none
    keys: dict[tuple[str, bool], str]  # (reference name, whether it is an average) -> key in file
    step: int | None  # training steps; None if the file does not tell
    others: dict[
        str, tuple[int, ...]
    ]  # keys of all that is neither, with shapes: moments, counters


def read(source: str) -> Found:
    """Reads a checkpoint: its prefix (`.../ckpt-1000`), or a folder with its newest one.

    Raises:
      ConfigError: there is no checkpoint, it has no variable `tape/...` or one twice, or TensorFlow
        is not installed.
    """
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
