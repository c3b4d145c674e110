"""What a forward pass of a RIN costs, counted from its attributes."""

from rin_jax.network.rin import RIN


def forward_flops(rin: RIN) -> int:
    """Floating-point operations of one forward pass on one image.

    Two for each multiply-add of the matrix products; elementwise work is not counted.
    """
    n, d, m, e = rin.num_tokens, rin.interface_dim, rin.num_latents, rin.latent_dim
    c, r = rin.cond_dim or d, rin.num_cond_tokens
    latent_mlp = m * 2 * rin.latent_mlp_ratio * e * e
    interface_mlp = 2 * rin.interface_mlp_ratio * d * d

    def cross(queries, width, context, context_width, mlp):
        a = min(width, context_width)
        return 2 * (queries * width + context * context_width + queries * context) * a + mlp

    written = n + r * (rin.cond_route == "write")
    read = cross(m, e, n + r * (rin.cond_route != "decoupled"), d, latent_mlp)
    if r and rin.cond_route == "decoupled":
        read += cross(m, e, r, c, latent_mlp)
    write = cross(written, d, m, e, written * interface_mlp)
    layer = 4 * m * e * e + 2 * m * m * e + latent_mlp
    pixels = rin.patch_size**2 * rin.image_shape[2]

    total = 2 * n * pixels * d  # stem and readout
    time, label = (
        e if on_latents else c for on_latents in (rin.time_on_latents, rin.label_on_latents)
    )
    total += (time // 4) * time + time * time + rin.num_classes * label
    total += latent_mlp * rin.latent_self_cond + n * interface_mlp * rin.interface_self_cond
    for depth in rin.depths:
        total += read + (depth * layer + write if depth else 0)
    return 2 * total


def training_flops(rin: RIN, self_cond: bool) -> int:
    """Floating-point operations of one training step on one image.

    The backward pass counts as two forward passes; self-conditioning adds one forward pass.
    What rematerialisation computes again is not counted.
    """
    return forward_flops(rin) * (4 if self_cond else 3)
