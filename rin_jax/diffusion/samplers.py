"""Samplers: update rules and one scan that carries images and latents.

    t_i = 1 - i / N,   t_i' = max(1 - (i + 1 + d) / N, 0),   i = 0 .. N - 1
    DDIM   x' = sqrt(gamma') x0 + sqrt(1 - gamma' - v) eps + sqrt(v) z
           v = eta^2 (1 - gamma') / (1 - gamma) (1 - gamma / gamma')
    DDPM   x' = (x - (1 - a) / sqrt(1 - gamma) eps) / sqrt(a) + sigma z,   a = gamma / gamma'
           sigma^2 = 1 - a ("large") or (1 - a)(1 - gamma') / (1 - gamma) ("small")

With y = x / sqrt(1 - gamma) and s = sqrt(gamma / (1 - gamma)) the probability flow is
dy/ds = x0(y, s), and DDIM with eta 0 is Euler's method for it. The second-order rules are DDIM
steps with a better x0:

    Heun   the mean of x0 and of what the network says at the end of the step
    DPM-Solver++(2M)   x0 + h / (2 h_before) (x0 - x0_before),   h = difference of log s

and with eta 1 the latter is SDE-DPM-Solver++(2M). A form of Heun's method that moves x along eps
would multiply errors of the first step by 1 / sqrt(gamma); x0 is bounded.

The result is the last step's estimate of x0: a step to t = 0 returns it in every rule. The
schedule is the grid: equal steps of t in any gamma(t).

Latents. Each evaluation of the network starts from the latents of the one before it, whatever step
or stage that belongs to. So Heun's second evaluation, at the end of the step, receives those of the
first, one step away as always, and hands on its own. The next step then begins at the noise level
that its latents come from, with nearly the same image, which is closer to training (both passes at
one image and gamma) than the first stage's latents would be. `refresh` passes at the start of a
step do exactly what training does: they update the latents at the image and gamma of the step.

Source: arXiv 2006.11239 section 3.2, arXiv 2010.02502 eq. 12 and 16, arXiv 2206.00364 section 3,
arXiv 2211.01095 sections 4 and 5, arXiv 2212.11972 section 2.3.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.process import TINY, Process, eps_from_x0, expand, signal_noise
from rin_jax.diffusion.schedules import Schedule, logsnr

Array = jax.Array
# noise_fn(i) -> fresh noise [B, ...] of step i
NoiseFn = Callable[[Array], Array]
# watch(x0 [B, ...], latents) -> what to keep of a step
Watch = Callable[[Array, Any], Any]
Before = tuple[Array, Array]  # time and x0 of the step before


def ddim(
    xt: Array,
    x0: Array,
    eps: Array,
    gamma: Array,
    gamma_next: Array,
    fresh: Array,
    eta: float = 0.0,
) -> Array:
    """One step; images [B, ...], gammas [B]. With eta 0 `fresh` is not used."""
    del xt
    signal, noise = signal_noise(gamma_next, x0)
    if not eta:
        return signal * x0 + noise * eps
    posterior = (1 - gamma_next) / jnp.maximum(1 - gamma, TINY)
    variance = eta**2 * posterior * (1 - jnp.clip(gamma / gamma_next, 0.0, 1.0))
    noise = expand(jnp.sqrt(jnp.maximum(1 - gamma_next - variance, 0.0)), x0)
    return signal * x0 + noise * eps + expand(jnp.sqrt(variance), x0) * fresh


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
    "heun": ddim,
    "dpmpp_2m": ddim,
    "ddpm_large": functools.partial(ddpm, variance="large"),
    "ddpm_small": functools.partial(ddpm, variance="small"),
}
WITH_ETA = ("ddim", "dpmpp_2m")
ONE_STEP = ("ddim", "ddpm_large", "ddpm_small")  # rules that look at one time of a step alone
LATENTS = ("carry", "reset")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling procedure.

    Attributes:
      process: scaling and prediction type, as in training.
      schedule: gamma(t) of sampling; need not be that of training.
      name: "ddim", "ddpm_large", "ddpm_small", "heun" or "dpmpp_2m".
      num_steps: N.
      eta: share of fresh noise in [0, 1], of "ddim" and "dpmpp_2m"; 0 is deterministic.
      time_difference: d >= 0, each step aims this many steps further than the next time; of
        "ddim", "ddpm_large" and "ddpm_small".
      latents: "carry" from step to step, or "reset" to zero at the start of each step.
      refresh: evaluations at the start of each step that update the latents alone.
      latent_decay: weight in [0, 1) of the carried latents in an exponential mean; 0 carries
        the last evaluation's latents as they are.
    """

    process: Process
    schedule: Schedule
    name: str
    num_steps: int
    eta: float
    time_difference: float
    latents: str
    refresh: int
    latent_decay: float

    def __post_init__(self):
        for field, allowed in (("name", UPDATES), ("latents", LATENTS)):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"sampler.{field} is {getattr(self, field)!r}; choose one of "
                    f"{', '.join(allowed)}."
                )
        if self.num_steps < 1:
            raise ValueError(f"sampler.num_steps is {self.num_steps}; it must be at least 1.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"sampler.eta is {self.eta}; it must be in [0, 1].")
        if self.eta and self.name not in WITH_ETA:
            raise ValueError(
                f"sampler.eta is {self.eta}, but sampler.name is {self.name!r}, which does not "
                f"read it; set it to 0, or the name to {' or '.join(WITH_ETA)}."
            )
        if self.time_difference < 0:
            raise ValueError(
                f"sampler.time_difference is {self.time_difference}; it must not be negative."
            )
        if self.time_difference and self.name not in ONE_STEP:
            raise ValueError(
                f"sampler.time_difference is {self.time_difference}, but sampler.name is "
                f"{self.name!r}, whose steps must join; set it to 0, or the name to "
                f"{' or '.join(ONE_STEP)}."
            )
        if self.refresh < 0:
            raise ValueError(f"sampler.refresh is {self.refresh}; it must not be negative.")
        if not 0 <= self.latent_decay < 1:
            raise ValueError(f"sampler.latent_decay is {self.latent_decay}; it must be in [0, 1).")
        if self.latent_decay and self.latents == "reset":
            raise ValueError(
                f"sampler.latent_decay is {self.latent_decay}, but sampler.latents is 'reset', "
                "which leaves nothing to average with; set one of them to 0 or 'carry'."
            )

    @property
    def num_evaluations(self) -> int:
        """How often the network is evaluated for a sample."""
        second = self.num_steps - 1 if self.name == "heun" else 0
        return self.num_steps * (1 + self.refresh) + second

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.eta > 0 or self.name.startswith("ddpm")

    def times(self) -> tuple[Array, Array]:
        """(t, t_next), both [num_steps]."""
        steps = jnp.arange(self.num_steps, dtype=jnp.float32)
        ahead = steps + 1 + self.time_difference
        return 1 - steps / self.num_steps, jnp.maximum(1 - ahead / self.num_steps, 0.0)

    def check_grid(self) -> None:
        """Raises ValueError if there are steps in which gamma does not grow, in float32."""

        def standing(num_steps):
            t = np.zeros(self.num_steps + 1, np.float32)  # one shape, so that nothing recompiles
            t[: num_steps + 1] = 1 - np.arange(num_steps + 1, dtype=np.float32) / num_steps
            gamma = np.asarray(self.schedule(jnp.asarray(t)))[: num_steps + 1]
            return t[:num_steps][~(np.diff(gamma) > 0)]

        still = standing(self.num_steps)
        if not len(still):
            return
        few, many = 1, self.num_steps  # the most that are possible, by bisection
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if len(standing(middle)) else (middle, many)
        raise ValueError(
            f"sampler.num_steps is {self.num_steps}, more than its grid allows: gamma does not "
            f"grow in the step from t = {still[0]:.6g}; set it to {few} or less, or choose another "
            "sampler.schedule."
        )

    def evaluate(
        self, denoise_fn: DenoiseFn, xt: Array, gamma: Array, cond: Any, latents: Any
    ) -> tuple[Array, Array, Any]:
        """One pass of the network at xt [B, ...] and gamma [B]: (clipped x0, its eps, latents)."""
        prediction, new = denoise_fn(self.process.network_input(xt), gamma, cond, latents)
        decay = self.latent_decay
        latents = jax.tree.map(lambda old, z: decay * old + (1 - decay) * z, latents, new)
        return *self.process.to_clipped_x0_eps(prediction, xt, gamma), latents

    def step(
        self,
        denoise_fn: DenoiseFn,
        xt: Array,
        latents: Any,
        cond: Any,
        t: Array,
        t_next: Array,
        fresh: Array,
        before: Before | None = None,
    ) -> tuple[Array, Any, Array]:
        """One step from scalar time t to t_next: (x_next, latents, x0).

        "dpmpp_2m" needs `before`; a step that it says began at t itself is the first.
        """
        batch = xt.shape[:1]
        gamma = jnp.broadcast_to(self.schedule(t), batch)
        gamma_next = jnp.broadcast_to(self.schedule(t_next), batch)
        if self.latents == "reset":
            latents = jax.tree.map(jnp.zeros_like, latents)
        if self.refresh:
            latents = jax.lax.fori_loop(
                0,
                self.refresh,
                lambda _, z: self.evaluate(denoise_fn, xt, gamma, cond, z)[2],
                latents,
            )
        x0, eps, latents = self.evaluate(denoise_fn, xt, gamma, cond, latents)
        better = x0
        if self.name == "heun":
            better, latents = self._mean_of_both_ends(
                denoise_fn, cond, x0, eps, latents, gamma_next, t_next
            )
        elif self.name == "dpmpp_2m":
            better = self._extrapolate(x0, before, gamma, gamma_next)
        if better is not x0:
            eps = eps_from_x0(xt, better, gamma)
        update = functools.partial(ddim, eta=self.eta) if self.eta else UPDATES[self.name]
        return update(xt, better, eps, gamma, gamma_next, fresh), latents, x0

    def _mean_of_both_ends(self, denoise_fn, cond, x0, eps, latents, gamma_next, t_next):
        """Heun: the mean of x0 and the estimate at the step's end; (mean, its latents).

        A step to t = 0 ends the sample and has no second evaluation.
        """

        def second(latents):
            x_end = ddim(x0, x0, eps, gamma_next, gamma_next, x0)
            at_end, _, latents = self.evaluate(denoise_fn, x_end, gamma_next, cond, latents)
            return (x0 + at_end) / 2, latents

        return jax.lax.cond(t_next > 0, second, lambda latents: (x0, latents), latents)

    def _extrapolate(self, x0: Array, before: Before, gamma: Array, gamma_next: Array) -> Array:
        """DPM-Solver++(2M): x0 in the middle of the step, on the line through the one before."""
        t_before, x0_before = before
        gamma_before = jnp.broadcast_to(self.schedule(t_before), gamma.shape)
        length, length_before = (
            logsnr(end) - logsnr(start)
            for start, end in ((gamma, gamma_next), (gamma_before, gamma))
        )
        first = length_before == 0
        share = jnp.where(first, 0.0, length / jnp.where(first, 1.0, 2 * length_before))
        return x0 + expand(share, x0) * (x0 - x0_before)

    def sample(self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn) -> Array:
        """Images [B, ...] in [-1, 1] from `noise` [B, ...]; one scan over the steps.

        `noise_fn(i)` gives the fresh noise of step i (not called if there is none).
        """
        return self.watched(denoise_fn, noise, cond, noise_fn, lambda x0, latents: None)[0]

    def watched(
        self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn, watch: Watch
    ) -> tuple[Array, Any]:
        """`sample`, and what `watch` keeps of each step, with the steps as a leading axis."""
        t, t_next = self.times()
        gamma = jnp.broadcast_to(self.schedule(t[0]), noise.shape[:1])
        shapes = jax.eval_shape(denoise_fn, noise, gamma, cond, None)[1]
        latents = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(carry, step):
            i, t_before, t, t_next = step
            xt, latents, x0 = carry
            fresh = noise_fn(i) if self.stochastic else jnp.zeros_like(xt)
            carry = self.step(
                denoise_fn, xt, latents, cond, t, t_next, fresh, before=(t_before, x0)
            )
            return carry, watch(carry[2], carry[1])

        steps = (jnp.arange(self.num_steps), jnp.concatenate([t[:1], t[:-1]]), t, t_next)
        (_, _, x0), kept = jax.lax.scan(body, (noise, latents, jnp.zeros_like(noise)), steps)
        return self.process.to_images(x0), kept


def example_noise(keys: Array, shape: tuple[int, ...]) -> tuple[Array, NoiseFn]:
    """Initial noise [B, *shape] and fresh noise per step, each example from its own key [B].

    An example's noise depends on its key alone, so image i is the same in any batch.
    """

    def draw(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    return draw(0), lambda i: draw(i + 1)
