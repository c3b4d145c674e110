"""Guidance: wrappers denoise_fn -> denoise_fn.

Source: classifier-free guidance, arXiv 2207.12598 eq. 6, with w = 0 for none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
# denoise_fn(xt, gamma, cond, prev_latents) -> (prediction, latents)
DenoiseFn = Callable[[Array, Array, Any, Any], tuple[Array, Any]]


def classifier_free(denoise_fn: DenoiseFn, null_cond: Any, guidance_scale: float) -> DenoiseFn:
    """(1 + w) prediction(cond) - w prediction(null_cond), w = guidance_scale >= 0.

    Both passes start from the same latents; those of the conditional pass are carried on.
    They run as one batch of twice the size.
    """
    if guidance_scale < 0:
        raise ValueError(f"sampler.guidance_scale is {guidance_scale}; 0 is none, else positive.")
    if guidance_scale == 0:
        return denoise_fn

    def double(a, b):
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)

    def guided(xt, gamma, cond, prev_latents):
        batch = xt.shape[0]
        prediction, latents = denoise_fn(
            double(xt, xt),
            double(gamma, gamma),
            double(cond, null_cond),
            double(prev_latents, prev_latents),
        )
        with_cond, without = prediction[:batch], prediction[batch:]
        latents = jax.tree.map(lambda z: z[:batch], latents)
        return (1 + guidance_scale) * with_cond - guidance_scale * without, latents

    return guided
