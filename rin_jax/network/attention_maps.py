"""Where the latents read: the attention of each block's read over the patches of an example.

arXiv 2212.11972 section 4.3 shows that a RIN reads most where the image has detail.
"""

import jax
import jax.numpy as jnp

from rin_jax.network.conditioning import Cond
from rin_jax.network.rin import RIN

Array = jax.Array


def apply_with_reads(
    rin: RIN, params: dict, xt: Array, gamma: Array, cond: Cond, prev_latents
) -> tuple[Array, Array, Array]:
    """One denoising pass that also tells what was read: (prediction, latents, reads).

    reads [B, blocks, *rin.grid], of an image [B, blocks, H / P, W / P]: the share of the attention
    that each patch gets, mean over latents and heads. A block's shares add up to 1, or less if it
    reads cond tokens or conditioning frames too.
    """
    (prediction, latents), state = rin.apply(
        {"params": params}, xt, gamma, cond, prev_latents, mutable=["intermediates"]
    )
    groups = state["intermediates"]  # of blocks: "blocks_0", "blocks_1", ...
    reads = [groups[f"blocks_{i}"]["read"]["attention"] for i in range(len(groups))]
    weights = jnp.concatenate([read["weights"][0] for read in reads])
    shares = weights.mean(2)[..., : rin.num_tokens].swapaxes(0, 1)
    return prediction, latents, shares.reshape(*shares.shape[:2], *rin.grid)
