"""Roofline of a compiled program: the time that a chip needs at least, by what it waits for.

    compute   (model + recomputed FLOPs of the matrix products) / peak
    memory    bytes to and from HBM, each fusion of the program one pass / bandwidth
    links     bytes sent over the slice's links, or between slices / bandwidth

A program takes at least the largest (all overlap) and about their sum where nothing overlaps.
"""

import math

from rin_jax.runtime.chips import Chip
from rin_jax.runtime.tpu_compiler import Compiled


def roofline(flops: float, result: Compiled, chip: Chip) -> dict[str, float]:
    """Seconds of a program on one chip, by what it waits for; `flops` are the chip's."""
    seconds = {
        "compute": flops / chip.peak_flops,
        "memory": result.traffic / chip.hbm_bandwidth,
        "links": result.sent(crosses=False) / chip.interconnect,
    }
    if between := result.sent(crosses=True):
        seconds["between slices"] = between / chip.network if chip.network else math.nan
    return seconds


def describe_times(
    name: str, seconds: dict[str, float], images: float, flops: float, peak: float
) -> str:
    """Times by what a program waits for; images/s and utilisation at their largest and sum."""
    parts = ", ".join(f"{part} {1e3 * value:.1f}" for part, value in seconds.items())
    best, worst = max(seconds.values()), sum(seconds.values())
    return (
        f"{name}, roofline in ms: {parts}; {1e3 * best:.1f} if all overlap, {1e3 * worst:.1f} if "
        f"nothing does: {images / best:,.0f} to {images / worst:,.0f} images/s, "
        f"{100 * flops / best / peak:.0f} to {100 * flops / worst / peak:.0f} % of peak"
    )


def describe_collectives(result: Compiled) -> str:
    """A line for each kind of collective, of those inside a slice and those between slices."""
    lines = []
    for kind, crosses in sorted({(c.kind, c.crosses) for c in result.collectives}):
        these = [c for c in result.collectives if (c.kind, c.crosses) == (kind, crosses)]
        lines.append(
            f"  {kind + (', between slices' if crosses else ''):34}"
            f"{sum(c.runs for c in these):6} times {sum(c.bytes for c in these) / 1e6:10,.1f} MB"
        )
    if result.unknown_loops:
        lines.append(
            f"  the program does not tell how often these loops run, here and below they count "
            f"once: {', '.join(result.unknown_loops)}"
        )
    return "\n".join(["sent by a chip:", *(lines or ["  nothing"])])


def describe_assumptions(chip: Chip) -> str:
    """What a roofline assumes of a chip."""
    network = f"{chip.network / 1e9:.1f}" if chip.network else "unknown"
    return (
        f"assumed for {chip.name}: {chip.peak_flops / 1e12:.0f} TFLOP/s bfloat16, "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s HBM, {chip.interconnect / 1e9:.0f} GB/s over all "
        f"links, {network} GB/s between slices; no latency, no input wait"
    )
