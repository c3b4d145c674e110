"""What an example is conditioned on, beside its noise level.

A condition is a dict of arrays with a leading batch axis. Everywhere else it is a pytree that is
passed on, joined and sliced; only this file knows its entries:

    {}                       nothing: an unconditional network
    {"label": int32 [B]}     a class in 0..num_classes-1, or NO_LABEL

Conditioning frames of a video will be one more entry, not a part of xt: the network embeds them as
clean tokens, so that neither the loss nor a sampler knows that they are there. Embedded text is
another. Each entry has its null here, and its way of being hidden from the network.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax.network.layers import TOKENS, Array, Dtype, dense

Cond = Mapping[str, Any]  # of arrays [B, ...], or of their shapes
NO_LABEL = -1  # the label of an example without a class: its one-hot vector is zero
ENTRIES = ("label",)


def of_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The condition in a training batch."""
    return {name: batch[name] for name in ENTRIES if name in batch}


def of_labels(labels: Any, num_classes: int) -> dict[str, Any]:
    """The condition of class labels int [B]; none for a network that has no classes."""
    return {"label": labels} if num_classes else {}


def abstract(num_classes: int, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the condition of a network."""
    return of_labels(jax.ShapeDtypeStruct((batch,), jnp.int32), num_classes)


def null(cond: Cond) -> dict[str, Array]:
    """The condition that says nothing, for as many examples."""
    return {"label": jnp.full_like(cond["label"], NO_LABEL)} if cond else {}


def drop(cond: Cond, keep: Array) -> dict[str, Array]:
    """`cond` where `keep` [B] is true, its null elsewhere."""
    return {"label": jnp.where(keep, cond["label"], NO_LABEL)} if cond else {}


def tokens(cond: Cond, num_classes: int, width: int, dtype: Dtype) -> list[Array]:
    """Tokens [B, 1, width] of the module that calls this; NO_LABEL: the class token's bias."""
    if not num_classes:
        return []
    one_hot = jax.nn.one_hot(cond["label"], num_classes, dtype=dtype)
    token = dense("label", width, dtype)(one_hot)[:, None]
    return [nn.with_logical_constraint(token, TOKENS)]
