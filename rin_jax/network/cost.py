"""What a forward pass of a RIN costs, counted from its attributes."""

import collections
import math
import re

from rin_jax.network.rin import RIN

# Parts of a compiled step or sampler by the names of its instructions, the first that is found:
# flax names modules, JAX what it does with a function. What is fused has the name of its result.
PARTS = {
    "attention scores": r"/attention/(?!(query|key|value|out|query_norm|key_norm)/)",
    "norms": r"norm/",
    "sums of gradients of biases": r"transpose\(.*/(query|key|value|out|hidden)/reduce_sum",
    "head projections": r"/attention/",
    "MLPs": r"/ffn/",
    "stacks of loops": r"dynamic_(update_)?(index|slice)|/while(/body(/closed_call)?)?$",
    "other of the network": r"RIN",
    "casts of kernels": r"cast_kernels",
    "loss": r"jvp\(",
    "copies, also ahead of use": r"^(?!jit\()",
}
OTHERS = "optimizer, averages, draws"


def part_of(op_name: str) -> str:
    """The part of a program that an instruction belongs to: one of PARTS, or OTHERS."""
    return next((name for name, found in PARTS.items() if re.search(found, op_name)), OTHERS)


def multiply_adds(rin: RIN) -> collections.Counter:
    """Multiply-adds of the products of one forward pass on one example, by part.

    "outside" the blocks; inside them "scores" (of attention, with their sums of values), "ffn_out"
    (second matrix of an MLP) and all other "projections".
    """
    n, d, m, e = rin.num_tokens, rin.interface_dim, rin.num_latents, rin.latent_dim
    c, r = rin.outer_width, rin.num_cond_tokens
    if rin.sequence and not rin.sequence.on_latents and not rin.sequence.projected:
        c = rin.sequence.width
    written = rin.num_written
    if rin.cond_route == "write":
        written, r = written + r, 0
    r += rin.num_read_only

    def inner(width, other, heads):
        return min(width, other) // heads * heads

    apart = inner(e, rin.outer_width, rin.routing_heads)  # of the unit that reads cond tokens
    routed = inner(e, d, rin.routing_heads)
    count: collections.Counter = collections.Counter()

    def layer(queries, width, context, context_width, a, ratio, times=1):  # attention, then an MLP
        count["projections"] += times * 2 * (queries * width + context * context_width) * a
        count["scores"] += times * 2 * queries * context * a
        for matrix in ("projections", "ffn_out"):
            count[matrix] += times * queries * ratio * width * width

    for depth in rin.depths:
        if r and rin.cond_route == "decoupled":
            layer(m, e, r, c, apart, rin.latent_mlp_ratio)
        read = written + r * (rin.cond_route != "decoupled")
        layer(m, e, read, d, routed, rin.latent_mlp_ratio)
        layer(m, e, m, e, inner(e, e, rin.num_heads), rin.latent_mlp_ratio, times=depth)
        if depth:
            layer(written, d, m, e, routed, rin.interface_mlp_ratio)
            if rin.conv_size:
                count["projections"] += rin.num_written * d * (rin.conv_size**2 + d)

    values = math.prod(rin.patch) * rin.example_shape[-1]  # of a patch
    count["outside"] = (2 * n + rin.num_frame_tokens) * values * d  # stem and readout
    width = {name: e if on else rin.outer_width for name, (_, on) in rin.cond_tokens.items()}
    time, classes = width["time"], rin.num_classes
    count["outside"] += (time // 4) * time + time * time
    count["outside"] += classes * (time if rin.label_in_time else width.get("label", 0))
    if rin.sequence and rin.sequence.projected:
        count["outside"] += rin.sequence.tokens * rin.sequence.width * width["sequence"]
    count["outside"] += 2 * m * rin.latent_mlp_ratio * e * e * rin.latent_self_cond
    count["outside"] += 2 * n * rin.interface_mlp_ratio * d * d * rin.interface_self_cond
    return count


def forward_flops(rin: RIN) -> int:
    """Floating-point operations of the matrix products of one forward pass on one example."""
    return 2 * multiply_adds(rin).total()


def training_flops(rin: RIN, self_cond: bool) -> int:
    """Floating-point operations of one training step on one example.

    The backward pass counts as two forward passes; self-conditioning adds one forward pass.
    What rematerialisation computes again is not counted.
    """
    return forward_flops(rin) * (4 if self_cond else 3)


def recomputed_flops(rin: RIN) -> int:
    """Floating-point operations that rematerialisation adds to a training step on one example.

    The backward pass never needs the result of an MLP's second matrix.
    """
    parts = {"none": (), "dots": ("scores",), "full": ("scores", "projections")}[rin.remat]
    return 2 * sum(multiply_adds(rin)[part] for part in parts)
