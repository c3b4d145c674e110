"""The counted operations against those in the traced program."""

import jax
import jax.extend
import numpy as np
import pytest

from rin_jax.network import cost
from rin_jax.network.cost import forward_flops, training_flops
from tests.network.small import BATCH, SEQUENCE, VIDEO, inputs, param_shapes, small

CLIP = {
    "example_shape": (3, 4, 6, 2), "cond_frames": 2, "video": VIDEO | {"written": False},
    "interface_self_cond": False,
}  # fmt: skip


def matmul_flops(jaxpr, batch: int = BATCH) -> int:
    """Two for each multiply-add of a program's matrix products and convolutions, scans unrolled.

    Convolutions are sums of shifted images [batch, H, W, D], times an entry for each channel.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * int(terms) * equation.outvars[0].aval.size
        if equation.primitive.name == "slice":
            out = equation.outvars[0].aval
            if len(out.shape) == 4 and out.shape[0] == batch:  # for an entry of a kernel
                total += 2 * out.size
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                total += times * matmul_flops(value.jaxpr, batch)
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_self_cond": False, "interface_dim": 32, "routing_heads": 8},
        {},
        {"num_blocks": 4, "depth": (2, 2, 0, 1)},
        {"num_classes": 0, "latent_mlp_ratio": 3},
        {"interface_self_cond": False, "interface_mlp_ratio": 0},
        CLIP,
        CLIP | {"num_classes": 0, "cond_frames": 0, "interface_self_cond": True},
        CLIP | {"label_in_time": True, "video": VIDEO, "sequence": SEQUENCE},
        CLIP | {"cond_route": "decoupled", "sequence": SEQUENCE, "time_on_latents": False},
        {"example_shape": (9, 2), "patch_size": 1, "conv_size": 2, "cond_route": "write",
         "sequence": SEQUENCE, "depth": (1, 0)},
        {"sequence": SEQUENCE | {"on_latents": True}, "num_latents": 6},
    ],
)  # fmt: skip
def test_forward_flops_are_those_of_the_program(changes):
    rin = small(**changes)
    program = jax.make_jaxpr(rin.apply)({"params": param_shapes(rin)}, *inputs(rin))
    assert matmul_flops(program.jaxpr) == BATCH * forward_flops(rin)


def test_self_conditioning_adds_a_forward_pass():
    rin = small()
    assert training_flops(rin, True) - training_flops(rin, False) == forward_flops(rin)
    assert training_flops(rin, False) == 3 * forward_flops(rin)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/jvp(RIN)/while/body/blocks_0/read/attention/vmap(BTNH,BSNH->BNTS)/dot_general",
         "attention scores"),
        ("jit(step)/jvp(RIN)/blocks_0/write/attention/cond/branch_0_fun/shard_map/pallas_call",
         "attention scores"),
        ("jit(step)/jvp(RIN)/blocks_0/write/attention/query/btw,wf->btf/dot_general",
         "head projections"),
        ("jit(step)/jvp(RIN)/blocks_0/write/attention/query_norm/reduce_sum", "norms"),
        ("jit(step)/transpose(jvp(RIN))/blocks_0/write/attention/query/reduce_sum",
         "sums of gradients of biases"),
        ("jit(step)/transpose(jvp(RIN))/blocks_0/compute/ffn/hidden/dot_general", "MLPs"),
        ("jit(step)/transpose(jvp(RIN))/blocks_0/compute/ffn_norm/reduce_sum", "norms"),
        ("jit(step)/jvp(RIN)/while/body/jit(dynamic_update_index_in_dim)/dynamic_update_slice",
         "stacks of loops"),
        ("jit(step)/jvp(RIN)/readout/out/dot_general", "other of the network"),
        ("jit(step)/jvp()/reduce_sum", "loss"),
        ("jit(step)/jit(_where)/select_n", "optimizer, averages, draws"),
        ("jit(step)/jvp(cast_kernels)/convert_element_type", "casts of kernels"),
        ("", "copies, also ahead of use"),
    ],
)  # fmt: skip
def test_the_part_of_an_instruction(name, part):
    assert cost.part_of(name) == part
