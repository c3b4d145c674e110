"""Samplers: one function per update rule and one scan that carries (xt, latents).

    t_i = 1 - i / N,   t_i' = max(1 - (i + 1 + d) / N, 0),   i = 0 .. N - 1
    DDIM   x' = sqrt(gamma') x0 + sqrt(1 - gamma') eps
    DDPM   x' = (x - (1 - a) / sqrt(1 - gamma) eps) / sqrt(a) + sigma z,   a = gamma / gamma'
           sigma^2 = 1 - a ("large") or (1 - a)(1 - gamma') / (1 - gamma) ("small")

The result is the last step's estimate of x0. Each step's latents start the next step.

Source: arXiv 2006.11239 section 3.2, arXiv 2010.02502 eq. 12, arXiv 2212.11972 section 2.3.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.process import TINY, Process, expand, signal_noise
from rin_jax.diffusion.schedules import Schedule

Array = jax.Array
# noise_fn(i) -> fresh noise [B, ...] of step i
NoiseFn = Callable[[Array], Array]


def ddim(
    xt: Array, x0: Array, eps: Array, gamma: Array, gamma_next: Array, fresh: Array
) -> Array:
    """One deterministic step; images [B, ...], gammas [B]. `fresh` is not used."""
    del xt, gamma, fresh
    signal, noise = signal_noise(gamma_next, x0)
    return signal * x0 + noise * eps


def ddpm(
    xt: Array,
    x0: Array,
    eps: Array,
    gamma: Array,
    gamma_next: Array,
    fresh: Array,
    *,
    variance: str,
) -> Array:
    """One ancestral step with fresh noise; `variance` "large" or "small"."""
    del x0
    alpha = jnp.clip(gamma / gamma_next, 0.0, 1.0)
    beta = 1 - alpha
    mean = (xt - expand(beta / jnp.sqrt(jnp.maximum(1 - gamma, TINY)), xt) * eps) / expand(
        jnp.sqrt(alpha), xt
    )
    if variance == "small":
        beta = beta * (1 - gamma_next) / jnp.maximum(1 - gamma, TINY)
    return mean + expand(jnp.sqrt(beta), xt) * fresh


UPDATES: dict[str, Callable[..., Array]] = {
    "ddim": ddim,
    "ddpm_large": functools.partial(ddpm, variance="large"),
    "ddpm_small": functools.partial(ddpm, variance="small"),
}


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling procedure.

    Attributes:
      process: scaling and prediction type, as in training.
      schedule: gamma(t) of sampling; need not be that of training.
      name: update rule: "ddim", "ddpm_large" or "ddpm_small".
      num_steps: N, network evaluations.
      time_difference: d >= 0, each step aims this many steps further than the next time.
      latent_decay: weight in [0, 1) of the carried latents in an exponential mean; 0 carries
        the last step's latents as they are.
    """

    process: Process
    schedule: Schedule
    name: str
    num_steps: int
    time_difference: float
    latent_decay: float

    def __post_init__(self):
        if self.name not in UPDATES:
            raise ValueError(
                f"sampler.name is {self.name!r}; choose one of {', '.join(UPDATES)}."
            )
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps is {self.num_steps}; it must be at least 1.")
        if self.time_difference < 0:
            raise ValueError(
                f"sampler.time_difference is {self.time_difference}; it must not be negative."
            )
        if not 0 <= self.latent_decay < 1:
            raise ValueError(f"sampler.latent_decay is {self.latent_decay}; it must be in [0, 1).")

    def times(self) -> tuple[Array, Array]:
        """(t, t_next), both [num_steps]."""
        steps = jnp.arange(self.num_steps, dtype=jnp.float32)
        ahead = steps + 1 + self.time_difference
        return 1 - steps / self.num_steps, jnp.maximum(1 - ahead / self.num_steps, 0.0)

    def step(
        self,
        denoise_fn: DenoiseFn,
        xt: Array,
        latents: Any,
        cond: Any,
        t: Array,
        t_next: Array,
        fresh: Array,
    ) -> tuple[Array, Any, Array]:
        """One step from scalar time t to t_next: (x_next, latents, x0)."""
        batch = xt.shape[:1]
        gamma = jnp.broadcast_to(self.schedule(t), batch)
        gamma_next = jnp.broadcast_to(self.schedule(t_next), batch)
        prediction, new = denoise_fn(self.process.network_input(xt), gamma, cond, latents)
        decay = self.latent_decay
        latents = jax.tree.map(lambda old, z: decay * old + (1 - decay) * z, latents, new)
        x0, eps = self.process.to_clipped_x0_eps(prediction, xt, gamma)
        x_next = UPDATES[self.name](xt, x0, eps, gamma, gamma_next, fresh)
        return x_next, latents, x0

    def sample(self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn) -> Array:
        """Images [B, ...] in [-1, 1] from `noise` [B, ...]; one scan over the steps.

        `noise_fn(i)` gives the fresh noise of step i (not called by "ddim").
        """
        t, t_next = self.times()
        gamma = jnp.broadcast_to(self.schedule(t[0]), noise.shape[:1])
        shapes = jax.eval_shape(denoise_fn, noise, gamma, cond, None)[1]
        latents = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(carry, step):
            i, t, t_next = step
            xt, latents, _ = carry
            fresh = jnp.zeros_like(xt) if self.name == "ddim" else noise_fn(i)
            return self.step(denoise_fn, xt, latents, cond, t, t_next, fresh), None

        steps = (jnp.arange(self.num_steps), t, t_next)
        (_, _, x0), _ = jax.lax.scan(body, (noise, latents, jnp.zeros_like(noise)), steps)
        return self.process.to_images(x0)


def example_noise(keys: Array, shape: tuple[int, ...]) -> tuple[Array, NoiseFn]:
    """Initial noise [B, *shape] and fresh noise per step, each example from its own key [B].

    An example's noise depends on its key alone, so image i is the same in any batch.
    """

    def draw(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    return draw(0), lambda i: draw(i + 1)
