"""A plain transformer over all patches in the place of a RIN, to compare RIN with the usual design.

    python -m benchmarks.plain_transformer --config=FILE --workdir=DIR

It takes the flags of `rin_jax.main`, and trains, samples and measures in the same way. The network
has num_blocks x depth layers of self-attention, the same as RIN's, on all interface tokens and on
one token each for time and class. Their width is interface_dim, their heads are num_heads, their
MLPs have interface_mlp_ratio. What is left of the section `model` has no effect, but must be valid.
Nothing is carried from one denoising step to the next, so diffusion.self_cond_rate should be 0.
"""

import collections
import math
import sys
from pathlib import Path

# so that `python benchmarks/plain_transformer.py` finds the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax.numpy as jnp
from flax import linen as nn

from rin_jax import experiment, main
from rin_jax.network import conditioning, cost
from rin_jax.network.blocks import REMAT_POLICIES, scan_layers
from rin_jax.network.conditioning import Cond
from rin_jax.network.embeddings import ScalarEmbedding
from rin_jax.network.layers import Array, Dtype, SelfAttentionLayer
from rin_jax.network.rin import RIN
from rin_jax.network.tokenizer import PatchStem, Readout


class Block(nn.Module):
    """`depth` layers on tokens [B, N, W]."""

    depth: int
    layer: tuple[int | float, ...]  # what a layer is made of
    remat: str
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        kind = SelfAttentionLayer
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            kind = nn.remat(kind, static_argnums=(2,), prevent_cse=False, policy=policy)
        layer = kind(*self.layer, self.dtype, name="compute")
        stack = scan_layers(lambda module, x: module(x, train), self.depth)
        return stack(layer, tokens, None)[0]


class PlainTransformer(RIN):
    """Images and their class, with the attributes of a RIN."""

    @nn.compact
    def __call__(
        self, xt: Array, gamma: Array, cond: Cond, prev_latents: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, Array]:  # fmt: skip
        """As RIN's; the latents are zeros."""
        dtype, width = jnp.dtype(self.dtype), self.interface_dim
        patches, _ = PatchStem(
            self.patch, width, self.interface_positions, self.time_scale, None, dtype, name="stem"
        )(xt)
        tokens = [patches, ScalarEmbedding(width, self.time_scale, dtype, name="time")(gamma)]
        if self.num_classes:
            tokens.append(conditioning.label_token(cond, self.num_classes, width, dtype))
        rates = self.dropout, self.attention_dropout, self.drop_path
        layer = self.num_heads, self.interface_mlp_ratio, *rates
        block = Block(self.depth, layer, self.remat, dtype, name="blocks_0")
        stack = scan_layers(lambda module, x: module(x, train), self.num_blocks)
        tokens, _ = stack(block, jnp.concatenate(tokens, axis=1), None)
        readout = Readout(self.patch, self.example_shape, dtype, name="readout")
        latents = self.abstract_latents(xt.shape[0])
        return readout(tokens[:, : self.num_tokens]), jnp.zeros(latents.shape, latents.dtype)


def multiply_adds(net: RIN) -> collections.Counter:
    """Multiply-adds of one forward pass on one example, as `cost.multiply_adds` of a RIN."""
    width, layers = net.interface_dim, net.num_blocks * net.depth
    tokens = net.num_tokens + 1 + bool(net.num_classes)
    mlp = net.interface_mlp_ratio * width**2
    outside = 2 * net.num_tokens * math.prod(net.patch) * net.example_shape[-1] * width
    outside += (width // 4) * width + width**2 + net.num_classes * width
    return collections.Counter(
        projections=layers * tokens * (4 * width**2 + mlp),
        scores=layers * 2 * tokens**2 * width,
        ffn_out=layers * tokens * mlp,
        outside=outside,
    )


def forward_flops(net: RIN) -> int:
    """Floating-point operations of one forward pass on one example."""
    return 2 * multiply_adds(net).total()


def take_its_place() -> None:
    """From here on this process makes plain transformers where it would make RINs."""
    experiment.RIN = PlainTransformer
    experiment.DERIVED[PlainTransformer] = experiment.DERIVED[RIN]
    cost.multiply_adds = multiply_adds


if __name__ == "__main__":
    take_its_place()
    main.start()
