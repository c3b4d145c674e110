"""The two programs of an experiment that other runtimes get: denoiser and sampler.

    denoiser(params, xt, gamma, labels, latents) -> (prediction, latents)
    sampler(params, noise, labels, keys) -> images

Both take the images as the process has them, so dividing by the standard deviation
(`diffusion.normalize_input`) is inside.
"""

from collections.abc import Callable
from typing import Any

import jax

from rin_jax.experiment import Experiment
from rin_jax.network import conditioning
from rin_jax.sampling.denoiser import denoiser as network_denoiser
from rin_jax.sampling.denoiser import guided

Array = jax.Array
# denoiser(params, xt [B, H, W, C], gamma [B], labels [B], latents) -> (prediction, latents)
Denoiser = Callable[[Any, Array, Array, Array, Any], tuple[Array, Any]]
# sampler(params, noise [B, H, W, C], labels [B], keys uint32 [B, 2]) -> images [B, H, W, C]
Sampler = Callable[[Any, Array, Array, Array], Array]


def make_denoiser(experiment: Experiment) -> Denoiser:
    """One pass of the network on xt.

    labels: int32 in 0..num_classes-1 or NO_LABEL; not read if the model has no classes.
    latents: those of the pass before, zeros at first; float32 [B, M, E], or with
    interface_self_cond {"latents": that, "interface": [B, N, D]}.
    """
    rin, process = experiment.rin, experiment.sampler.process

    def denoiser(params, xt, gamma, labels, latents):
        cond = conditioning.of_labels(labels, rin.num_classes)
        return network_denoiser(rin, params)(process.network_input(xt), gamma, cond, latents)

    return denoiser


def make_sampler(experiment: Experiment) -> Sampler:
    """The experiment's sampler with its guidance; images in [-1, 1].

    labels: as for `make_denoiser`. keys: raw threefry keys; the fresh noise of step i of an
    example is that of fold_in(key, i + 1), as in `samplers.example_noise`. DDIM reads none.
    """
    rin, sampler = experiment.rin, experiment.sampler

    def images_of(params, noise, labels, keys):
        def fresh(i):
            def draw(key):
                key = jax.random.wrap_key_data(key, impl="threefry2x32")
                return jax.random.normal(jax.random.fold_in(key, i + 1), noise.shape[1:])

            return jax.vmap(draw)(keys)

        cond = conditioning.of_labels(labels, rin.num_classes)
        denoise_fn = guided(experiment.guidance, network_denoiser(rin, params), None, cond)
        return sampler.sample(denoise_fn, noise, cond, fresh)

    return images_of
