"""The TPU compiler (package libtpu) on a machine without a TPU, and what it says of a program."""

import dataclasses
import os
import re
from collections.abc import Callable

import jax

from rin_jax import ConfigError
from rin_jax.runtime import chips
from rin_jax.runtime.chips import GIB
from rin_jax.runtime.compiled_programs import Collective, Program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for one chip; if it does not fit, `used` alone."""

    fits: bool  # into memory
    used: float  # bytes of memory that it needs at once; if it does not fit, of temporaries alone
    capacity: float  # bytes of memory that it may have, as documented or as the compiler says
    temporary: float = 0.0  # bytes beside arguments and results
    collectives: tuple[Collective, ...] = ()  # what the chip sends
    traffic: float = 0.0  # bytes to and from memory
    unknown_loops: tuple[str, ...] = ()  # loops that count as one run in the last two

    def verdict(self) -> str:
        """What it needs of what there is."""
        needed = f"{self.used / GIB:.2f} of {self.capacity / GIB:.2f} GiB"
        return f"{needed}, fits" if self.fits else f"does not fit: {needed}"

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
    compile_: Callable[[], jax.stages.Compiled], num_devices: int, num_slices: int, chip: chips.Chip
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
    text = Program(program.as_text(), num_devices, num_slices)
    return Compiled(
        fits=True,
        used=used,
        capacity=chip.hbm_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=tuple(text.collectives()),
        traffic=text.memory_traffic(),
        unknown_loops=tuple(text.unknown_loops()),
    )


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
