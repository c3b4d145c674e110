"""Timing of calls on a device, and what a figure depends on."""

import datetime
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from rin_jax.runtime import chips

# call(carry) -> carry, and the first carry: what an iteration hands to the next
Part = tuple[Callable[[Any], Any], Any]


def measure(part: Part, repetitions: int, warmup: int) -> list[float]:
    """Seconds of each repetition, until the result is ready; the first warm-up run compiles."""
    call, carry = part
    seconds = []
    for _ in range(warmup + repetitions):
        start = time.perf_counter()
        carry = jax.block_until_ready(call(carry))
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]


def matmul_sides() -> tuple[int, ...]:
    """Sides of the square matrix products among which the fastest is the ceiling."""
    return (512, 1024, 2048) if jax.default_backend() == "cpu" else (2048, 4096, 8192)


def matmul_rates(
    sides: Sequence[int], dtype: str, repetitions: int, warmup: int
) -> dict[str, float]:
    """GFLOP/s of one square matrix product of each side, at its fastest."""
    product = jax.jit(jnp.matmul)
    rates = {}
    for side in sides:
        a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
        times = measure((lambda _, a=a, b=b: product(a, b), None), repetitions, warmup)
        rates[str(side)] = 2 * side**3 / min(times) / 1e9
    return rates


def peak_memory() -> float | None:
    """GiB that the first device held at most; None where it does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / chips.GIB if "peak_bytes_in_use" in stats else None


def environment() -> dict[str, Any]:
    """The device, the threads, what else runs, the versions and the date."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    load = getattr(os, "getloadavg", None)
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "cores": os.cpu_count(),
        "threads": len(affinity(0)) if affinity else None,
        "load": round(load()[0], 2) if load else None,  # of the last minute, before the run
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number
