"""What a forward pass of a RIN costs, counted from its attributes."""

import collections

from rin_jax.network.rin import RIN


def multiply_adds(rin: RIN) -> collections.Counter:
    """Multiply-adds of the matrix products of one forward pass on one image, by part.

    "outside" the blocks; inside them "scores" (of attention, with their sums of values), "ffn_out"
    (second matrix of an MLP) and all other "projections".
    """
    n, d, m, e = rin.num_tokens, rin.interface_dim, rin.num_latents, rin.latent_dim
    c, r = rin.cond_dim or d, rin.num_cond_tokens
    count: collections.Counter = collections.Counter()

    def layer(queries, width, context, context_width, ratio, times=1):  # attention, then an MLP
        a = min(width, context_width)
        count["projections"] += times * 2 * (queries * width + context * context_width) * a
        count["scores"] += times * 2 * queries * context * a
        for matrix in ("projections", "ffn_out"):
            count[matrix] += times * queries * ratio * width * width

    written = n + r * (rin.cond_route == "write")
    for depth in rin.depths:
        if r and rin.cond_route == "decoupled":
            layer(m, e, r, c, rin.latent_mlp_ratio)
        layer(m, e, n + r * (rin.cond_route != "decoupled"), d, rin.latent_mlp_ratio)
        layer(m, e, m, e, rin.latent_mlp_ratio, times=depth)
        if depth:
            layer(written, d, m, e, rin.interface_mlp_ratio)

    count["outside"] = 2 * n * rin.patch_size**2 * rin.example_shape[2] * d  # stem and readout
    time, label = (e if on else c for on in (rin.time_on_latents, rin.label_on_latents))
    count["outside"] += (time // 4) * time + time * time + rin.num_classes * label
    count["outside"] += 2 * m * rin.latent_mlp_ratio * e * e * rin.latent_self_cond
    count["outside"] += 2 * n * rin.interface_mlp_ratio * d * d * rin.interface_self_cond
    return count


def forward_flops(rin: RIN) -> int:
    """Floating-point operations of the matrix products of one forward pass on one image."""
    return 2 * multiply_adds(rin).total()


def training_flops(rin: RIN, self_cond: bool) -> int:
    """Floating-point operations of one training step on one image.

    The backward pass counts as two forward passes; self-conditioning adds one forward pass.
    What rematerialisation computes again is not counted.
    """
    return forward_flops(rin) * (4 if self_cond else 3)


def recomputed_flops(rin: RIN) -> int:
    """Floating-point operations that rematerialisation adds to a training step on one image.

    The backward pass never needs the result of an MLP's second matrix.
    """
    parts = {"none": (), "dots": ("scores",), "full": ("scores", "projections")}[rin.remat]
    return 2 * sum(multiply_adds(rin)[part] for part in parts)
