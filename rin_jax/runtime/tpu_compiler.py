"""The TPU compiler (package libtpu) on a machine without a TPU, and what it says of a program.

Its roofline is the time that a chip needs at least, by what it waits for:

    compute   (model + recomputed FLOPs of the matrix products) / peak
    memory    bytes to and from HBM, each fusion of the program one pass / bandwidth
    links     bytes sent over the slice's links, or between slices / bandwidth

A program takes at least the largest (all overlap) and about their sum where nothing overlaps.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable

import jax

from rin_jax import ConfigError
from rin_jax.runtime import chips
from rin_jax.runtime.chips import GIB, Chip
from rin_jax.runtime.compiled_programs import Collective, Part, Program, Schedule


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for one chip; if it does not fit, `used` alone."""

    fits: bool  # into memory
    used: float  # bytes of memory that it needs at once; if it does not fit, of temporaries alone
    capacity: float  # bytes of memory that it may have, as documented or as the compiler says
    temporary: float = 0.0  # bytes beside arguments and results
    collectives: tuple[Collective, ...] = ()  # what the chip sends
    traffic: float = 0.0  # bytes to and from memory
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    products: tuple[float, float] = 0.0, 0.0  # `Program.products`
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)  # `Program.parts`
    unknown_loops: tuple[str, ...] = ()  # loops that count as one run in the last three

    def verdict(self) -> str:
        """What it needs of what there is."""
        needed = f"{self.used / GIB:.2f} of {self.capacity / GIB:.2f} GiB"
        return f"{needed}, fits" if self.fits else f"does not fit: {needed}"

    def seconds(self, chip: Chip) -> float:
        """Time by the compiler's cycles, with kernels at the peak; NaN if it tells no cycles."""
        schedule = self.schedule
        own = schedule.cycles / chip.clock if schedule.cycles else math.nan
        return own + schedule.kernel_flops / chip.peak_flops

    def sent(self, crosses: bool) -> float:
        """Bytes that the chip sends inside its slice, or to other slices."""
        return sum(c.bytes for c in self.collectives if c.crosses == crosses)


def topology_devices(topology: str, num_slices: int) -> list[jax.Device]:
    """Stand-ins for the chips of slices; ConfigError if libtpu is missing, or the shape unknown."""
    if num_slices < 1:
        raise ConfigError(f"--num_slices is {num_slices}; it must be at least 1.")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--mode=plan needs the TPU compiler: pip install 'jax[tpu]' (it needs no TPU)."
        ) from error
    from jax.experimental import topologies

    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),  # do not ask a cloud where in a slice this machine is
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # nothing runs on a chip: two plans may run at once
    ):
        os.environ.setdefault(name, value)
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **slices).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"the TPU compiler does not take --topology {topology!r}: "
            f"{str(error).splitlines()[0]}\nknown are\n{chips.known_topologies()}"
        ) from error


def compiled(
    compile_: Callable[[], jax.stages.Compiled], num_devices: int, num_slices: int, chip: Chip
) -> Compiled:
    """Runs `compile_` and reads the result; too much memory is a result too."""
    try:
        program = compile_()
    except jax.errors.JaxRuntimeError as error:
        used, capacity = needed_memory(str(error))
        if used is None:
            raise
        return Compiled(False, used, capacity or chip.hbm_bytes)
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    used += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    if used > chip.hbm_bytes:  # the compiler itself counts the temporaries alone
        return Compiled(False, used, chip.hbm_bytes)
    text = Program(program.as_text(), num_devices, num_slices)
    return Compiled(
        fits=True, used=used, capacity=chip.hbm_bytes, temporary=memory.temp_size_in_bytes,
        collectives=tuple(text.collectives()), traffic=text.memory_traffic(),
        schedule=text.schedule(), products=text.products(chip.matrix_unit), parts=text.parts(),
        unknown_loops=tuple(text.unknown_loops()),
    )  # fmt: skip


def needed_memory(message: str) -> tuple[float | None, float | None]:
    """(bytes needed, bytes there are) of the compiler's message; (None, None) if it is another."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"required for [^(]*\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    ):
        if found := re.search(pattern, message):
            used, unit, capacity, capacity_unit = found.groups()
            return float(used) * units[unit], float(capacity) * units[capacity_unit]
    return None, None


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


def describe_schedule(result: Compiled, chip: Chip, images: float, flops: float) -> str:
    """The time by the compiler's cycles, and the kernels' at the peak; `flops` as for the times."""
    schedule, seconds = result.schedule, result.seconds(chip)
    kernels = schedule.kernel_flops / chip.peak_flops
    return (
        f"to expect, by the compiler's cycles at {chip.clock / 1e9:.2f} GHz "
        f"{1e3 * (seconds - kernels):.1f} ms, and {schedule.kernels} runs of kernels, at least "
        f"{1e3 * kernels:.1f} ms by their products: {1e3 * seconds:.1f} ms, "
        f"{images / seconds:,.0f} images/s, MFU {100 * flops / seconds / chip.peak_flops:.0f} %"
    )


def describe_padding(result: Compiled) -> str:
    """What the matrix unit computes beside the products; kernels state theirs with the padding."""
    flops, padded = result.products
    share = 100 * (1 - flops / padded) if padded else 0.0
    return (
        f"matrix unit: products of {flops / 1e12:,.2f} TFLOP a chip and {share:.1f} % padding; "
        f"kernels {result.schedule.kernel_flops / 1e12:,.2f} TFLOP, their padding included"
    )


def describe_parts(result: Compiled, part_of: Callable[[str], str], chip: Chip) -> str:
    """A line for each part of the program, the largest first; `part_of` tells it by the name."""
    parts: collections.defaultdict[str, Part] = collections.defaultdict(Part)
    for name, part in result.parts.items():
        parts[part_of(name)] += part
    lines = [
        f"  {name:34}{part.bytes / 1e9:10,.2f} GB {1e3 * part.cycles / chip.clock:10,.1f} ms"
        for name, part in sorted(parts.items(), key=lambda item: -item[1].bytes)
    ]
    return "\n".join(["to and from memory, and by the compiler's cycles:", *lines])


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
