"""What a matrix unit does for the products of a compiled program, and how much of it is padding.

A unit of side s multiplies rows by a matrix [s, s]: the sum is padded to s, the axis that the
result has along its lanes (the fastest in its layout) to s as well, the other one to 8 rows. XLA
writes products for a TPU as convolutions, in which batch axes and heads are spatial axes.
"""

import math
import re

from rin_jax.runtime.program_text import ARRAY, Computation, Instruction

ROWS = 8  # of a tile of the matrix unit's other operand


def flops(computation: Computation, instruction: Instruction, side: int) -> tuple[float, float]:
    """(floating-point operations, the same with padding) of one instruction; zeros of others."""
    kinds = {"convolution": _convolution, "dot": _dot}
    if instruction.opcode not in kinds:
        return 0.0, 0.0
    types = [computation[operand].type for operand in instruction.operands]
    times, summed, lanes, rows = kinds[instruction.opcode](instruction, *types)
    padded = _up(summed, side) * _up(lanes, side) * _up(rows, ROWS)
    return 2.0 * times * summed * lanes * rows, 2.0 * times * padded


def _convolution(instruction: Instruction, left: str, right: str) -> tuple[int, int, int, int]:
    """(products, size of the sum, of the lanes, of the rows) that a convolution amounts to."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    sizes = [
        dict(zip(labels, shape(type_), strict=True))
        for labels, type_ in zip(found.groups(), (left, right, instruction.type), strict=True)
    ]
    times = 1
    for axis in (label for label in sizes[2] if label.isdigit()):
        times *= pairs(*(size[axis] for size in sizes), window(instruction.attributes, int(axis)))
    batch, features = sizes[2]["b"], sizes[2]["f"]
    along_lanes = found[3][minor(instruction.type)]
    lanes, rows = (batch, features) if along_lanes == "b" else (features, batch)
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    return times // int(groups[1] if groups else 1), sizes[1]["i"], lanes, rows


def _dot(instruction: Instruction, left: str, right: str) -> tuple[int, int, int, int]:
    """The same of a dot, whose result has batch axes, those of the left and those of the right."""
    a, b = shape(left), shape(right)
    batch, summed = (_axes(instruction, f"lhs_{kind}_dims") for kind in ("batch", "contracting"))
    times, k = (math.prod(a[axis] for axis in axes) for axes in (batch, summed))
    m, n = math.prod(a) // (times * k), math.prod(b) // (times * k)
    of_left = len(a) - len(summed)
    lanes, rows = (m, n) if minor(instruction.type) < of_left else (n, m)
    return times, k, lanes, rows


def _axes(instruction: Instruction, name: str) -> list[int]:
    found = re.search(rf"{name}={{([\d,]*)}}", instruction.attributes)
    return [int(axis) for axis in found[1].split(",") if axis] if found else []


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def shape(type_: str) -> list[int]:
    """Sizes of an array's axes."""
    return [int(size.strip("<=")) for size in ARRAY.match(type_)[2].split(",") if size]


def minor(type_: str) -> int:
    """The axis that is the fastest in an array's layout."""
    layout = re.match(r"\{(\d+)", ARRAY.match(type_)[3] or "")
    return int(layout[1]) if layout else len(shape(type_)) - 1


def window(attributes: str, axis: int) -> dict[str, tuple[int, ...]]:
    """What the window of a convolution says of a spatial axis: stride, pad and both dilations."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    said = dict(part.split("=") for part in found[1].split()) if found else {}
    defaults = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    parts = {name: said[name].split("x")[axis] if name in said else value
             for name, value in defaults.items()}  # fmt: skip
    return {name: tuple(map(int, value.split("_"))) for name, value in parts.items()}


def pairs(taken: int, kernel: int, given: int, window: dict[str, tuple[int, ...]]) -> int:
    """Pairs of a result and a place of the kernel that lie on an element and not on padding."""
    (stride,), (low, _) = window["stride"], window["pad"]
    (spread,), (step,) = window["lhs_dilate"], window["rhs_dilate"]
    places = (o * stride + k * step - low for o in range(given) for k in range(kernel))
    return sum(0 <= place <= (taken - 1) * spread and place % spread == 0 for place in places)
