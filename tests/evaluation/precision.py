"""Which precision a feature network asks its products for.

A CPU multiplies float32 fully whatever is asked, so no figure of a test shows what a TPU would do.
"""

from collections.abc import Callable

import jax


def products(extract: Callable, params: dict, shape: tuple[int, ...]) -> list[str]:
    """Lines of the lowered program with a product or a convolution, for images of a shape."""
    images = jax.ShapeDtypeStruct(shape, "float32")
    lines = jax.jit(extract).lower(params, images).as_text().splitlines()
    return [x for x in lines if "stablehlo.dot_general" in x or "stablehlo.convolution" in x]


def full(line: str) -> bool:
    """Whether both operands of a product are asked to stay float32."""
    return line.count("HIGHEST") == 2
