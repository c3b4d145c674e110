"""What an example is conditioned on, beside its noise level.

A condition is a dict of arrays with a leading batch axis. Everywhere else it is a pytree that is
passed on, joined and sliced; only this file knows its entries:

    {}                                  nothing: an unconditional network
    {"label": int32 [B]}                a class in 0..num_classes-1, or NO_LABEL
    {"frames": float32 [B, c, H, W, C]} the frames before those that are denoised, scaled as x0 is
    {"sequence": float32 [B, n, d]}     embedded text, or any other tokens

and any of them together. Frames are not a part of xt: the network embeds them as clean tokens, so
that neither the loss nor a sampler knows that they are there. Each entry has its null here, and its
way of being hidden from the network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax import at_least_one
from rin_jax.network.layers import TOKENS, Array, Dtype, dense

Cond = Mapping[str, Any]  # of arrays [B, ...], or of their shapes
NO_LABEL = -1  # the label of an example without a class: its one-hot vector is zero
ENTRIES = ("label", "frames", "sequence")


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A condition that is a sequence of embedded tokens; the field `model.sequence`."""

    tokens: int  # how many
    width: int  # of a token that the network is given
    projected: bool  # by a dense layer to the width of where they go; else they must have it
    on_latents: bool  # whether they are among the latents; else they go where cond_route says

    def __post_init__(self):
        at_least_one("model.sequence", self, "tokens", "width")


def of_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The condition in a training batch."""
    return {name: batch[name] for name in ENTRIES if name in batch}


def of_labels(labels: Any, num_classes: int) -> dict[str, Any]:
    """The condition of class labels int [B]; none for a network that has no classes."""
    return {"label": labels} if num_classes else {}


def abstract(
    batch: int, num_classes: int, frames: tuple[int, ...] | None, sequence: Sequence | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a condition; `frames` (c, H, W, C), each None where there is none."""
    cond = of_labels(jax.ShapeDtypeStruct((batch,), jnp.int32), num_classes)
    if frames:
        cond["frames"] = jax.ShapeDtypeStruct((batch, *frames), jnp.float32)
    if sequence:
        shape = (batch, sequence.tokens, sequence.width)
        cond["sequence"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return cond


def null(cond: Cond) -> dict[str, Array]:
    """The condition that says nothing, for as many examples: no label, grey frames, zeros."""
    empty = {"label": NO_LABEL, "frames": 0, "sequence": 0}
    return {name: jnp.full_like(values, empty[name]) for name, values in cond.items()}


def drop(cond: Cond, keep: Array) -> dict[str, Array]:
    """`cond` where `keep` [B] is true, its null elsewhere."""

    def one(values, empty):
        return jnp.where(keep.reshape(-1, *(1,) * (values.ndim - 1)), values, empty)

    return jax.tree.map(one, dict(cond), null(cond))


def one_hot(cond: Cond, num_classes: int, dtype: Dtype) -> Array:
    """One-hot labels [B, num_classes]; NO_LABEL: zeros."""
    return jax.nn.one_hot(cond["label"], num_classes, dtype=dtype)


def label_token(cond: Cond, num_classes: int, width: int, dtype: Dtype) -> Array:
    """The class token [B, 1, width] of the module that calls this; NO_LABEL: its bias."""
    token = dense("label", width, dtype)(one_hot(cond, num_classes, dtype))[:, None]
    return nn.with_logical_constraint(token, TOKENS)


def sequence_tokens(cond: Cond, sequence: Sequence, width: int, dtype: Dtype) -> Array:
    """The tokens [B, n, width] of a sequence, for the module that calls this."""
    tokens = cond["sequence"].astype(dtype)
    if sequence.projected:
        tokens = dense("sequence", width, dtype)(tokens)
    return nn.with_logical_constraint(tokens, TOKENS)
