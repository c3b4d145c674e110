"""What accelerators can do, by their makers' documents: peaks for utilisation and for plans.

Sources: cloud.google.com/tpu/docs, pages of v4, v5e, v5p, v6e and TPU7x (read 2026-11). From memory
and not verified: TPU7x beyond peak and capacity, the network's share of a v6e chip, and the GPUs.

Interconnect is what a chip sends over all its links together: half of the documents' bidirectional
figure, or a pod's all-reduce bandwidth over its chips (v4). The data-centre network's share of a
v5e chip is its pod's over 256 chips. 1 GB is 1e9 bytes, 1 GiB 2^30.
"""

import dataclasses
import math

from rin_jax import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them."""

    name: str  # short; for TPUs the word before the colon of a topology
    kinds: tuple[str, ...]  # names that JAX gives the device (`device_kind`)
    peak_flops: float  # dense bfloat16 FLOP/s
    hbm_bytes: float  # memory
    hbm_bandwidth: float  # bytes/s to and from it
    interconnect: float  # bytes/s sent to other devices of the slice or node, over all links
    network: float | None  # bytes/s sent to other slices; None where no figure is known
    clock: float = math.nan  # cycles/s of a TPU, by its peak and its matrix units
    topologies: tuple[str, ...] = ()  # shapes of TPU slices for a plan; others exist
    matrix_unit: int = 128  # side of a TPU's


SQUARE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
        "16x16x16")  # fmt: skip
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 268e9, None, 1.05e9, CUBE),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, 25e9 / 8,
         1.5e9, SQUARE),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, 50e9 / 8, 1.75e9, CUBE),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, 100e9 / 8,
         1.75e9, SQUARE, 256),
    # two devices a chip: half of its 2307e12 FLOP/s, 192 GiB, 7380e9, 600e9 and 100e9 / 8 bytes/s
    Chip("tpu7x", ("TPU7x",), 1153.5e12, 96 * GIB, 3690e9, 300e9, 50e9 / 8, 2.2e9, CUBE[:9],
         256),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9, 300e9, None),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9, None),
    Chip("h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, None),
)  # fmt: skip


def by_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, or None if it is not in the table."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)


def by_topology(topology: str) -> Chip:
    """The chip of a TPU topology such as "v5e:16x16"; ConfigError if the table has no such TPU."""
    for chip in CHIPS:
        if chip.topologies and topology.startswith(f"{chip.name}:"):
            return chip
    raise ConfigError(f"unknown --topology {topology!r}; known are\n{known_topologies()}")


def known_topologies() -> str:
    """A line a chip: its name and its shapes."""
    return "\n".join(f"  {c.name}:{' '.join(c.topologies)}" for c in CHIPS if c.topologies)
