"""Programs that sample: images of a seed from weights, on all devices of a mesh.

Image i of a seed is the same to the last bit for any number of images, devices and processes of one
kind. Its noise comes from fold_in(key(seed), i) alone. Its arithmetic is that of one program for
one device and `sampler.images_per_device` images, which every device runs by itself, and in which
image i always has row i modulo that number; rows that nobody asked for are computed and thrown
away. Neither is there a program for a whole mesh nor is a weight split over devices for sampling:
the compiler would be free to order sums in another way for another number of devices, and does.
What changes the rounding is the kind of device, the compiler's version and options, and
`sampler.images_per_device`.
"""

import concurrent.futures
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from rin_jax import ConfigError
from rin_jax.checkpointing.restore import find_checkpoints, load_ema
from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.samplers import example_noise
from rin_jax.experiment import Experiment, config_errors, make_experiment
from rin_jax.network.rin import NO_LABEL, RIN
from rin_jax.runtime import processes, sharding
from rin_jax.training.state import abstract_params

Array = jax.Array
GRID_ROWS, GRID_COLUMNS = 10, 10
# generate(params, indices [B], labels [B]) -> uint8 images [B, H, W, C] on the host
Generate = Callable[[dict, np.ndarray, np.ndarray], np.ndarray]
# What a guide must have in common with the network that it guides.
SAME_AS_GUIDE = (
    "data.image_size", "data.channels", "data.num_classes", "diffusion.prediction_type",
    "diffusion.input_scale", "diffusion.normalize_input",
)  # fmt: skip


class Guide(NamedTuple):
    """The weaker network of autoguidance and its averaged parameters."""

    experiment: Experiment
    params: dict


def denoiser(rin: RIN, params: dict) -> DenoiseFn:
    """A network as the callable that samplers know."""

    def denoise_fn(xt, gamma, cond, prev_latents):
        return rin.apply({"params": params}, xt, gamma, cond, prev_latents)

    return denoise_fn


def guided(
    experiment: Experiment, denoise_fn: DenoiseFn, guide_fn: DenoiseFn | None, labels: Array
) -> DenoiseFn:
    """`denoise_fn` under the guidance of the experiment; `guide_fn` is the guide's, if any."""
    if guide_fn is not None:
        return experiment.guidance.auto(denoise_fn, guide_fn)
    return experiment.guidance.classifier_free(denoise_fn, jnp.full_like(labels, NO_LABEL))


def jit_sampler(experiment: Experiment, guide: RIN | None = None):
    """The program of one device: (params, key, indices [B], labels [B]) -> uint8 [B, H, W, C].

    With a guide `params` is the pair of both networks' parameters. `key` is that of the seed.
    """
    rin, sampler = experiment.rin, experiment.sampler

    @jax.jit
    def images_of(params, key, indices, labels):
        params, guide_params = params if guide else (params, None)
        noise, noise_fn = seeded_noise(key, indices, rin.image_shape)
        denoise_fn = guided(
            experiment,
            denoiser(rin, params),
            denoiser(guide, guide_params) if guide else None,
            labels,
        )
        cond = labels if rin.num_classes else None
        return to_uint8(sampler.sample(denoise_fn, noise, cond, noise_fn))

    return images_of


def seeded_noise(key: Array, indices: Array, shape: tuple[int, ...]):
    """`example_noise` of images `indices` [B] of a seed's key."""
    return example_noise(jax.vmap(lambda i: jax.random.fold_in(key, i))(indices), shape)


def compile_sampler(experiment: Experiment, mesh: Mesh, batch_size: int):
    """The program of one device compiled for a batch spread over `mesh`, without any array."""
    place = SingleDeviceSharding(mesh.devices.flat[0])

    def abstract(of: Experiment):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract_params(of.rin, mesh),
        )

    params, guide = abstract(experiment), guide_experiment(experiment)
    if guide is not None:
        params = (params, abstract(guide))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=place)
    rows = jax.ShapeDtypeStruct((batch_size // mesh.size,), jnp.int32, sharding=place)
    program = jit_sampler(experiment, guide and guide.rin)
    return program.lower(params, key, rows, rows).compile()


def make_generate(experiment: Experiment, mesh: Mesh, seed: int) -> Generate:
    """A function that samples images `indices` of `seed` with the classes `labels`.

    Raises:
      ConfigError: more steps than the grid allows, or a guide that does not fit.
    """
    with config_errors():
        experiment.sampler.check_grid()
    guide = load_guide(experiment, mesh)
    program = jit_sampler(experiment, guide and guide.experiment.rin)
    size, key = experiment.config.sampler.images_per_device, jax.random.key(seed)

    def generate(params, indices, labels):
        """Puts every image into its row, samples, and takes the other rows away."""
        params = whole((params, guide.params) if guide else params, mesh)
        indices = np.asarray(indices, np.int32)
        batch, row = places(indices, size)
        rows = np.zeros((2, batch.max() + 1, size), np.int32)
        rows[:, batch, row] = indices, labels
        return run_batches(program, params, key, *rows, mesh)[batch, row]

    return generate


def whole(tree: dict, mesh: Mesh) -> dict:
    """The same arrays, whole on every device."""
    return jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(tree)


def on_device(tree: dict, device: jax.Device) -> dict:
    """The copies on one device of arrays that are whole on it."""
    return jax.tree.map(
        lambda x: next(part.data for part in x.addressable_shards if part.device == device), tree
    )


def local_copy(tree: dict, mesh: Mesh) -> dict:
    """Arrays of a mesh on this process's first device."""
    return on_device(whole(tree, mesh), mesh.local_devices[0])


def places(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(batch, row) of each index [B], in the fewest batches; index i has row i modulo `size`."""
    row = indices % size
    order = np.argsort(row, kind="stable")
    batch = np.empty_like(row)
    batch[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return batch, row


def run_batches(
    program: Callable,
    params: dict,
    key: Array,
    indices: np.ndarray,
    labels: np.ndarray,
    mesh: Mesh,
) -> np.ndarray:
    """Images [K, B, H, W, C] of K batches [K, B], dealt out to the processes and their devices.

    `params` are whole on every device. Devices compile at the same time, each for itself.
    """
    members = sorted({device.process_index for device in mesh.devices.flat})
    devices = mesh.local_devices
    own = range(members.index(jax.process_index()), len(indices), len(members))

    def run(device):
        local = on_device(params, device)
        return [
            np.asarray(program(local, *jax.device_put((key, indices[k], labels[k]), device)))
            for k in own[devices.index(device) :: len(devices)]
        ]

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        parts = list(pool.map(run, devices[: len(own)]))
    if len(members) == 1:
        return np.stack([parts[k % len(devices)][k // len(devices)] for k in range(len(indices))])
    shape = jax.eval_shape(program, params, key, indices[0], labels[0])
    images = np.zeros((-(-len(indices) // len(members)), *shape.shape), shape.dtype)
    for k in range(len(own)):
        images[k] = parts[k % len(devices)][k // len(devices)]
    processes.agree("sampled")  # a collective would not wait long for the slowest
    everyone = multihost_utils.process_allgather(images)
    return np.stack([everyone[k % len(members), k // len(members)] for k in range(len(indices))])


def to_uint8(images: Array) -> Array:
    """[-1, 1] to uint8 0..255, clipped and rounded."""
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def grid_labels(num_classes: int) -> np.ndarray:
    """Labels of a grid with a row for each class; at most GRID_ROWS classes, evenly spaced."""
    if not num_classes:
        return np.full(GRID_ROWS * GRID_COLUMNS, NO_LABEL, np.int32)
    classes = np.unique(np.linspace(0, num_classes - 1, min(GRID_ROWS, num_classes)).round())
    return classes.astype(np.int32).repeat(GRID_COLUMNS)


def guide_experiment(experiment: Experiment) -> Experiment | None:
    """The experiment of `sampler.guide` as its checkpoint tells it; None if there is no guide.

    Raises:
      ConfigError: it has no such checkpoint, or samples other images or from other latents.
    """
    sampler = experiment.config.sampler
    if sampler.guide is None:
        return None
    saved = find_checkpoints(sampler.guide, sampler.guide_checkpoint)[0]
    config = ml_collections.ConfigDict(saved.facts["config"])
    config.sampler = ml_collections.ConfigDict(sampler.to_dict())
    guide = make_experiment(config)
    wanted = SAME_AS_GUIDE
    if sampler.guidance_latents == "shared":
        wanted += ("model.num_latents", "model.latent_dim")
    for name in wanted:
        section, field = name.split(".")
        ours, theirs = experiment.config[section][field], guide.config[section][field]
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} here and {theirs} in checkpoint {saved.step} of the guide in "
                f"{sampler.guide}"
                + (
                    "; set sampler.guidance_latents to 'own'."
                    if section == "model"
                    else "; name a guide of the same images and predictions."
                )
            )
    return guide


def load_guide(experiment: Experiment, mesh: Mesh) -> Guide | None:
    """The guide of `sampler.guide`; None if there is none. Errors as `guide_experiment`."""
    guide = guide_experiment(experiment)
    if guide is None:
        return None
    sampler = experiment.config.sampler
    *_, params = load_ema(guide, mesh, sampler.guide, checkpoint=sampler.guide_checkpoint)
    return Guide(guide, params)
