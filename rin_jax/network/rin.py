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

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax import ConfigError, one_of
from rin_jax.network import conditioning
from rin_jax.network.blocks import REMAT_POLICIES, RINBlock, scan_layers
from rin_jax.network.conditioning import Cond
from rin_jax.network.layers import MLP, Array, PositionTable, ScalarEmbedding, layer_norm
from rin_jax.network.tokenizer import PatchStem, Readout

# Where cond tokens go that are not among the latents.
COND_ROUTES = (
    "read",  # read together with the interface, never written
    "write",  # join the interface: read and written
    "decoupled",  # read first, by a unit of their own
)
Latents = Array | dict[str, Array] | None  # None stands for zeros
INT32_LIMIT = 2**31


class RIN(nn.Module):
    """Class-conditional (or, with num_classes 0, unconditional) image RIN."""

    example_shape: tuple[int, int, int]  # (H, W, C) of an image
    num_classes: int  # 0 removes the class token
    patch_size: int  # side of a square patch; divides H and W
    num_blocks: int  # of read, compute and write
    depth: int | tuple[int, ...]  # compute layers of a block, or one number a block (0: read alone)
    num_latents: int  # M, the learned bank together with the time token and the class token
    latent_dim: int  # E, a multiple of 8 and of num_heads
    interface_dim: int  # D
    num_heads: int  # of the compute layers
    routing_heads: int  # of read and write; divides min(E, D)
    latent_mlp_ratio: int  # hidden width / width
    interface_mlp_ratio: int  # hidden width / width; 0: no MLP in write
    dropout: float  # rate of hidden units in the compute layers, in training
    drop_path: float  # rate of branches there, in training
    latent_positions: str  # "learned", "sin_cos" or "sin_cos_plus_learned"
    interface_positions: str  # one of the same
    latent_self_cond: bool  # whether the latents start from the previous step's
    interface_self_cond: bool  # whether the interface tokens do too
    norm_context: bool  # whether read and write normalise their context
    time_on_latents: bool  # whether the time token is among the latents
    label_on_latents: bool  # whether the class token is
    cond_route: str  # "read", "write" or "decoupled": what happens to those that are not
    cond_dim: int | None  # width of those that are not, if decoupled; else it is interface_dim
    time_scale: float  # gamma is multiplied by this before its sinusoids; also the span of sin_cos
    remat: str  # "none", "full" or "dots": what the backward pass computes again
    dtype: str  # compute dtype; parameters, norms, softmax and the prediction are float32

    def __post_init__(self):
        check(self)  # before any array exists
        super().__post_init__()

    @property
    def num_tokens(self) -> int:
        """N, the number of interface tokens."""
        height, width, _ = self.example_shape
        return (height // self.patch_size) * (width // self.patch_size)

    @property
    def num_cond_latents(self) -> int:
        """Latents beside the bank: time and class token, as far as they are among them."""
        return self.time_on_latents + (self.label_on_latents and self.num_classes > 0)

    @property
    def num_cond_tokens(self) -> int:
        """Time and class tokens that are not among the latents."""
        return 1 + (self.num_classes > 0) - self.num_cond_latents

    def abstract_latents(self, batch: int) -> jax.ShapeDtypeStruct | dict:
        """Shapes of the latents that a pass takes and returns; `batch` may be symbolic."""
        latents = jax.ShapeDtypeStruct((batch, self.num_latents, self.latent_dim), jnp.float32)
        if not self.interface_self_cond:
            return latents
        interface = jax.ShapeDtypeStruct((batch, self.num_tokens, self.interface_dim), jnp.float32)
        return {"latents": latents, "interface": interface}

    @property
    def depths(self) -> tuple[int, ...]:
        """Compute layers of each block."""
        one = isinstance(self.depth, int)
        return (self.depth,) * self.num_blocks if one else tuple(self.depth)

    @nn.compact
    def __call__(
        self, xt: Array, gamma: Array, cond: Cond, prev_latents: Latents = None, train: bool = False
    ) -> tuple[Array, Latents]:
        """One denoising pass: (prediction [B, H, W, C] float32, latents [B, M, E] float32).

        xt [B, *example_shape] is noisy, gamma [B] its signal power in [0, 1], `prev_latents` what
        the pass before returned. Dropout acts if `train` and needs a "dropout" key. With
        interface_self_cond the latents are a dict of "latents" and "interface" [B, N, D].
        """
        batch = xt.shape[0]
        chex.assert_shape(xt, (batch, *self.example_shape))
        chex.assert_shape(gamma, (batch,))
        chex.assert_trees_all_equal_shapes(cond, conditioning.abstract(self.num_classes, batch))
        dtype = jnp.dtype(self.dtype)
        if not self.interface_self_cond or prev_latents is None:
            prev_latents = {"latents": prev_latents, "interface": None}

        interface = PatchStem(
            self.patch_size, self.interface_dim, self.interface_positions, self.time_scale, dtype,
            name="stem",
        )(xt)  # fmt: skip
        if self.interface_self_cond:
            interface += self._from_previous("interface", prev_latents["interface"], interface)
        bank, cond_tokens = self._cond_tokens(gamma, cond)
        latents = jnp.concatenate(bank, axis=1)
        if self.latent_self_cond:
            latents += self._from_previous("latent", prev_latents["latents"], latents)

        cond_tokens = jnp.concatenate(cond_tokens, axis=1) if cond_tokens else None
        if cond_tokens is not None and self.cond_route == "write":
            interface = jnp.concatenate([interface, cond_tokens], axis=1)
            cond_tokens = None

        carry = (latents, interface)
        for group, (depth, blocks) in enumerate(itertools.groupby(self.depths)):
            block = RINBlock(
                depth, self.num_heads, self.routing_heads, self.latent_mlp_ratio,
                self.interface_mlp_ratio, self.norm_context, self.cond_route == "decoupled",
                self.dropout, self.drop_path, self.remat, dtype, name=f"blocks_{group}",
            )  # fmt: skip
            stack = scan_layers(lambda module, x: module(x, cond_tokens, train), len(list(blocks)))
            carry, _ = stack(block, carry, None)
        latents, interface = carry[0], carry[1][:, : self.num_tokens]

        prediction = Readout(self.patch_size, self.example_shape, dtype, name="readout")(interface)
        latents, interface = latents.astype(jnp.float32), interface.astype(jnp.float32)
        if self.interface_self_cond:
            return prediction, {"latents": latents, "interface": interface}
        return prediction, latents

    def _cond_tokens(self, gamma: Array, cond: Cond) -> tuple[list[Array], list[Array]]:
        """Learned bank, time token and class token: those among the latents, and the others."""
        dtype = jnp.dtype(self.dtype)
        size = self.num_latents - self.num_cond_latents
        bank = PositionTable(
            (size,), self.latent_dim, self.latent_positions, self.time_scale, name="latents"
        )()
        latents = [jnp.broadcast_to(bank.astype(dtype)[None], (*gamma.shape, *bank.shape))]
        others: list[Array] = []

        def width(on_latents: bool) -> int:
            return self.latent_dim if on_latents else self.cond_dim or self.interface_dim

        time = ScalarEmbedding(width(self.time_on_latents), self.time_scale, dtype, name="time")
        (latents if self.time_on_latents else others).append(time(gamma))
        cond_width = width(self.label_on_latents)
        tokens = conditioning.tokens(cond, self.num_classes, cond_width, dtype)
        (latents if self.label_on_latents else others).extend(tokens)
        return latents, others

    def _from_previous(self, name: str, previous: Array | None, like: Array) -> Array:
        """What the previous pass adds to the initial tokens; nothing at initialisation."""
        previous = jnp.zeros_like(like) if previous is None else previous.astype(like.dtype)
        chex.assert_equal_shape([previous, like])
        ratio = {"latent": self.latent_mlp_ratio, "interface": self.interface_mlp_ratio}[name]
        projected = MLP(ratio, like.dtype, name=f"prev_{name}_mlp")(previous)
        return layer_norm(f"prev_{name}_norm", like.dtype, zero_scale=True)(projected)


def check(rin: RIN) -> None:
    """Raises ConfigError, naming fields and values, if the attributes of a RIN disagree."""
    height, width, channels = rin.example_shape
    names = (
        "patch_size", "num_blocks", "num_latents", "latent_dim", "interface_dim", "num_heads",
        "routing_heads", "latent_mlp_ratio",
    )  # fmt: skip
    sizes = {name: getattr(rin, name) for name in names}
    sizes |= {"image size": min(height, width), "channels": channels}
    for name, value in sizes.items():
        if not 1 <= value < INT32_LIMIT:
            raise ConfigError(f"{name} is {value}; it must be between 1 and {INT32_LIMIT - 1}.")
    if not 0 <= rin.num_classes < INT32_LIMIT:
        raise ConfigError(
            f"num_classes is {rin.num_classes}; labels are int32, so it must be between 0 "
            f"(unconditional) and {INT32_LIMIT - 1}."
        )
    if rin.interface_mlp_ratio < (1 if rin.interface_self_cond else 0):
        raise ConfigError(
            f"model.interface_mlp_ratio is {rin.interface_mlp_ratio}; it must not be negative, and "
            "at least 1 if interface_self_cond is True."
        )
    if height % rin.patch_size or width % rin.patch_size:
        raise ConfigError(
            f"model.patch_size {rin.patch_size} does not divide the image size {height} x {width}; "
            "choose a divisor, or another data.image_size."
        )
    if rin.num_latents <= rin.num_cond_latents:
        raise ConfigError(
            f"model.num_latents is {rin.num_latents}, but {rin.num_cond_latents} of the latents "
            "are the time and class tokens; it must be larger."
        )
    routed = min(rin.latent_dim, rin.interface_dim)
    for field, heads, name, width in (
        ("num_heads", rin.num_heads, "latent_dim", rin.latent_dim),
        ("routing_heads", rin.routing_heads, "min(latent_dim, interface_dim)", routed),
    ):
        if width % heads:
            raise ConfigError(
                f"model.{field} {heads} does not divide {name} {width}; choose a divisor."
            )
    joined = rin.num_cond_tokens > 0 and rin.cond_route != "decoupled"
    if joined and rin.cond_dim not in (None, rin.interface_dim):
        raise ConfigError(
            f"model.cond_dim is {rin.cond_dim} and interface_dim {rin.interface_dim}, but with "
            f"cond_route {rin.cond_route!r} they must be equal; leave cond_dim unset."
        )
    time_width = ("latent_dim",) if rin.time_on_latents else ("cond_dim", "interface_dim")
    name, value = next((n, v) for n in time_width if (v := getattr(rin, n)) is not None)
    if value % 8:
        raise ConfigError(f"model.{name} is {value}; the embedding of gamma needs a multiple of 8.")
    if not isinstance(rin.depth, int) and len(rin.depth) != rin.num_blocks:
        raise ConfigError(
            f"model.depth lists {len(rin.depth)} blocks, but model.num_blocks is {rin.num_blocks}."
        )
    if min(rin.depths) < 0:
        raise ConfigError(f"model.depth is {rin.depth}; it cannot be negative.")
    for name, rate in (("dropout", rin.dropout), ("drop_path", rin.drop_path)):
        if not 0 <= rate < 1:
            raise ConfigError(f"model.{name} is {rate}; it must be in [0, 1).")
    kinds = ("learned", "sin_cos", "sin_cos_plus_learned")
    one_of("model.latent_positions", rin.latent_positions, kinds)
    one_of("model.interface_positions", rin.interface_positions, kinds)
    one_of("model.remat", rin.remat, ("none", *REMAT_POLICIES))
    one_of("model.cond_route", rin.cond_route, COND_ROUTES)
    one_of("model.dtype", rin.dtype, ("float32", "bfloat16"))
    if rin.interface_positions != "learned" and rin.interface_dim % 4:
        raise ConfigError(
            f"model.interface_dim is {rin.interface_dim}; sin_cos positions need a multiple of 4."
        )
