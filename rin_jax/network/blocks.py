"""A block of a RIN (its equations are in rin.py), and how layers are stacked and computed again.

Source: arXiv 2212.11972 section 2.2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax.network.layers import TOKENS, Array, CrossAttention, SelfAttentionLayer

# What the backward pass keeps of a layer instead of computing it again.
REMAT_POLICIES: dict[str, Callable | None] = {
    "full": None,  # nothing but the layer's input
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of projections
}


def scan_layers(body, length: int):
    """Lifts `body(module, carry) -> carry` to `length` layers with stacked parameters."""
    return nn.scan(
        lambda module, carry, _: (body(module, carry), None),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
    )


class RINBlock(nn.Module):
    """One read, `depth` compute layers, one write; depth 0 is a read alone.

    carry = (latents [B, M, E], interface [B, N, D]) -> the same. `cond_tokens` [B, 1 or 2, any]
    are read only: with the interface, or before it if `decoupled`.
    """

    depth: int
    num_heads: int
    routing_heads: int
    latent_mlp_ratio: int
    interface_mlp_ratio: int
    norm_context: bool
    decoupled: bool
    dropout: float
    drop_path: float
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], cond_tokens: Array | None, train: bool
    ) -> tuple[Array, Array]:
        latents, interface = (nn.with_logical_constraint(tokens, TOKENS) for tokens in carry)
        cross, layer = CrossAttention, SelfAttentionLayer
        if self.remat != "none":
            kept = {"prevent_cse": False, "policy": REMAT_POLICIES[self.remat]}
            cross, layer = nn.remat(cross, **kept), nn.remat(layer, static_argnums=(2,), **kept)

        def route(name, mlp_ratio):
            return cross(self.routing_heads, mlp_ratio, self.norm_context, self.dtype, name=name)

        context = interface
        if cond_tokens is not None and self.decoupled:
            latents = route("read_cond", self.latent_mlp_ratio)(latents, cond_tokens)
        elif cond_tokens is not None:
            context = jnp.concatenate([interface, cond_tokens], axis=1)
        latents = route("read", self.latent_mlp_ratio)(latents, context)
        if self.depth:
            compute = layer(
                self.num_heads, self.latent_mlp_ratio, self.dropout, self.drop_path, self.dtype,
                name="compute",
            )  # fmt: skip
            layers = scan_layers(
                lambda module, z: module(nn.with_logical_constraint(z, TOKENS), train), self.depth
            )
            latents, _ = layers(compute, latents, None)
            interface = route("write", self.interface_mlp_ratio)(interface, latents)
        return latents, interface
