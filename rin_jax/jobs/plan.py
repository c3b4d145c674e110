"""The job that plans: compiles a run's programs for a TPU slice that need not be there.

The real training step and the real sampler go through the TPU compiler (package libtpu), on any
machine. What it says of memory and of the bytes that chips exchange is exact; times are a roofline:

    compute   (training + recomputed FLOPs of the matrix products) / peak
    memory    bytes to and from HBM, each fusion of the program one pass / bandwidth
    network   bytes sent over the slice's links, or between slices / bandwidth

The step takes at least the largest (all overlap) and about their sum where nothing overlaps.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from rin_jax import ConfigError
from rin_jax.experiment import (
    Experiment,
    check_devices,
    config_errors,
    device_mesh,
    make_experiment,
)
from rin_jax.network import cost
from rin_jax.runtime import chips, sharding
from rin_jax.runtime.chips import GIB
from rin_jax.runtime.compiled_programs import Collective, Program
from rin_jax.runtime.console import say
from rin_jax.sampling.generate import compile_sampler
from rin_jax.training.state import abstract_params, abstract_state
from rin_jax.training.step import compile_train_step, make_loss

REMAT = ("none", "dots", "full")  # from cheap to dear in time


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for one chip.

    Attributes:
      fits: whether it fits into memory; if not, only `used` is known.
      used: bytes of memory that it needs at once; if it does not fit, of temporaries alone.
      capacity: bytes of memory that it may have, as documented or as the compiler says.
      temporary: bytes beside arguments and results.
      collectives: what the chip sends.
      traffic: bytes to and from memory.
    """

    fits: bool
    used: float
    capacity: float
    temporary: float = 0.0
    collectives: tuple[Collective, ...] = ()
    traffic: float = 0.0

    def verdict(self) -> str:
        """What it needs of what there is."""
        if self.fits:
            return f"{self.used / GIB:.2f} of {self.capacity / GIB:.2f} GiB, fits"
        return f"does not fit: {self.used / GIB:.2f} of {self.capacity / GIB:.2f} GiB"

    def sent(self, crosses: bool) -> float:
        """Bytes that the chip sends inside its slice, or to other slices."""
        return sum(c.bytes for c in self.collectives if c.crosses == crosses)


def plan(config: ml_collections.ConfigDict, topology: str, num_slices: int) -> None:
    """Prints the plan of a run on `num_slices` slices of `topology`.

    Raises:
      ConfigError: the topology is not known, libtpu is missing or the configuration does not fit.
    """
    jax.config.update("jax_platforms", "cpu")
    experiment = make_experiment(config)
    with config_errors():
        chip = chips.by_topology(topology)
        devices = topology_devices(topology, num_slices)
    # programs for devices that are not there can be written to the cache, but not read
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = device_mesh(experiment.config, devices)
    check_devices(experiment.config, mesh)
    where = f"{num_slices} x {topology}" if num_slices > 1 else topology
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    say(f"{where}: {mesh.size} devices, {sizes}")
    say(describe_model(experiment))

    def step(**changes) -> Compiled:
        changed, over = change(experiment, devices, **changes)
        return compiled(lambda: compile_train_step(changed, over), over.size, num_slices, chip)

    result = step()
    say(describe_memory(experiment, mesh, result))
    if result.fits:
        say(describe_step(experiment, mesh, result, chip))
    fsdp = math.gcd(16, mesh.size // num_slices // mesh.shape["tensor"])
    say(describe_search(experiment.config, result, step, fsdp))
    images = experiment.config.sampler.images_per_device * mesh.size
    sampler = compiled(
        lambda: compile_sampler(experiment, mesh, images), mesh.size, num_slices, chip
    )
    say(describe_sampler(experiment, mesh, sampler, chip, images))


def topology_devices(topology: str, num_slices: int) -> list:
    """Stand-ins for the chips of `num_slices` slices, for the compiler alone.

    Raises:
      ValueError: libtpu is missing, or does not know the shape.
    """
    if num_slices < 1:
        raise ValueError(f"--num_slices is {num_slices}; it must be at least 1.")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--mode=plan needs the TPU compiler: pip install 'jax[tpu]' (no TPU is needed)."
        ) from error
    from jax.experimental import topologies

    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),  # ask no cloud for this machine's place in a slice
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # nothing runs on a chip: two plans may go at once
    ):
        os.environ.setdefault(name, value)
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **slices
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"the TPU compiler does not take --topology {topology!r}: "
            f"{str(error).splitlines()[0]}\nknown are\n{chips.known_topologies()}"
        ) from error


def change(experiment: Experiment, devices: list, **changes: Any):
    """(experiment, mesh) with fields changed: change(e, devices, model__remat="full")."""
    config = ml_collections.ConfigDict(experiment.config.to_dict())
    for path, value in changes.items():
        section, field = path.split("__")
        config[section][field] = value
    changed = make_experiment(config)
    mesh = device_mesh(changed.config, devices)
    check_devices(changed.config, mesh)
    return changed, mesh


def compiled(compile_, num_devices: int, num_slices: int, chip: chips.Chip) -> Compiled:
    """Runs `compile_` and reads the result; too much memory is a result too."""
    try:
        program = compile_()
    except jax.errors.JaxRuntimeError as error:
        used, capacity = needed_memory(str(error))
        if used is None:
            raise
        return Compiled(False, used, capacity or chip.hbm_bytes)
    memory = program.memory_analysis()
    text = Program(program.as_text(), num_devices, num_slices)
    return Compiled(
        fits=True,
        used=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        capacity=chip.hbm_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=tuple(text.collectives()),
        traffic=text.memory_traffic(),
    )


def needed_memory(message: str) -> tuple[float | None, float | None]:
    """(bytes needed, bytes there are) of the compiler's message; (None, None) if it is another."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"required for [^(]*\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    ):
        found = re.search(pattern, message)
        if found:
            used, unit, capacity, capacity_unit = found.groups()
            return float(used) * units[unit], float(capacity) * units[capacity_unit]
    return None, None


def describe_model(experiment: Experiment) -> str:
    """Parameters, tokens and FLOPs; the latter beside the compiler's count of a small depth."""
    rin, self_cond = experiment.rin, bool(experiment.config.diffusion.self_cond_rate)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices("cpu")[:1])
    params = abstract_params(rin, mesh)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    forward, train = cost.forward_flops(rin), cost.training_flops(rin, self_cond)
    batch = experiment.config.train.batch_size
    ratio = compiler_flops_ratio(experiment)
    return (
        f"parameters: {count:,}; tokens: {rin.num_tokens} interface, {rin.num_latents} latents\n"
        f"FLOPs: {forward / 1e9:,.4g} G forward an image, {train / 1e9:,.4g} G training an image, "
        f"{train * batch / 1e15:,.3g} P a step of {batch}; with one block of depth 1 the "
        f"compiler counts {100 * ratio - 100:+.1f} % (elementwise work included)"
    )


def compiler_flops_ratio(experiment: Experiment) -> float:
    """The compiler's FLOPs of one image's loss and gradient over ours, at one block of depth 1."""
    config = ml_collections.ConfigDict(experiment.config.to_dict())
    config.model.update(num_blocks=1, depth=1, remat="none")
    small = make_experiment(config)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices("cpu")[:1])
    images = jax.ShapeDtypeStruct((1, *small.rin.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if small.rin.num_classes else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    draws = jax.eval_shape(lambda key: small.objective.draw(key, images.shape), key)
    params = abstract_params(small.rin, mesh)
    lowered = jax.jit(jax.value_and_grad(make_loss(small))).lower(
        params, images, labels, draws, key
    )
    ours = cost.training_flops(small.rin, bool(config.diffusion.self_cond_rate))
    return lowered.cost_analysis()["flops"] / ours


def state_bytes(experiment: Experiment, mesh) -> dict[str, float]:
    """Bytes of a device's state, by kind."""
    state = abstract_state(experiment, mesh)

    def total(tree):
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    return {
        "parameters": total(state.params),
        "optimizer": total(state.opt_state),
        "EMA": total(state.emas),
    }


def describe_memory(experiment: Experiment, mesh, result: Compiled) -> str:
    """Memory of a device, by kind, against what there is."""
    kinds = state_bytes(experiment, mesh)
    if result.fits:
        kinds["temporaries"] = result.temporary
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in kinds.items())
    remat = experiment.config.model.remat
    return f"memory with remat {remat}: {result.verdict()}\n  in GiB: {parts}"


def describe_collectives(result: Compiled) -> str:
    """A line for each kind of collective, of those inside a slice and those between slices."""
    lines = []
    for kind, crosses in sorted({(c.kind, c.crosses) for c in result.collectives}):
        these = [c for c in result.collectives if (c.kind, c.crosses) == (kind, crosses)]
        lines.append(
            f"  {kind + (', between slices' if crosses else ''):34}"
            f"{sum(c.runs for c in these):6} times {sum(c.bytes for c in these) / 1e6:10,.1f} MB"
        )
    return "\n".join(["sent by a chip:", *(lines or ["  nothing"])])


def roofline(flops: float, result: Compiled, chip: chips.Chip) -> dict[str, float]:
    """Seconds of a program on one chip, by what it waits for; `flops` are the chip's."""
    seconds = {
        "compute": flops / chip.peak_flops,
        "memory": result.traffic / chip.hbm_bandwidth,
        "links": result.sent(crosses=False) / chip.interconnect,
    }
    if result.sent(crosses=True):
        seconds["between slices"] = (
            result.sent(crosses=True) / chip.network if chip.network else math.nan
        )
    return seconds


def describe_times(name: str, seconds: dict[str, float], images: float, flops: float, peak) -> str:
    """Times by what a program waits for; images/s and utilisation at their largest and sum."""
    parts = ", ".join(f"{part} {1e3 * value:.1f}" for part, value in seconds.items())
    best, worst = max(seconds.values()), sum(seconds.values())
    return (
        f"{name}, roofline in ms: {parts}; {1e3 * best:.1f} if all overlap, {1e3 * worst:.1f} if "
        f"nothing does: {images / best:,.0f} to {images / worst:,.0f} images/s, "
        f"{100 * flops / best / peak:.0f} to {100 * flops / worst / peak:.0f} % of peak"
    )


def describe_step(experiment: Experiment, mesh, result: Compiled, chip: chips.Chip) -> str:
    """Collectives and roofline of the training step."""
    config = experiment.config
    images = config.train.batch_size / mesh.size
    model = images * cost.training_flops(experiment.rin, bool(config.diffusion.self_cond_rate))
    flops = model + images * cost.recomputed_flops(experiment.rin)
    times = describe_times(
        "step", roofline(flops, result, chip), config.train.batch_size, model, chip.peak_flops
    )
    return f"{describe_collectives(result)}\n{times}\n{describe_assumptions(chip)}"


def describe_assumptions(chip: chips.Chip) -> str:
    """What a roofline assumes of a chip."""
    network = f"{chip.network / 1e9:.1f}" if chip.network else "unknown"
    return (
        f"assumed for {chip.name}: {chip.peak_flops / 1e12:.0f} TFLOP/s bfloat16, "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s HBM, {chip.interconnect / 1e9:.0f} GB/s over all "
        f"links, {network} GB/s between slices; no latency, no input wait"
    )


def describe_search(config: ml_collections.FrozenConfigDict, result: Compiled, step, fsdp: int):
    """The cheapest remat policy that fits or, if none does, what else makes it fit.

    `result` is that of `config`, `step(**changes)` compiles it with fields changed; `fsdp` is the
    axis to try where parameters are replicated.
    """
    tried = {config.model.remat: result}
    lines = []
    for remat in REMAT:
        if remat not in tried:
            tried[remat] = step(model__remat=remat)
        lines.append(f"remat {remat}: {tried[remat].verdict()}")
        if tried[remat].fits:
            lines[-1] += ": the cheapest that does"
            return "\n".join(lines)
    sharded = {"mesh__data": -1, "mesh__fsdp": fsdp} if config.mesh.fsdp == 1 < fsdp else {}
    for changes in candidates(config, sharded):
        try:
            found = step(model__remat="full", **changes)
        except ConfigError as error:
            lines.append(f"no smaller micro-batch is possible: {error}")
            break
        words = " ".join(
            f"--config.{path.replace('__', '.')}={value}" for path, value in changes.items()
        )
        lines.append(f"--config.model.remat=full {words}: {found.verdict()}")
        if found.fits:
            parts = changes.get("train__accumulation_steps", 1) // config.train.accumulation_steps
            if parts > 1:
                lines.append(
                    f"or, as many images a chip at once: --config.train.batch_size="
                    f"{config.train.batch_size // parts}, or {parts} times the chips"
                )
            return "\n".join(lines)
    return "\n".join([*lines, "a chip with more memory, or a smaller model, is needed"])


def candidates(
    config: ml_collections.FrozenConfigDict, sharded: dict[str, int]
) -> Iterator[dict[str, int]]:
    """Changes that need less memory, one after the other."""
    if sharded:
        yield sharded
    steps = config.train.accumulation_steps * 2
    while config.train.batch_size % steps == 0:
        yield {**sharded, "train__accumulation_steps": steps}
        steps *= 2


def describe_sampler(
    experiment: Experiment, mesh, result: Compiled, chip: chips.Chip, images: int
) -> str:
    """Memory, collectives and roofline of the sampler."""
    sampler = experiment.config.sampler
    head = (
        f"sampler, {images} images, {sampler.num_steps} steps of {sampler.name}: {result.verdict()}"
    )
    if not result.fits:
        return f"{head}; lower --config.sampler.images_per_device"
    passes = experiment.sampler.num_evaluations * (2 if sampler.guidance_scale else 1)
    flops = images / mesh.size * passes * cost.forward_flops(experiment.rin)
    times = describe_times("sampler", roofline(flops, result, chip), images, flops, chip.peak_flops)
    return f"{head}\n{describe_collectives(result)}\n{times}"
