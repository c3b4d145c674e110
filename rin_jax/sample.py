"""The job that samples: images from the averaged weights of a run's newest checkpoint.

Image i of a seed comes from fold_in(key(seed), i) alone: its noise does not depend on the batch,
the devices or the processes that make it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax import checkpoints, reports, sharding
from rin_jax.diffusion.samplers import example_noise
from rin_jax.experiment import (
    ConfigError,
    Experiment,
    check_architecture,
    config_errors,
    device_mesh,
    make_experiment,
)
from rin_jax.network.rin import NO_LABEL
from rin_jax.state import abstract_state

Array = jax.Array
GRID_ROWS, GRID_COLUMNS = 10, 10
# generate(params, indices [B], labels [B]) -> uint8 images [B, H, W, C] on the host
Generate = Callable[[dict, np.ndarray, np.ndarray], np.ndarray]


def jit_sampler(experiment: Experiment, mesh: Mesh, seed: int):
    """The sampler's program: (params, indices [B], labels [B]) -> uint8 images [B, H, W, C]."""
    rin, sampler = experiment.rin, experiment.sampler

    def images_of(params, indices, labels):
        def denoise_fn(xt, gamma, cond, prev_latents):
            return rin.apply({"params": params}, xt, gamma, cond, prev_latents)

        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        noise, noise_fn = example_noise(keys, rin.image_shape)
        if not rin.num_classes:
            return to_uint8(sampler.sample(denoise_fn, noise, None, noise_fn))
        guided = experiment.guidance.classifier_free(denoise_fn, jnp.full_like(labels, NO_LABEL))
        return to_uint8(sampler.sample(guided, noise, labels, noise_fn))

    batch = sharding.batch_sharding(mesh)
    return jax.jit(
        images_of,
        in_shardings=(None, batch, batch),
        out_shardings=sharding.replicated(mesh),
    )


def compile_sampler(experiment: Experiment, mesh: Mesh, batch_size: int):
    """The sampler compiled for `mesh` and a batch, without any array."""
    params = abstract_state(experiment.rin, experiment.optimizer, mesh).ema_params
    rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    with sharding.logical_axes(mesh):
        return jit_sampler(experiment, mesh, seed=0).lower(params, rows, rows).compile()


def make_generate(experiment: Experiment, mesh: Mesh, seed: int) -> Generate:
    """A function that samples images `indices` of `seed` with the classes `labels`."""
    jitted = jit_sampler(experiment, mesh, seed)

    def generate(params, indices, labels):
        """Pads the batch to whole rows per device, samples, and takes the padding away."""
        count = len(indices)
        padding = (0, -count % sharding.batch_shards(mesh))
        indices = np.pad(np.asarray(indices, np.int32), padding)
        labels = np.pad(np.asarray(labels, np.int32), padding)
        rows = (sharding.from_every_process(x, mesh) for x in (indices, labels))
        with sharding.logical_axes(mesh):
            images = jitted(params, *rows)
        return np.asarray(jax.device_get(images))[:count]

    return generate


def to_uint8(images: Array) -> Array:
    """[-1, 1] to uint8 0..255, clipped and rounded."""
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def grid_labels(num_classes: int) -> np.ndarray:
    """Labels of a grid with a row for each class; at most GRID_ROWS classes, evenly spaced."""
    if not num_classes:
        return np.full(GRID_ROWS * GRID_COLUMNS, NO_LABEL, np.int32)
    classes = np.unique(np.linspace(0, num_classes - 1, min(GRID_ROWS, num_classes)).round())
    return classes.astype(np.int32).repeat(GRID_COLUMNS)


def load_ema(experiment: Experiment, mesh: Mesh, workdir: str) -> tuple[int, dict]:
    """(step, averaged parameters) of the newest checkpoint.

    Raises:
      ConfigError: there is no checkpoint, or it belongs to another architecture.
    """
    with config_errors():
        saved = checkpoints.latest(workdir)
    if saved is None:
        raise ConfigError(
            f"no checkpoint in {workdir}; train there first (--mode=train) or name another "
            "--workdir."
        )
    step, config = saved
    check_architecture(experiment.config, config, f"checkpoint {step} in {workdir}")
    abstract = abstract_state(experiment.rin, experiment.optimizer, mesh)
    with checkpoints.Checkpoints(workdir) as saver:
        return step, saver.restore_ema(abstract.ema_params, step)


def sample(config, workdir: str, classes: Sequence[int]) -> epath.Path:
    """Writes WORKDIR/samples/STEP.png: a row of images for each class asked for.

    `classes`: labels, one a row; empty for all (at most ten, evenly spaced).
    """
    experiment = make_experiment(config)
    num_classes = experiment.rin.num_classes
    for label in classes:
        if not 0 <= label < num_classes:
            raise ConfigError(
                f"--classes has {label}, but the model knows {num_classes} classes"
                + (f": 0..{num_classes - 1}." if num_classes else " (it is unconditional).")
            )
    labels = np.repeat(np.int32(classes), GRID_COLUMNS) if classes else grid_labels(num_classes)
    mesh = device_mesh(experiment.config)
    step, params = load_ema(experiment, mesh, workdir)
    generate = make_generate(experiment, mesh, experiment.config.seed)
    images = generate(params, np.arange(len(labels)), labels)
    path = epath.Path(workdir) / "samples" / f"{step:08d}.png"
    if jax.process_index() == 0:
        reports.write_png(path, reports.grid(images, GRID_COLUMNS))
    reports.say(f"{len(labels)} samples of step {step} (EMA weights): {path}")
    return path
