"""Features of many images, computed by all devices and kept as files: nothing holds the images.

Every process takes its share of the images that have no features yet, a batch a device, and writes
the features at least once a minute, so that a job that is interrupted goes on where it was.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rin_jax.evaluation import frames, summary
from rin_jax.evaluation.feature_networks import FeatureNetwork
from rin_jax.evaluation.parts import Parts
from rin_jax.evaluation.protocol import Evaluation
from rin_jax.evaluation.real_statistics import Reference
from rin_jax.experiment import Experiment
from rin_jax.runtime import processes
from rin_jax.sampling import shares
from rin_jax.sampling.conditions import Conditions

Array = jax.Array
# (device, indices [B]) -> images or clips [size, .., C] in 0..255 on it, image i in row i modulo
# size, and their labels int32 [B]
Images = Callable[[jax.Device, np.ndarray], tuple[Array, np.ndarray]]
# (device, images as above, indices [B]) -> {"NETWORK/OUTPUT": float32 [B, F]} of these images
Features = Callable[[jax.Device, Array, np.ndarray], dict[str, np.ndarray]]
AT_ONCE = 64  # images that are read from the host
WRITE_SECONDS = 60.0
WRITE_IMAGES = 2000  # at the latest, so that memory does not grow with the number of images


def extract(
    features: Sequence[Features], images: Images, size: int, count: int, parts: Parts, mesh: Mesh
) -> None:
    """Adds to `parts` the features that it lacks of images 0..count-1, and "label"; all processes.

    `features` are those of `make_features`, one for each network, and perhaps `of_frames`.
    """

    def one(device: jax.Device, indices: np.ndarray) -> dict[str, np.ndarray]:
        pixels, labels = images(device, indices)
        found = {"label": labels}
        for of in features:
            found |= of(device, pixels, indices)
        return found

    held, written = [], time.monotonic()
    for made in shares.rounds(one, size, count, parts, mesh):
        held += made
        enough = sum(len(indices) for indices, _ in held) >= WRITE_IMAGES
        if enough or time.monotonic() - written > WRITE_SECONDS:
            parts.write(held)
            held, written = [], time.monotonic()
    if held:
        parts.write(held)
    processes.agree("features of all images")


def from_host(read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Images:
    """Images AT_ONCE a batch from read(indices) -> (images [B, .., C] in 0..255, labels [B])."""

    def images(device: jax.Device, indices: np.ndarray) -> tuple[Array, np.ndarray]:
        pixels, labels = read(indices)
        rows = np.zeros((AT_ONCE, *pixels.shape[1:]), np.float32)
        rows[indices % AT_ONCE] = pixels
        return jax.device_put(rows, device), labels

    return images


def figures(
    evaluation: Evaluation, mesh: Mesh, images: Images, size: int, count: int,
    features: Sequence[Features], references: Mapping[str, Reference], parts: Parts,
) -> dict[str, float]:  # fmt: skip
    """The figures of `count` samples, "NETWORK/MEASURE"; all processes together.

    Process 0 has them; the others get nothing. `parts` keeps the features until it is removed.
    Raises as `summary.Measures`, before anything is computed.
    """
    measures = summary.Measures(evaluation, references, count)
    extract(features, images, size, count, parts, mesh)
    if jax.process_index():
        return {}
    return measures.figures(parts.blocks(count))


def make_features(network: FeatureNetwork, outputs: Sequence[str], mesh: Mesh) -> Features:
    """The function that computes these outputs of a network, compiled once."""
    local = {device: jax.device_put(network.params, device) for device in mesh.local_devices}

    @jax.jit
    def program(params, images):
        """Whole numbers, and grey as colour, where the network wants them."""
        if network.rounds:
            images = jnp.round(images)
        if network.colour:
            images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
        found = network.extract(params, images)
        return {f"{network.name}/{output}": found[output] for output in outputs}

    def features(device: jax.Device, images: Array, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Whole pieces of the images, those in which there is a row that is wanted."""
        rows, count = indices % len(images), min(network.at_once, len(images))
        padding = [(0, -len(images) % count), *[(0, 0)] * (images.ndim - 1)]
        images = jnp.pad(images, padding)
        at = {int(first): i for i, first in enumerate(np.unique(rows // count))}
        pieces = [program(local[device], images[i * count : (i + 1) * count]) for i in at]
        wanted = np.array([at[row // count] * count + row % count for row in rows])
        return jax.tree.map(lambda *piece: np.concatenate(piece)[wanted], *pieces)

    return features


def of_clips(
    experiment: Experiment, images: Images, conditions: Conditions
) -> tuple[Images, list[Features]]:
    """What is compared of sampled clips, and what measures their frames; images are as they were.

    The frames that the network was given are a part of it where `evaluation.count_cond_frames` is.
    """
    cond_frames, measures = experiment.data.cond_frames, experiment.evaluation.frame_measures
    if not cond_frames:
        return images, []
    if experiment.evaluation.count_cond_frames:
        images = with_cond_frames(images, conditions, cond_frames)
    return images, [of_frames(measures, conditions, cond_frames)] if measures else []


def with_cond_frames(images: Images, conditions: Conditions, cond_frames: int) -> Images:
    """The same clips with the frames before them that the network was given."""

    def whole(device: jax.Device, indices: np.ndarray) -> tuple[Array, np.ndarray]:
        clips, labels = images(device, indices)
        given = np.zeros((len(clips), cond_frames, *clips.shape[2:]), np.float32)
        given[indices % len(clips)] = conditions.truth(indices)[:, :cond_frames]
        return jnp.concatenate([jax.device_put(given, device), clips], axis=1), labels

    return whole


def of_frames(measures: Sequence[str], conditions: Conditions, cond_frames: int) -> Features:
    """What `frames.compare` finds of predicted clips, which the true ones follow by their index."""

    def features(device: jax.Device, clips: Array, indices: np.ndarray) -> dict[str, np.ndarray]:
        truth = conditions.truth(indices)
        predicted = clips[:, cond_frames - truth.shape[1] :]
        rounded = np.round(np.asarray(predicted)[indices % len(clips)])
        found = frames.compare(measures, rounded, truth, cond_frames)
        return {f"frames/{name}": x.astype(np.float32) for name, x in found.items()}

    return features
