"""The Recurrent Interface Network: initialise tokens, route through blocks, read out.

    interface  X = LN(patches W) + positions
    latents    Z = [bank, time, class, sequence] + LN_0(MLP(Z_prev))       LN_0: zero scale at init
    block      Z = Z + MHA(LN(Z), X);  Z = Z + FFN(LN(Z))                  read
               Z = compute^depth(Z)                                        self-attention on latents
               X = X + MHA(LN(X), Z);  X = X + FFN(LN(X))                  write
               X = X + conv(X)                                             if conv_size
    output     unpatchify(LN(X) W)

An example is an image, a video or a sequence of tokens (`tokenizer.py`). Conditioning frames of a
video are clean tokens of the interface, after those of the frames that are denoised; what they are
read out as is thrown away.

Blocks of equal depth and the compute layers inside a block are applied by scan: their
parameters carry one leading axis for the block and one more for the layer.

Source: arXiv 2212.11972 section 2; details as in the authors' released code.
"""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from rin_jax import of_mapping
from rin_jax.network import conditioning, validation
from rin_jax.network.blocks import RINBlock, scan_layers
from rin_jax.network.conditioning import Cond, Sequence
from rin_jax.network.embeddings import PositionTable, ScalarEmbedding
from rin_jax.network.layers import MLP, Array, layer_norm
from rin_jax.network.tokenizer import PatchStem, Readout, Sizes, Video, grid_of

Latents = Array | dict[str, Array] | None  # None stands for zeros


class RIN(nn.Module):
    """A RIN for examples of one shape, under any conditions or none."""

    example_shape: Sizes  # (H, W, C) of an image, (T, H, W, C) of a video, (N, C) of a sequence
    cond_frames: int  # frames of a video that are given, before the T that are denoised
    num_classes: int  # 0 removes the class token
    patch_size: int  # side of a square patch; divides H and W; 1 for a sequence
    video: Video | None  # how videos are taken; None for other examples
    num_blocks: int  # blocks of read, compute and write
    depth: int | tuple[int, ...]  # compute layers of a block, or one number a block (0: read alone)
    num_latents: int  # M, the learned bank together with the cond tokens that are among the latents
    latent_dim: int  # E, the width of latents; a multiple of 8
    interface_dim: int  # D, the width of interface tokens
    num_heads: int  # heads of the compute layers; divides latent_dim
    routing_heads: int  # heads of read and write; divides the smaller of the two widths
    latent_mlp_ratio: int  # hidden width / width of the MLPs on latents
    interface_mlp_ratio: int  # hidden width / width of those on the interface; 0: none in write
    dropout: float  # rate of hidden units in the compute layers, in training
    attention_dropout: float  # rate of attention weights in the compute layers, in training
    drop_path: float  # rate of residual branches in the compute layers, in training
    conv_size: int  # side of the depthwise kernel of the interface's convolutions; 0: none
    conv_dropout: float  # rate of hidden units of the convolutions, in training
    latent_positions: str  # "learned", "sin_cos" or "sin_cos_plus_learned"
    interface_positions: str  # "learned", "sin_cos" or "sin_cos_plus_learned"
    latent_self_cond: bool  # whether the latents start from the previous step's
    interface_self_cond: bool  # whether the interface tokens start from those of the previous step
    norm_context: bool  # whether read and write normalise their context
    qk_norm: bool  # whether all attention normalises the queries and keys of each head
    time_on_latents: bool  # whether the time token is among the latents
    label_on_latents: bool  # whether the class token is among the latents
    label_in_time: bool  # whether there is no class token: the class joins the embedding of gamma
    sequence: Sequence | None  # a condition of embedded tokens; None: none
    cond_route: str  # where other cond tokens go: "read", "write" or "decoupled"
    cond_dim: int | None  # width of other cond tokens, if decoupled; None: interface_dim
    time_scale: float  # gamma is multiplied by this before its sinusoids; also the span of sin_cos
    remat: str  # "none", "full" or "dots": what the backward pass computes again
    dtype: str  # compute dtype; parameters, norms, softmax and the prediction are float32

    def __post_init__(self):
        for name, kind in (("video", Video), ("sequence", Sequence)):
            self.__dict__[name] = of_mapping(f"model.{name}", kind, getattr(self, name))
        validation.check(self)  # before any array exists
        super().__post_init__()

    @property
    def patch(self) -> Sizes:
        """Sides of a patch: none of a sequence, (rows, columns), (frames, rows, columns)."""
        square = (self.patch_size, self.patch_size)
        if self.video is not None:
            return (self.video.patch_frames, *square)
        return () if len(self.example_shape) == 2 else square

    @property
    def grid(self) -> Sizes:
        """Patches along the axes of an example; their product is N."""
        return grid_of(self.example_shape[:-1], self.patch)

    @property
    def num_tokens(self) -> int:
        """N, the number of interface tokens of an example, without conditioning frames."""
        return math.prod(self.grid)

    @property
    def num_frame_tokens(self) -> int:
        """Interface tokens of the conditioning frames."""
        return math.prod(grid_of((self.cond_frames, *self.example_shape[1:-1]), self.patch))

    @property
    def cond_tokens(self) -> dict[str, tuple[int, bool]]:
        """Tokens of time, class and sequence: how many, and whether among the latents."""
        tokens = {"time": (1, self.time_on_latents)}
        if self.num_classes and not self.label_in_time:
            tokens["label"] = (1, self.label_on_latents)
        if self.sequence:
            tokens["sequence"] = (self.sequence.tokens, self.sequence.on_latents)
        return tokens

    @property
    def num_cond_latents(self) -> int:
        """Latents beside the bank: cond tokens, as far as they are among them."""
        return sum(count for count, on_latents in self.cond_tokens.values() if on_latents)

    @property
    def num_cond_tokens(self) -> int:
        """Cond tokens that are not among the latents."""
        return sum(count for count, on_latents in self.cond_tokens.values() if not on_latents)

    @property
    def num_read_only(self) -> int:
        """Interface tokens of conditioning frames that are read and not written."""
        return 0 if self.video is None or self.video.written else self.num_frame_tokens

    @property
    def num_written(self) -> int:
        """Interface tokens of an example and its conditioning frames that are written."""
        return self.num_tokens + self.num_frame_tokens - self.num_read_only

    @property
    def outer_width(self) -> int:
        """Width of cond tokens that are not among the latents."""
        return self.interface_dim if self.cond_dim is None else self.cond_dim

    def abstract_cond(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the condition of a batch; `batch` may be symbolic."""
        frames = (self.cond_frames, *self.example_shape[1:]) if self.cond_frames else None
        return conditioning.abstract(batch, self.num_classes, frames, self.sequence)

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
        """One denoising pass: (prediction [B, *example_shape] float32, latents [B, M, E] float32).

        xt [B, *example_shape] is noisy, gamma [B] its signal power in [0, 1], `prev_latents` what
        the pass before returned. Dropout acts if `train` and needs a "dropout" key. With
        interface_self_cond the latents are a dict of "latents" and "interface" [B, N, D].
        """
        batch = xt.shape[0]
        chex.assert_shape(xt, (batch, *self.example_shape))
        chex.assert_shape(gamma, (batch,))
        chex.assert_trees_all_equal_shapes(dict(cond), self.abstract_cond(batch))
        dtype = jnp.dtype(self.dtype)
        if not self.interface_self_cond or prev_latents is None:
            prev_latents = {"latents": prev_latents, "interface": None}

        interface, frames = PatchStem(
            self.patch, self.interface_dim, self.interface_positions, self.time_scale, self.video,
            dtype, name="stem",
        )(xt, cond.get("frames"))  # fmt: skip
        if self.interface_self_cond:
            interface += self._from_previous("interface", prev_latents["interface"], interface)
        bank, cond_tokens = self._cond_tokens(gamma, cond)
        latents = jnp.concatenate(bank, axis=1)
        if self.latent_self_cond:
            latents += self._from_previous("latent", prev_latents["latents"], latents)

        written, read_only = [interface], []
        if frames is not None:
            (written if self.video.written else read_only).append(frames)
        (written if self.cond_route == "write" else read_only).extend(cond_tokens)
        interface = jnp.concatenate(written, axis=1)
        cond_tokens = jnp.concatenate(read_only, axis=1) if read_only else None

        carry = (latents, interface)
        cond_width = self.outer_width if self.cond_route == "decoupled" else 0
        for group, (depth, blocks) in enumerate(itertools.groupby(self.depths)):
            block = RINBlock(
                depth, self.num_heads, self.routing_heads, self.latent_mlp_ratio,
                self.interface_mlp_ratio, self.norm_context, self.qk_norm, cond_width,
                self.dropout, self.attention_dropout, self.drop_path, self.conv_size,
                self.conv_dropout, self.num_written, self.remat, dtype, name=f"blocks_{group}",
            )  # fmt: skip
            stack = scan_layers(lambda module, x: module(x, cond_tokens, train), len(list(blocks)))
            carry, _ = stack(block, carry, None)
        latents, interface = carry[0], carry[1][:, : self.num_tokens]

        prediction = Readout(self.patch, self.example_shape, dtype, name="readout")(interface)
        latents, interface = latents.astype(jnp.float32), interface.astype(jnp.float32)
        if self.interface_self_cond:
            return prediction, {"latents": latents, "interface": interface}
        return prediction, latents

    def _cond_tokens(self, gamma: Array, cond: Cond) -> tuple[list[Array], list[Array]]:
        """Learned bank and cond tokens: those among the latents, and the others."""
        dtype = jnp.dtype(self.dtype)
        size = self.num_latents - self.num_cond_latents
        bank = PositionTable(
            (size,), self.latent_dim, self.latent_positions, self.time_scale, name="latents"
        )()
        latents = [jnp.broadcast_to(bank.astype(dtype)[None], (*gamma.shape, *bank.shape))]
        others: list[Array] = []

        def place(on_latents: bool) -> tuple[int, list[Array]]:
            return (self.latent_dim, latents) if on_latents else (self.outer_width, others)

        width, tokens = place(self.time_on_latents)
        beside = None
        if self.num_classes and self.label_in_time:
            beside = conditioning.one_hot(cond, self.num_classes, dtype)
        time = ScalarEmbedding(width, self.time_scale, dtype, name="time")
        tokens.append(time(gamma, beside))
        if "label" in self.cond_tokens:
            width, tokens = place(self.label_on_latents)
            tokens.append(conditioning.label_token(cond, self.num_classes, width, dtype))
        if self.sequence:
            width, tokens = place(self.sequence.on_latents)
            tokens.append(conditioning.sequence_tokens(cond, self.sequence, width, dtype))
        return latents, others

    def _from_previous(self, name: str, previous: Array | None, like: Array) -> Array:
        """What the previous pass adds to the initial tokens; nothing at initialisation."""
        previous = jnp.zeros_like(like) if previous is None else previous.astype(like.dtype)
        chex.assert_equal_shape([previous, like])
        ratio = {"latent": self.latent_mlp_ratio, "interface": self.interface_mlp_ratio}[name]
        projected = MLP(ratio, like.dtype, name=f"prev_{name}_mlp")(previous)
        return layer_norm(f"prev_{name}_norm", like.dtype, zero_scale=True)(projected)
