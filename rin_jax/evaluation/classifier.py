"""A small classifier of real images, for the labels that it gives samples and for its features.

Three convolutions, a hidden layer and a head, in Flax; trained on the data set's own images by one
fixed recipe. It shares nothing with the generator but the data. For images of 8 to 32 pixels, and
for clips, over whose time the convolutions go too.

The convolutions are matrix products of patches: where XLA compiles without optimisation, these
are twenty times as fast as its own.
"""

import functools
import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from flax import traverse_util

from rin_jax import ConfigError
from rin_jax.evaluation.parts import write_arrays

Params = dict[str, Any]

RECIPE = 1  # number of the network and of its training: a cache of another is not read
WIDTHS, WIDTHS_OF_CLIPS, FEATURES = (32, 64, 64), (16, 32, 64), 128
BATCH, EPOCHS, FEWEST_STEPS, RATE, WARMUP = 128, 5, 1000, 2e-3, 100
_BLOCK = 1000  # images that `accuracy` reads together


class _Network(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images or clips [B, .., C] of 0..255 to features [B, FEATURES] and logits [B, K]."""
        # The default precision has fewer bits on a TPU and a GPU.
        dense = functools.partial(nn.Dense, precision="highest")
        x = images / 127.5 - 1
        if x.ndim == 4:
            widths, strides = WIDTHS, (1, 2, 2) if x.shape[1] <= 16 else (2, 1, 2)
        else:
            widths, strides = WIDTHS_OF_CLIPS, ((2, 1, 1), 2, 2)
        for width, stride in zip(widths, strides, strict=True):
            x = nn.relu(dense(width)(_patches(x, stride)))
        if x.ndim == 5:  # what moves may be anywhere
            x = x.max((2, 3))
        features = nn.relu(dense(FEATURES, name="hidden")(x.reshape(x.shape[0], -1)))
        return features, dense(self.num_classes, name="head")(features)


def _patches(x: jax.Array, stride: int | tuple[int, ...]) -> jax.Array:
    """The neighbours of every or every second pixel: [B, H, W, C] to [B, h, w, 9 C].

    Of clips [B, T, H, W, C] to [B, t, h, w, 27 C]. `stride` is of all axes, or of each.
    """
    sizes = x.shape[1:-1]
    strides = np.broadcast_to(stride, len(sizes)).tolist()
    padded = jnp.pad(x, ((0, 0), *((1, 1) for _ in sizes), (0, 0)))
    windows = [
        tuple(map(slice, corner, np.add(corner, sizes).tolist(), strides))
        for corner in itertools.product(range(3), repeat=len(sizes))
    ]
    return jnp.concatenate([padded[:, *window] for window in windows], axis=-1)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Params:
    """Learns from uint8 images or clips [R, .., C] with labels int [R], 0 to num_classes - 1.

    Makes EPOCHS passes, but at least FEWEST_STEPS steps, on one device. `progress` is called with
    the number of steps done, first with 0, and of all steps. ConfigError for no images, and for
    other labels.
    """
    if not len(labels):
        raise ConfigError("The classifier needs images to learn from; there are none.")
    if np.min(labels) < 0 or np.max(labels) >= num_classes:
        raise ConfigError(
            f"The labels of the real images are {np.min(labels)} to {np.max(labels)}; for "
            f"data.num_classes {num_classes} they must be 0 to {num_classes - 1}."
        )
    steps = max(FEWEST_STEPS, EPOCHS * len(images) // BATCH)
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, min(WARMUP, steps // 10), steps)
    optimizer = optax.adamw(rate, weight_decay=1e-2)
    init_key, shift_key = jax.random.split(jax.random.key(seed))
    init = jax.jit(_Network(num_classes).init)
    params = init(init_key, jnp.zeros((1, *images.shape[1:])))["params"]
    state = params, optimizer.init(params)
    step = jax.jit(functools.partial(_step, optimizer))
    rows = _order(len(images), steps * BATCH, seed).reshape(steps, BATCH)
    if progress:
        progress(0, steps)
    for i, batch in enumerate(rows):
        key = jax.random.fold_in(shift_key, i)
        state = step(state, key, images[batch], labels[batch].astype(np.int32))
        if progress and ((i + 1) % 100 == 0 or i + 1 == steps):
            jax.block_until_ready(state)
            progress(i + 1, steps)
    return jax.device_get(state[0])


def _order(count: int, length: int, seed: int) -> np.ndarray:
    """`length` indices: random orders of all images, one after another."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(count) for _ in range(-(-length // count))])[:length]


def _step(optimizer: optax.GradientTransformation, state, key, images, labels):
    """One step on uint8 images, every other time moved by up to a pixel along height and width."""
    params, optimizer_state = state
    before = [0] * (images.ndim - 3)  # the axis of the examples, and of clips that of time
    padded = jnp.pad(images, (*((0, 0) for _ in before), (1, 1), (1, 1), (0, 0)))
    how_far, whether = jax.random.split(key)
    moves = jax.random.bernoulli(whether)
    top, left = jnp.where(moves, jax.random.randint(how_far, (2,), 0, 3), 1)
    moved = jax.lax.dynamic_slice(padded, (*before, top, left, 0), images.shape)

    def loss(params):
        logits = extract(params, moved.astype(jnp.float32))["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state, params)
    return optax.apply_updates(params, updates), optimizer_state


def extract(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """Images or clips float32 [B, .., C] of 0..255 to "pool" [B, FEATURES], "logits" [B, K]."""
    num_classes = params["head"]["bias"].shape[0]
    pool, logits = _Network(num_classes).apply({"params": params}, images)
    return {"pool": pool, "logits": logits}


_jit_extract = jax.jit(extract)


def accuracy(params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images or clips of 0..255, B > 0 of them, that are read as their labels: 0..1."""
    right = 0
    for start in range(0, len(images), _BLOCK):
        block = np.asarray(images[start : start + _BLOCK], np.float32)
        read = np.argmax(_jit_extract(params, block)["logits"], axis=1)
        right += int(np.sum(read == labels[start : start + _BLOCK]))
    return right / len(images)


def fingerprint(images: np.ndarray, labels: np.ndarray, num_classes: int, seed: int = 0) -> str:
    """What the parameters follow from, as a SHA-256: the recipe and the arguments of `train`."""
    facts = RECIPE, images.shape, images.dtype.name, num_classes, seed
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(labels, np.int64))
    return digest.hexdigest()


def save(path: epath.PathLike, params: Params, fingerprint: str) -> None:
    """Writes the parameters and what they follow from as .npz, whole or not at all."""
    arrays = traverse_util.flatten_dict(params, sep="/")
    write_arrays(epath.Path(path), {"fingerprint": fingerprint, **arrays})


def load(path: epath.PathLike, fingerprint: str) -> Params | None:
    """Parameters that `save` wrote; None if there are none, or of another recipe or other data."""
    path = epath.Path(path)
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile):  # not a file of `save`
        return None
    if str(arrays.pop("fingerprint", "")) != fingerprint:
        return None
    return traverse_util.unflatten_dict(arrays, sep="/")
