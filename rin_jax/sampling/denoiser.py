"""Where network and diffusion meet: the only place where a RIN becomes a denoise_fn.

    denoise_fn(xt, gamma, cond, prev_latents) -> (prediction, latents)

Training, sampling, traces, exports and benchmarks take theirs from here. xt is what
`Process.network_input` gives.
"""

from collections.abc import Mapping
from typing import Any

import jax

from rin_jax.diffusion.guidance import DenoiseFn, Guidance
from rin_jax.network import conditioning
from rin_jax.network.attention_maps import apply_with_reads
from rin_jax.network.conditioning import Cond
from rin_jax.network.rin import RIN

Params = Mapping[str, Any]


def denoiser(rin: RIN, params: Params) -> DenoiseFn:
    """The network as it samples: nothing is dropped."""

    def denoise_fn(xt, gamma, cond, prev_latents):
        return rin.apply({"params": params}, xt, gamma, cond, prev_latents)

    return denoise_fn


def training_denoiser(rin: RIN, params: Params, key: jax.Array) -> DenoiseFn:
    """The network as it trains; `key` seeds its dropout."""

    def denoise_fn(xt, gamma, cond, prev_latents):
        dropout = {"dropout": key}
        return rin.apply({"params": params}, xt, gamma, cond, prev_latents, True, rngs=dropout)

    return denoise_fn


def reading_denoiser(rin: RIN, params: Params) -> DenoiseFn:
    """The network with latents that carry what the pass read: {"latents", "reads"}.

    reads [B, blocks, H / P, W / P]: see `attention_maps`.
    """

    def denoise_fn(xt, gamma, cond, prev_latents):
        prev_latents = None if prev_latents is None else prev_latents["latents"]
        prediction, latents, reads = apply_with_reads(rin, params, xt, gamma, cond, prev_latents)
        return prediction, {"latents": latents, "reads": reads}

    return denoise_fn


def without_reads(denoise_fn: DenoiseFn) -> DenoiseFn:
    """A guide beside a `reading_denoiser`: it takes latents of that form and has no reads."""

    def wrapped(xt, gamma, cond, prev_latents):
        prev_latents = None if prev_latents is None else prev_latents["latents"]
        prediction, latents = denoise_fn(xt, gamma, cond, prev_latents)
        return prediction, {"latents": latents}

    return wrapped


def guided(
    guidance: Guidance, denoise_fn: DenoiseFn, guide_fn: DenoiseFn | None, cond: Cond
) -> DenoiseFn:
    """`denoise_fn` under guidance, by `guide_fn` if there is one, else without the condition."""
    if guide_fn is not None:
        return guidance.auto(denoise_fn, guide_fn)
    return guidance.classifier_free(denoise_fn, conditioning.null(cond))
