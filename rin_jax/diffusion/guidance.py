"""Guidance: wrappers denoise_fn -> denoise_fn that push one prediction away from another.

    prediction = (1 + w) first - w second,   w = scale where gamma is in the interval, else 0

`first` is the conditional prediction. `second` is that without the condition (classifier-free
guidance, arXiv 2207.12598 eq. 6) or that of a weaker network under the same condition
(autoguidance, arXiv 2406.02507 eq. 3). The interval is that of arXiv 2404.07724, whose noise level
sigma is sqrt((1 - gamma) / gamma) here.

Latents: `first` always starts from what it returned a step before. `second` starts from the same
latents ("shared"), or from what it returned itself ("own"); then the latents that are carried are a
pair. Where w is 0 for the whole batch `second` is not computed, and its own latents stay as they
are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rin_jax import ConfigError, one_of

Array = jax.Array
# denoise_fn(xt, gamma, cond, prev_latents) -> (prediction, latents)
DenoiseFn = Callable[[Array, Array, Any, Any], tuple[Array, Any]]
Pass = tuple[Array, Any]  # prediction and latents

EVERYWHERE = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How much, where, and what the second pass starts from."""

    scale: float  # w >= 0 of (1 + w) first - w second; 0 is no guidance (elsewhere that is 1)
    interval: tuple[float, float]  # (low, high), the gammas between which it acts, both included
    latents: str  # that the second pass starts from: those of the first, "shared", or its "own"

    def __post_init__(self):
        if self.scale < 0:
            raise ConfigError(
                f"sampler.guidance_scale is {self.scale}; 0 is no guidance, positive is stronger."
            )
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ConfigError(
                f"sampler.guidance_interval is {self.interval}; it must be (low, high) with "
                "0 <= low < high <= 1, values of gamma."
            )
        one_of("sampler.guidance_latents", self.latents, ("shared", "own"))

    @property
    def carries_pair(self) -> bool:
        """Whether the latents of a guided denoise_fn are a pair, of the first and second pass."""
        return self.scale > 0 and self.latents == "own"

    def classifier_free(self, denoise_fn: DenoiseFn, null_cond: Any) -> DenoiseFn:
        """Away from the prediction under `null_cond`; one batch of twice the size."""

        def both(xt, gamma, cond, first, second):
            one, other = (xt, gamma, cond, first), (xt, gamma, null_cond, second)
            passes = denoise_fn(*jax.tree.map(lambda x, y: jnp.concatenate([x, y]), one, other))
            halves = slice(xt.shape[0]), slice(xt.shape[0], None)
            return tuple(jax.tree.map(lambda z, half=half: z[half], passes) for half in halves)

        return self._guided(denoise_fn, both)

    def auto(self, denoise_fn: DenoiseFn, guide_fn: DenoiseFn) -> DenoiseFn:
        """Away from the prediction of `guide_fn`, a smaller or less trained network."""

        def both(xt, gamma, cond, first, second):
            return denoise_fn(xt, gamma, cond, first), guide_fn(xt, gamma, cond, second)

        return self._guided(denoise_fn, both)

    def _guided(self, denoise_fn: DenoiseFn, both: Callable[..., tuple[Pass, Pass]]) -> DenoiseFn:
        if not self.scale:
            return denoise_fn
        low, high = self.interval

        def guided(xt, gamma, cond, prev_latents):
            own = self.latents == "own"
            pair = prev_latents if own and prev_latents is not None else (prev_latents,) * 2

            def inside(pair):
                (first, latents), (second, others) = both(xt, gamma, cond, *pair)
                w = self.scale
                if self.interval != EVERYWHERE:
                    w = w * ((low <= gamma) & (gamma <= high))
                    w = w.reshape(w.shape + (1,) * (xt.ndim - 1))
                return (1 + w) * first - w * second, (latents, others)

            def outside(pair):
                prediction, latents = denoise_fn(xt, gamma, cond, pair[0])
                return prediction, (latents, pair[1])

            if self.interval == EVERYWHERE or prev_latents is None:
                prediction, pair = inside(pair)
            else:
                acts = jnp.any((low <= gamma) & (gamma <= high))
                prediction, pair = jax.lax.cond(acts, inside, outside, pair)
            return prediction, pair if own else pair[0]

        return guided
