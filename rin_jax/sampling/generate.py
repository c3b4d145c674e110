"""Programs that sample: images of a seed from weights, on all devices of a mesh.

Image i of a seed is the same to the last bit for any number of images, devices and processes of one
kind. Its noise comes from fold_in(key(seed), i) alone. Its arithmetic is that of one program for
one device and `sampler.images_per_device` images, which every device runs by itself, and in which
image i always has row i modulo that number; rows that nobody asked for are computed and thrown
away. There is not a program for a whole mesh, and weights are not split over devices for sampling:
the compiler would be free to order sums in another way for another number of devices, and does.
What changes the rounding is the kind of device, the compiler's version and options, and
`sampler.images_per_device`.
"""

import collections
import concurrent.futures
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from rin_jax.checkpointing.checksums import tree_checksums
from rin_jax.diffusion.samplers import Given, example_noise
from rin_jax.evaluation import protocol
from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import Cond
from rin_jax.network.rin import RIN
from rin_jax.runtime import console, processes
from rin_jax.sampling.conditions import Conditions, scaled_frames
from rin_jax.sampling.denoiser import denoiser, guided
from rin_jax.sampling.guide import guide_experiment, load_guide
from rin_jax.sampling.weights import abstract_params, on_device, whole

Array = jax.Array
# generate(params, indices [B], cond of [B]) -> uint8 images [B, ..., H, W, C] on the host
Generate = Callable[[dict, np.ndarray, Cond], np.ndarray]


def jit_sampler(
    experiment: Experiment, guide: RIN | None = None, rounded: bool = True,
    callback: Callable[[int, np.ndarray, np.ndarray], None] | None = None, first: int | None = None,
):  # fmt: skip
    """The program of one device: (params, key, indices [B], cond of [B]) -> uint8 [B, ...].

    With a guide `params` is the pair of both networks' parameters. `key` is that of the seed. If
    not `rounded`, images are the same numbers 0..255 in float32 before they are rounded.
    callback(step, indices [n], x0 uint8 [n, ...]) is called after each step, from 1, with the
    estimates of those rows that are images. With `first`, the step to begin with, cond is (cond,
    images uint8 [B, ...], free): see `Given`.
    """
    rin, sampler = experiment.rin, experiment.sampler
    steps: collections.Counter = collections.Counter()  # of each batch

    def tell(indices, x0):
        indices, x0 = np.asarray(indices), np.asarray(x0)
        batch, own = int(indices[0]), indices % len(indices) == np.arange(len(indices))
        steps[batch] += 1
        callback(steps[batch], indices[own], x0[own])

    @jax.jit
    def images_of(params, key, indices, cond):
        params, guide_params = params if guide else (params, None)
        noise, noise_fn = seeded_noise(key, indices, rin.example_shape)
        guide_fn, given = denoiser(guide, guide_params) if guide else None, None
        if first is not None:
            cond, pixels, free = cond
            given = Given(scaled_frames(pixels, sampler.process.input_scale), free, first)
        denoise_fn = guided(experiment.guidance, denoiser(rin, params), guide_fn, cond)

        def watch(x0, latents):
            if callback is not None:
                pixels = to_uint8(sampler.process.unscale(x0))
                jax.debug.callback(tell, indices, pixels, ordered=True)

        images, _ = sampler.watched(denoise_fn, noise, cond, noise_fn, watch, given)
        return to_uint8(images) if rounded else to_pixels(images)

    return images_of


unrounded_sampler = functools.partial(jit_sampler, rounded=False)


def seeded_noise(key: Array, indices: Array, shape: tuple[int, ...]):
    """`example_noise` of images `indices` [B] of a seed's key."""
    return example_noise(jax.vmap(lambda i: jax.random.fold_in(key, i))(indices), shape)


def compile_sampler(experiment: Experiment, mesh: Mesh, batch_size: int):
    """The program of one device compiled for a batch spread over `mesh`, without any array."""
    place = SingleDeviceSharding(mesh.devices.flat[0])

    def here(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    params, guide = abstract_params(experiment.rin, mesh), guide_experiment(experiment)
    if guide is not None:
        params = (params, abstract_params(guide.rin, mesh))
    rows = batch_size // mesh.size
    key, indices = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros(rows, jnp.int32)))
    cond = experiment.rin.abstract_cond(rows)
    arguments = jax.tree.map(here, (params, key, indices, cond))
    return jit_sampler(experiment, guide and guide.rin).lower(*arguments).compile()


def make_generate(
    experiment: Experiment, mesh: Mesh, seed: int, make_program: Callable = jit_sampler
) -> Generate:
    """A function that samples images `indices` of `seed` under their conditions.

    `make_program` is `jit_sampler`, or makes a program of the same arguments from the same.
    Raises ConfigError at more steps than the grid allows, or at a guide that does not fit.
    """
    experiment.sampler.check_grid()
    guide = load_guide(experiment, mesh)
    program = make_program(experiment, guide and guide.experiment.rin)
    size, key = experiment.generation.images_per_device, jax.random.key(seed)

    def generate(params, indices, cond):
        """Puts every image into its row, samples, and takes the other rows away."""
        params = whole((params, guide.params) if guide else params, mesh)
        indices = np.asarray(indices, np.int32)
        batch, row = places(indices, size)

        def rows(values):
            values = np.asarray(values)
            filled = np.zeros((batch.max() + 1, size, *values.shape[1:]), values.dtype)
            filled[batch, row] = values
            return filled

        images = run_batches(program, params, key, rows(indices), jax.tree.map(rows, cond), mesh)
        return images[batch, row]

    return generate


def make_device_sampler(
    experiment: Experiment, mesh: Mesh, seed: int,
    make_program: Callable = unrounded_sampler,
) -> Callable[[dict, Conditions], Callable[[jax.Device, np.ndarray], tuple[Array, np.ndarray]]]:
    """(params, conditions) -> a function (device, indices [B]) -> (images of `seed`, labels [B]).

    Images are those of `make_program`, as in `make_generate`: [size, ...], float32 in 0..255 and
    not rounded if it is not given, on that device, which is one of this process's. Image i lies in
    row i modulo size = `sampler.images_per_device`; the other rows mean nothing. No two of the
    indices have one row; `conditions` are those of all images of the seed. It is compiled once for
    all parameters, and before the first image, for as many devices as there are batches. Raises as
    `make_generate`.
    """  # fmt: skip
    experiment.sampler.check_grid()
    guide = load_guide(experiment, mesh)
    program = make_program(experiment, guide and guide.experiment.rin)
    size, key = experiment.generation.images_per_device, jax.random.key(seed)
    compiled: dict[jax.Device, Callable] = {}

    def sampler(params: dict, conditions: Conditions):
        params = whole((params, guide.params) if guide else params, mesh)
        local = {device: on_device(params, device) for device in mesh.local_devices}

        def arguments(device: jax.Device, indices: np.ndarray) -> tuple:
            rows = np.zeros(size, np.int32)
            rows[indices % size] = indices
            return local[device], *jax.device_put((key, rows, conditions.of(rows)), device)

        def images_of(device: jax.Device, indices: np.ndarray) -> tuple[Array, np.ndarray]:
            return compiled[device](*arguments(device, indices)), conditions.labels[indices]

        batches = -(-len(conditions) // size)
        new = [device for device in mesh.local_devices[:batches] if device not in compiled]
        if new:
            first, threads = np.arange(1), concurrent.futures.ThreadPoolExecutor(len(new))
            with console.doing("compiling the sampler"), threads as pool:
                programs = pool.map(
                    lambda device: program.lower(*arguments(device, first)).compile(), new
                )
                compiled.update(zip(new, programs, strict=True))
        return images_of

    return sampler


def describe_images(experiment: Experiment, step: int, ema: str, params: dict) -> dict[str, Any]:
    """What the images of a seed depend on beside their conditions, as JSON."""
    config = experiment.config
    description = {
        "step": step, "ema": ema, "seed": experiment.seed,
        "weights": protocol.digest(tree_checksums({"params": params})),
        "sampler": config.sampler.to_dict(), "process": config.diffusion.to_dict(),
        "model": config.model.to_dict(), "evaluations": experiment.sampler.num_evaluations,
        "guidance_scale": config.sampler.guidance_scale,
    }  # fmt: skip
    return json.loads(json.dumps(description))


def places(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(batch, row) of each index [B], in the fewest batches; index i has row i modulo `size`."""
    row = indices % size
    order = np.argsort(row, kind="stable")
    batch = np.empty_like(row)
    batch[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return batch, row


def run_batches(
    program: Callable, params: dict, key: Array, indices: np.ndarray, cond: Cond, mesh: Mesh
) -> np.ndarray:
    """Images [K, B, H, W, C] of K batches [K, B], dealt out to the processes and their devices.

    `params` are whole on every device. Devices compile at the same time, each for itself. Every
    process gets all images, a batch at a time: it is meant for a few; `shares` for many.
    """
    members = sorted({device.process_index for device in mesh.devices.flat})
    devices = mesh.local_devices
    own = range(members.index(jax.process_index()), len(indices), len(members))

    def batch(k):
        return key, indices[k], jax.tree.map(lambda rows: rows[k], cond)

    def run(device):
        local = on_device(params, device)
        return [
            np.asarray(program(local, *jax.device_put(batch(k), device)))
            for k in own[devices.index(device) :: len(devices)]
        ]

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        parts = list(pool.map(run, devices[: len(own)]))
    made = {k: parts[i % len(devices)][i // len(devices)] for i, k in enumerate(own)}
    if len(members) == 1:
        return np.stack([made[k] for k in range(len(indices))])
    processes.agree("sampled")  # a collective would not wait long for the slowest
    shape = jax.eval_shape(program, params, *batch(0))
    zeros = np.zeros(shape.shape, shape.dtype)
    tell = multihost_utils.broadcast_one_to_all
    return np.stack([tell(made.get(k, zeros), k in made) for k in range(len(indices))])


def to_pixels(images: Array) -> Array:
    """[-1, 1] to 0..255, clipped and not rounded."""
    return jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0


def to_uint8(images: Array) -> Array:
    """[-1, 1] to uint8 0..255, clipped and rounded."""
    return jnp.round(to_pixels(images)).astype(jnp.uint8)
