"""The job that plans: compiles a run's programs for a TPU slice that need not be there.

The real training step and the real sampler go through the TPU compiler (package libtpu), on any
machine. What it says of memory and of the bytes that chips exchange is exact; times are a roofline
and the compiler's own cycles (`runtime/tpu_compiler.py`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.experiment import Experiment, check_devices, device_mesh, make_experiment
from rin_jax.network import cost
from rin_jax.network.partitioning import param_shapes
from rin_jax.runtime import chips
from rin_jax.runtime import tpu_compiler as tpu
from rin_jax.runtime.chips import GIB
from rin_jax.runtime.console import say
from rin_jax.runtime.tpu_compiler import Compiled
from rin_jax.sampling.generate import compile_sampler
from rin_jax.training.state import abstract_state
from rin_jax.training.step import compile_train_step, make_loss

POLICIES = "none", "dots", "full"  # of rematerialisation; of equal ones the first is named


def plan(config: ml_collections.ConfigDict, topology: str | None, num_slices: int) -> None:
    """Prints the plan of a run on slices of `topology`; ConfigError as the functions it calls."""
    jax.config.update("jax_platforms", "cpu")
    experiment = make_experiment(config)
    chip = chips.by_topology(topology or "")
    devices = tpu.topology_devices(topology, num_slices)
    # programs for devices that are not there can be written to the cache, but not read
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = device_mesh(experiment, devices)
    check_devices(experiment, mesh)
    where = f"{num_slices} x {topology}" if num_slices > 1 else topology
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    say(f"{where}: {mesh.size} devices, {sizes}")
    say(describe_model(experiment))

    def step(**changes) -> Compiled:
        changed, over = change(experiment, devices, **changes)
        return tpu.compiled(lambda: compile_train_step(changed, over), over.size, num_slices, chip)

    result = step()
    say(describe_memory(experiment, mesh, result))
    if result.fits:
        say(describe_step(experiment, mesh, result, chip))
    fsdp = math.gcd(16, mesh.size // num_slices // mesh.shape["tensor"])  # inside a slice
    say(describe_search(experiment, result, step, fsdp, chip))
    images = experiment.generation.images_per_device * mesh.size
    compile_ = functools.partial(compile_sampler, experiment, mesh, images)
    sampler = tpu.compiled(compile_, mesh.size, num_slices, chip)
    say(describe_sampler(experiment, mesh, sampler, chip, images))
    say(describe_sampling_in_training(experiment, mesh, sampler))


def change(experiment: Experiment, devices: list, **changes: Any) -> tuple[Experiment, Mesh]:
    """(experiment, mesh) with fields changed: change(e, devices, model__remat="full")."""
    config = ml_collections.ConfigDict(experiment.config.to_dict())
    for path, value in changes.items():
        section, field = path.split("__")
        config[section][field] = value
    changed = make_experiment(config)
    mesh = device_mesh(changed, devices)
    check_devices(changed, mesh)
    return changed, mesh


def describe_model(experiment: Experiment) -> str:
    """Parameters, tokens and FLOPs; the latter beside the compiler's count of a small depth."""
    rin, self_cond = experiment.rin, bool(experiment.objective.self_cond_rate)
    count = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(rin)))
    forward, train = cost.forward_flops(rin), cost.training_flops(rin, self_cond)
    batch, ratio = experiment.train.batch_size, compiler_flops_ratio(experiment)
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
    rin, objective, key = small.rin, small.objective, jax.random.key(0)
    image = jax.ShapeDtypeStruct((1, *rin.example_shape), jnp.float32)
    draws = jax.eval_shape(lambda key: objective.draw(key, image.shape), key)
    cond = rin.abstract_cond(1)
    gradient = jax.jit(jax.value_and_grad(make_loss(small)))
    lowered = gradient.lower(param_shapes(rin), image, cond, draws, key)
    ours = cost.training_flops(rin, bool(objective.self_cond_rate))
    return lowered.cost_analysis()["flops"] / ours


def state_bytes(experiment: Experiment, mesh: Mesh) -> dict[str, float]:
    """Bytes of a device's state, by kind."""
    state = abstract_state(experiment, mesh)
    kinds = {"parameters": state.params, "optimizer": state.opt_state, "EMA": state.emas}

    def size(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return {name: sum(map(size, jax.tree.leaves(tree))) for name, tree in kinds.items()}


def describe_memory(experiment: Experiment, mesh: Mesh, result: Compiled) -> str:
    """Memory of a device, by kind, against what there is."""
    kinds = state_bytes(experiment, mesh)
    if result.fits:
        kinds["temporaries"] = result.temporary
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in kinds.items())
    return f"memory with remat {experiment.rin.remat}: {result.verdict()}\n  in GiB: {parts}"


def describe_step(experiment: Experiment, mesh: Mesh, result: Compiled, chip: chips.Chip) -> str:
    """Collectives and roofline of the training step."""
    images = experiment.train.batch_size / mesh.size
    model = images * cost.training_flops(experiment.rin, bool(experiment.objective.self_cond_rate))
    flops = model + images * cost.recomputed_flops(experiment.rin)
    seconds, batch = tpu.roofline(flops, result, chip), experiment.train.batch_size
    times = tpu.describe_times("step", seconds, batch, model, chip.peak_flops)
    return "\n".join([
        tpu.describe_collectives(result), tpu.describe_parts(result, cost.part_of, chip),
        tpu.describe_padding(result), times, tpu.describe_schedule(result, chip, batch, model),
        tpu.describe_assumptions(chip),
    ])  # fmt: skip


def describe_search(
    experiment: Experiment, result: Compiled, step: Callable[..., Compiled], fsdp: int,
    chip: chips.Chip,
) -> str:  # fmt: skip
    """The fastest remat policy that fits or, if none does, what else makes it fit.

    What is computed again may take less time than the copies of what is kept: the compiler's
    cycles decide. `result` is that of `experiment`, `step(**changes)` compiles it with fields
    changed; `fsdp` is the size of that axis to try where parameters are replicated.
    """
    lines, times = [], {}
    for remat in POLICIES:
        tried = result if remat == experiment.rin.remat else step(model__remat=remat)
        line = f"remat {remat}: {tried.verdict()}"
        if tried.fits:
            times[remat] = tried.seconds(chip)
            line += f", {1e3 * times[remat]:.1f} ms to expect"
        lines.append(line)
    if times:
        return "\n".join([*lines, f"the fastest that fits: {min(times, key=times.get)}"])
    train = experiment.train
    sharded = {"mesh__data": -1, "mesh__fsdp": fsdp} if experiment.mesh.fsdp == 1 < fsdp else {}
    tries, accumulation = [sharded] if sharded else [], train.accumulation_steps
    while train.batch_size % (accumulation := 2 * accumulation) == 0:
        tries.append({**sharded, "train__accumulation_steps": accumulation})
    for changes in tries:
        try:
            found = step(model__remat="full", **changes)
        except ConfigError as error:
            lines.append(f"no smaller micro-batch is possible: {error}")
            break
        words = [f"--config.{path.replace('__', '.')}={x}" for path, x in changes.items()]
        lines.append(f"--config.model.remat=full {' '.join(words)}: {found.verdict()}")
        if found.fits:
            parts = changes.get("train__accumulation_steps", 1) // train.accumulation_steps
            if parts > 1:
                lines.append(
                    f"or, as many images a chip at once: --config.train.batch_size="
                    f"{train.batch_size // parts}, or {parts} times the chips"
                )
            return "\n".join(lines)
    return "\n".join([*lines, "a chip with more memory, or a smaller model, is needed"])


def describe_sampling_in_training(experiment: Experiment, mesh: Mesh, result: Compiled) -> str:
    """Memory of the sampler beside the state of a training, which samples between its steps."""
    kinds = state_bytes(experiment, mesh)
    used = result.used + sum(kinds.values())
    if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:  # else its weights are another copy
        used -= kinds["parameters"]
    beside = dataclasses.replace(result, used=used, fits=result.fits and used <= result.capacity)
    end = "" if beside.fits else "; lower --config.sampler.images_per_device"
    return f"sampler between the steps of a training, state included: {beside.verdict()}{end}"


def sampling_flops(experiment: Experiment) -> float:
    """FLOPs of sampling one image; the second pass of guidance counts as the first one."""
    passes = 2 if experiment.guidance.scale else 1
    return passes * experiment.sampler.num_evaluations * cost.forward_flops(experiment.rin)


def describe_sampler(
    experiment: Experiment, mesh: Mesh, result: Compiled, chip: chips.Chip, images: int
) -> str:
    """Memory, collectives and roofline of the sampler."""
    sampler = experiment.sampler
    steps = f"{sampler.num_steps} steps of {sampler.name}"
    head = f"sampler, {images} images, {steps}: {result.verdict()}"
    if not result.fits:
        return f"{head}; lower --config.sampler.images_per_device"
    flops = images / mesh.size * sampling_flops(experiment)
    seconds = tpu.roofline(flops, result, chip)
    times = tpu.describe_times("sampler", seconds, images, flops, chip.peak_flops)
    cycles = tpu.describe_schedule(result, chip, images, flops)
    return f"{head}\n{tpu.describe_collectives(result)}\n{times}\n{cycles}"
