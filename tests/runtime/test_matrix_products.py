"""Products of compiled programs: their operations are exact, and padding follows the layout."""

import math

import jax
import jax.numpy as jnp
import pytest

from rin_jax.runtime import matrix_products, program_text
from rin_jax.runtime.compiled_programs import Program


def of_line(left: str, right: str, line: str, side: int = 128) -> tuple[float, float]:
    """What one product is counted as."""
    types = {"a": left, "b": right}
    text = [f"  %{name} = {type_} parameter(0)" for name, type_ in types.items()]
    computation = {i.name: i for i in map(program_text.parse_line, [*text, f"  {line}"])}
    return matrix_products.flops(computation, list(computation.values())[-1], side)


SPECS = "bik,bkj->bij", "bthd,bshd->bhts", "bhts,bshd->bthd", "ij,jk->ik"


@pytest.mark.parametrize("spec", SPECS)
def test_the_operations_are_those_of_the_sum(spec):
    sizes = {"b": 3, "i": 16, "j": 24, "k": 32, "t": 8, "s": 40, "h": 2, "d": 8}
    inputs = spec.split("->")[0]
    shapes = [tuple(sizes[axis] for axis in axes) for axes in inputs.split(",")]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(lambda a, b: jnp.einsum(spec, a, b)).lower(*arrays).compile()
    multiplied = math.prod(sizes[axis] for axis in set(inputs) - {","})
    flops, padded = Program(compiled.as_text(), 1).products(8)
    assert flops == 2 * multiplied == padded  # all sizes are multiples of 8
    flops, padded = Program(compiled.as_text(), 1).products(128)
    assert flops == 2 * multiplied < padded


def test_as_tpu_programs_write_them():
    """A dense layer; the gradient of one with 16 heads, which are a spatial axis; a batch of them.

    The first has nothing to pad. In the second the lanes of the result are its first axis or, in
    the other layout, a head of width 64. In the third the sum over a head's width is padded.
    """
    assert of_line(
        "bf16[32,128,1024]{2,1,0}", "bf16[1024,4096,1]{1,0,2}",
        "%y = bf16[32,128,4096]{2,1,0} convolution(%a, %b), window={size=1}, "
        "dim_labels=0bf_io0->0bf",
    ) == (2 * 32 * 128 * 1024 * 4096,) * 2  # fmt: skip
    gradient = (
        "%y = bf16[1024,16,64,1]{{{}}} convolution(%a, %b), "
        "window={{size=16x32 pad=15_15x0_0 rhs_reversal=1x0}}, dim_labels=1fb0_0o1i->b0f1"
    )
    arrays = "bf16[32,128,1024,1]{2,1,0,3}", "bf16[16,64,32,128]{1,3,2,0}"
    flops = 2 * 1024 * (16 * 64) * (32 * 128)
    assert of_line(*arrays, gradient.format("0,2,3,1")) == (flops, flops)
    assert of_line(*arrays, gradient.format("2,0,3,1")) == (flops, 2 * flops)
    batch = (
        "%y = f32[16,256,256]{2,1,0} convolution(%a, %b), "
        "window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf"
    )
    arrays = "bf16[16,256,64]{2,1,0}", "bf16[16,256,64]{2,1,0}"
    flops = 2 * 16 * 256 * 256 * 64
    assert of_line(*arrays, batch) == (flops, 2 * flops)
    assert of_line(*arrays, batch, side=256) == (flops, 4 * flops)


def test_what_is_no_product():
    assert of_line("f32[8]{0}", "f32[8]{0}", "%y = f32[8]{0} add(%a, %b)") == (0, 0)
