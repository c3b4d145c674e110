"""The programs that other runtimes get, denoiser and sampler, and how they are serialised.

    denoiser(params, xt [B, ...], gamma [B], labels [B], latents) -> (prediction, latents)
    sampler(params, noise [B, ...], labels [B], keys uint32 [B, 2]) -> samples [B, ...]

Both take examples as the process has them, so dividing by the standard deviation
(`diffusion.normalize_input`) is inside. Labels are int32 in 0..num_classes-1 or NO_LABEL, and not
read if the model has no classes. Where the network is given frames of a video, both take them as
the keyword argument `frames` [B, c, H, W, C]: the sampler uint8, the denoiser float32 as x0 is.

As StableHLO, serialised by jax.export, they need no rin_jax: the batch is symbolic and the weights
are an argument, {name: array} as model.safetensors has them, so that a program is some ten
kilobytes, runs on CPU, CUDA and TPU, and serves any weights of its network. Products are computed
at full float32 precision on every platform; a network that computes in bfloat16 still does.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from rin_jax.diffusion.samplers import example_noise
from rin_jax.experiment import Experiment
from rin_jax.interop.export_format import flatten, nest
from rin_jax.network import conditioning
from rin_jax.network.partitioning import param_shapes
from rin_jax.sampling.conditions import scaled_frames
from rin_jax.sampling.denoiser import denoiser as network_denoiser
from rin_jax.sampling.denoiser import guided

PLATFORMS = ("cpu", "cuda", "tpu")
DENOISER, SAMPLER = "denoiser.stablehlo", "sampler.stablehlo"


def make_denoiser(experiment: Experiment) -> Callable[..., Any]:
    """One pass of the network on xt; latents as `RIN` returns them, zeros at first."""
    rin, process = experiment.rin, experiment.sampler.process

    def denoiser(params, xt, gamma, labels, latents, **frames):
        cond = conditioning.of_labels(labels, rin.num_classes) | frames
        return network_denoiser(rin, params)(process.network_input(xt), gamma, cond, latents)

    return denoiser


def make_sampler(experiment: Experiment) -> Callable[..., Any]:
    """The experiment's sampler with its guidance; samples in [-1, 1].

    keys: raw threefry keys for `samplers.example_noise`. DDIM reads none.
    """
    rin, sampler = experiment.rin, experiment.sampler

    def samples_of(params, noise, labels, keys, **frames):
        scale = sampler.process.input_scale
        frames = {name: scaled_frames(values, scale) for name, values in frames.items()}
        keys = jax.random.wrap_key_data(keys, impl="threefry2x32")
        _, fresh = example_noise(keys, noise.shape[1:])
        cond = conditioning.of_labels(labels, rin.num_classes) | frames
        denoise_fn = guided(experiment.guidance, network_denoiser(rin, params), None, cond)
        return sampler.sample(denoise_fn, noise, cond, fresh)

    return samples_of


def write(folder: epath.Path, experiment: Experiment) -> None:
    """Writes both programs, with flat parameters."""
    rin = experiment.rin
    (batch,) = export.symbolic_shape("batch")
    params = flatten(param_shapes(rin))
    examples = jax.ShapeDtypeStruct((batch, *rin.example_shape), jnp.float32)
    gamma = jax.ShapeDtypeStruct((batch,), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    keys = jax.ShapeDtypeStruct((batch, 2), jnp.uint32)
    passed = examples, gamma, labels, rin.abstract_latents(batch)
    given = rin.abstract_cond(batch).get("frames")
    for name, program, arguments, dtype in (
        (DENOISER, make_denoiser(experiment), passed, jnp.float32),
        (SAMPLER, make_sampler(experiment), (examples, labels, keys), jnp.uint8),
    ):
        frames = {}
        if given is not None:
            frames = {"frames": jax.ShapeDtypeStruct(given.shape, dtype)}

        def flat(weights, *rest, program=program, **frames):
            with jax.default_matmul_precision("highest"):
                return program(nest(weights), *rest, **frames)

        with without_source_lines():
            exporter = export.export(jax.jit(flat), platforms=PLATFORMS)
            exported = exporter(params, *arguments, **frames)
        (folder / name).write_bytes(exported.serialize())


@contextlib.contextmanager
def without_source_lines() -> Iterator[None]:
    """Leaves the paths of this machine's source files out of programs that are lowered."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)
