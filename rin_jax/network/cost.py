"""What a forward pass of a RIN costs, counted from its attributes."""

from rin_jax.network.rin import RIN


def forward_flops(rin: RIN) -> int:
    """Floating-point operations of one forward pass on one image.

    Two for each multiply-add of the matrix products; elementwise work is not counted.
    """
    n, d, m, e = rin.num_tokens, rin.interface_dim, rin.num_latents, rin.latent_dim
    a = min(d, e)
    latent_mlp = m * 2 * rin.latent_mlp_ratio * e * e
    interface_mlp = n * 2 * rin.interface_mlp_ratio * d * d
    attend = 2 * m * n * a
    read = m * e * a + 2 * n * d * a + attend + m * a * e + latent_mlp
    write = n * d * a + 2 * m * e * a + attend + n * a * d + interface_mlp
    layer = 4 * m * e * e + 2 * m * m * e + latent_mlp
    pixels = rin.patch_size**2 * rin.image_shape[2]

    total = 2 * n * pixels * d  # stem and readout
    total += (e // 4) * e + e * e + rin.num_classes * e
    total += latent_mlp * rin.latent_self_cond + interface_mlp * rin.interface_self_cond
    for depth in rin.depths:
        total += read + (depth * layer + write if depth else 0)
    return 2 * total


def training_flops(rin: RIN, self_cond: bool) -> int:
    """Floating-point operations of one training step on one image.

    The backward pass counts as two forward passes; self-conditioning adds one forward pass.
    What rematerialisation computes again is not counted.
    """
    return forward_flops(rin) * (4 if self_cond else 3)
