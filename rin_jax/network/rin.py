"""The Recurrent Interface Network: initialise tokens, route through blocks, read out.

    interface  X = LN(patches W) + positions
    latents    Z = [bank, time token, class token] + LN_0(MLP(Z_prev))     LN_0: zero scale at init
    block      Z = Z + MHA(LN(Z), X);  Z = Z + FFN(LN(Z))                  read
               Z = compute^depth(Z)                                        self-attention on latents
               X = X + MHA(LN(X), Z);  X = X + FFN(LN(X))                  write
    output     unpatchify(LN(X) W)

Blocks of equal depth and the compute layers inside a block are applied by scan: their
parameters carry one leading axis for the block and one more for the layer.

Source: arXiv 2212.11972 section 2; details as in the authors' released code.
"""

import itertools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax.network.layers import (
    MLP,
    TOKENS,
    Array,
    CrossAttention,
    PositionTable,
    ScalarEmbedding,
    SelfAttentionLayer,
    dense,
    layer_norm,
)
from rin_jax.network.tokenizer import PatchStem, Readout
from rin_jax.network.validation import check

NO_LABEL = -1  # the label of an example without a class: its one-hot vector is zero

# What the backward pass keeps of a layer instead of computing it again.
REMAT_POLICIES: dict[str, Callable | None] = {
    "full": None,  # nothing but the layer's input
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of projections
}


# Where cond tokens go that are not among the latents.
COND_ROUTES = (
    "read",  # read together with the interface, never written
    "write",  # join the interface: read and written
    "decoupled",  # read first, by a unit of their own
)


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
            policy = REMAT_POLICIES[self.remat]
            cross = nn.remat(cross, prevent_cse=False, policy=policy)
            layer = nn.remat(layer, prevent_cse=False, policy=policy, static_argnums=(2,))

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
                self.num_heads,
                self.latent_mlp_ratio,
                self.dropout,
                self.drop_path,
                self.dtype,
                name="compute",
            )
            layers = scan_layers(
                lambda module, z: module(nn.with_logical_constraint(z, TOKENS), train), self.depth
            )
            latents, _ = layers(compute, latents, None)
            interface = route("write", self.interface_mlp_ratio)(interface, latents)
        return latents, interface


class RIN(nn.Module):
    """Class-conditional (or, with num_classes 0, unconditional) image RIN.

    Attributes:
      image_shape: (H, W, C) of the images.
      num_classes: number of classes; 0 removes the class token.
      patch_size: side of a square patch; divides H and W.
      num_blocks: number of read / compute / write blocks.
      depth: compute layers in a block, or one number for each block (0: read alone).
      num_latents: M, the learned bank together with the time token and the class token.
      latent_dim: E, a multiple of 8 and of num_heads.
      interface_dim: D.
      num_heads: heads of the compute layers.
      routing_heads: heads of read and write; divides min(E, D).
      latent_mlp_ratio, interface_mlp_ratio: hidden width / width; interface 0: no MLP in write.
      latent_positions, interface_positions: "learned", "sin_cos" or "sin_cos_plus_learned".
      latent_self_cond: whether the latents start from the previous step's.
      interface_self_cond: whether the interface tokens do too.
      norm_context: whether read and write normalise their context.
      time_on_latents, label_on_latents: whether these tokens are among the latents.
      cond_route: "read", "write" or "decoupled": what happens to those that are not.
      cond_dim: width of those that are not, if decoupled; else it is interface_dim.
      time_scale: gamma is multiplied by this before its sinusoids; also the span of sin_cos.
      dropout, drop_path: rates in the compute layers, in training.
      remat: "none", "full" or "dots": what the backward pass computes again.
      dtype: compute dtype; parameters, norms, softmax and the prediction are float32.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    patch_size: int
    num_blocks: int
    depth: int | tuple[int, ...]
    num_latents: int
    latent_dim: int
    interface_dim: int
    num_heads: int
    routing_heads: int
    latent_mlp_ratio: int
    interface_mlp_ratio: int
    dropout: float = 0.0
    drop_path: float = 0.0
    latent_positions: str = "learned"
    interface_positions: str = "learned"
    latent_self_cond: bool = True
    interface_self_cond: bool = False
    norm_context: bool = False
    time_on_latents: bool = True
    label_on_latents: bool = True
    cond_route: str = "read"
    cond_dim: int | None = None
    time_scale: float = 1000.0
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        check(self, remat=("none", *REMAT_POLICIES), cond_routes=COND_ROUTES)
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """N, the number of interface tokens."""
        height, width, _ = self.image_shape
        return (height // self.patch_size) * (width // self.patch_size)

    @property
    def num_cond_latents(self) -> int:
        """Latents beside the bank: time and class token, as far as they are among them."""
        return self.time_on_latents + (self.label_on_latents and self.num_classes > 0)

    @property
    def num_cond_tokens(self) -> int:
        """Time and class tokens that are not among the latents."""
        return 1 + (self.num_classes > 0) - self.num_cond_latents

    @property
    def depths(self) -> tuple[int, ...]:
        """Compute layers of each block."""
        depths = (self.depth,) * self.num_blocks if isinstance(self.depth, int) else self.depth
        return tuple(depths)

    @nn.compact
    def __call__(
        self,
        xt: Array,
        gamma: Array,
        labels: Array | None = None,
        prev_latents: Array | dict[str, Array] | None = None,
        train: bool = False,
    ) -> tuple[Array, Array | dict[str, Array]]:
        """One denoising pass.

        Args:
          xt: noisy images [B, H, W, C].
          gamma: signal power [B] in [0, 1].
          labels: int32 [B] in 0..num_classes-1, or NO_LABEL; None if num_classes is 0.
          prev_latents: the latents that the pass before returned; None stands for zeros.
          train: whether dropout acts (needs a "dropout" key).

        Returns:
          (prediction [B, H, W, C] float32, latents [B, M, E] float32); with
          interface_self_cond the latents are a dict of "latents" and "interface" [B, N, D].
        """
        batch = xt.shape[0]
        chex.assert_shape(xt, (batch, *self.image_shape))
        chex.assert_shape(gamma, (batch,))
        dtype = jnp.dtype(self.dtype)
        if not self.interface_self_cond:
            prev_latents = {"latents": prev_latents, "interface": None}
        elif prev_latents is None:
            prev_latents = {"latents": None, "interface": None}

        interface = PatchStem(
            self.patch_size,
            self.interface_dim,
            self.interface_positions,
            self.time_scale,
            dtype,
            name="stem",
        )(xt)
        if self.interface_self_cond:
            interface += self._from_previous(
                "interface", prev_latents["interface"], interface, self.interface_mlp_ratio
            )
        bank, cond_tokens = self._cond_tokens(gamma, labels)
        latents = jnp.concatenate(bank, axis=1)
        if self.latent_self_cond:
            latents += self._from_previous(
                "latent", prev_latents["latents"], latents, self.latent_mlp_ratio
            )

        cond_tokens = jnp.concatenate(cond_tokens, axis=1) if cond_tokens else None
        if cond_tokens is not None and self.cond_route == "write":
            interface = jnp.concatenate([interface, cond_tokens], axis=1)
            cond_tokens = None

        carry = (latents, interface)
        for group, (depth, blocks) in enumerate(itertools.groupby(self.depths)):
            block = RINBlock(
                depth,
                self.num_heads,
                self.routing_heads,
                self.latent_mlp_ratio,
                self.interface_mlp_ratio,
                self.norm_context,
                self.cond_route == "decoupled",
                self.dropout,
                self.drop_path,
                self.remat,
                dtype,
                name=f"blocks_{group}",
            )
            stack = scan_layers(lambda module, x: module(x, cond_tokens, train), len(list(blocks)))
            carry, _ = stack(block, carry, None)
        latents, interface = carry[0], carry[1][:, : self.num_tokens]

        prediction = Readout(self.patch_size, self.image_shape, dtype, name="readout")(interface)
        latents, interface = latents.astype(jnp.float32), interface.astype(jnp.float32)
        if self.interface_self_cond:
            return prediction, {"latents": latents, "interface": interface}
        return prediction, latents

    def _cond_tokens(
        self, gamma: Array, labels: Array | None
    ) -> tuple[list[Array], list[Array]]:
        """Learned bank, time token and class token: those among the latents, and the others."""
        dtype = jnp.dtype(self.dtype)
        bank = PositionTable(
            (self.num_latents - self.num_cond_latents,),
            self.latent_dim,
            self.latent_positions,
            self.time_scale,
            name="latents",
        )()
        batch = gamma.shape[0]
        latents = [jnp.broadcast_to(bank.astype(dtype)[None], (batch, *bank.shape))]
        others: list[Array] = []

        def width(on_latents: bool) -> int:
            return self.latent_dim if on_latents else self.cond_dim or self.interface_dim

        time = ScalarEmbedding(width(self.time_on_latents), self.time_scale, dtype, name="time")
        (latents if self.time_on_latents else others).append(time(gamma))
        if self.num_classes:
            chex.assert_shape(labels, (batch,))
            one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=dtype)
            label = dense("label", width(self.label_on_latents), dtype)(one_hot)[:, None]
            label = nn.with_logical_constraint(label, TOKENS)
            (latents if self.label_on_latents else others).append(label)
        return latents, others

    def _from_previous(self, name: str, previous: Array | None, like: Array, ratio: int) -> Array:
        """What the previous pass adds to the initial tokens; nothing at initialisation."""
        previous = jnp.zeros_like(like) if previous is None else previous.astype(like.dtype)
        chex.assert_equal_shape([previous, like])
        projected = MLP(ratio, like.dtype, name=f"prev_{name}_mlp")(previous)
        return layer_norm(f"prev_{name}_norm", like.dtype, zero_scale=True)(projected)
