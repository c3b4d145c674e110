"""Update rules of samplers: an entry of RULES says all that there is to know of a rule.

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

Source: arXiv 2006.11239 section 3.2, arXiv 2010.02502 eq. 12 and 16, arXiv 2206.00364 section 3,
arXiv 2211.01095 sections 4 and 5.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rin_jax.diffusion.process import TINY, expand, signal_noise
from rin_jax.diffusion.schedules import logsnr

Array = jax.Array
# evaluate(xt [B, ...], gamma [B], latents) -> (clipped x0, its eps, latents)
Evaluate = Callable[[Array, Array, Any], tuple[Array, Array, Any]]


class Step(NamedTuple):
    """A step after its first evaluation; examples are [B, ...] and gammas [B]."""

    x0: Array  # the estimates of that evaluation
    eps: Array
    latents: Any  # what it returned
    gamma: Array  # signal power at the step's beginning
    gamma_next: Array  # and at its end
    last: Array  # bool scalar, whether the step ends at t = 0
    gamma_before: Array  # of the step before, `gamma` if there was none
    x0_before: Array  # the same for x0


def ddim(
    xt: Array, x0: Array, eps: Array, gamma: Array, gamma_next: Array, fresh: Array, eta: float
) -> Array:
    """One step; examples [B, ...], gammas [B]. With eta 0 `fresh` is not used."""
    del xt
    signal, noise = signal_noise(gamma_next, x0)
    if not eta:
        return signal * x0 + noise * eps
    posterior = (1 - gamma_next) / jnp.maximum(1 - gamma, TINY)
    variance = eta**2 * posterior * (1 - jnp.clip(gamma / gamma_next, 0.0, 1.0))
    noise = expand(jnp.sqrt(jnp.maximum(1 - gamma_next - variance, 0.0)), x0)
    return signal * x0 + noise * eps + expand(jnp.sqrt(variance), x0) * fresh


def ddpm(
    xt: Array, x0: Array, eps: Array, gamma: Array, gamma_next: Array, fresh: Array, eta: float,
    *, small_variance: bool,
) -> Array:  # fmt: skip
    """One ancestral step with all its fresh noise, of the large or the small variance."""
    del x0, eta
    alpha = jnp.clip(gamma / gamma_next, 0.0, 1.0)
    beta = 1 - alpha
    part = expand(beta / jnp.sqrt(jnp.maximum(1 - gamma, TINY)), xt)
    mean = (xt - part * eps) / expand(jnp.sqrt(alpha), xt)
    if small_variance:
        beta = beta * (1 - gamma_next) / jnp.maximum(1 - gamma, TINY)
    return mean + expand(jnp.sqrt(beta), xt) * fresh


def mean_of_both_ends(step: Step, evaluate: Evaluate) -> tuple[Array, Any]:
    """Heun: the mean of x0 and of the estimate at the step's end, and the latents of that.

    A step to t = 0 ends the sample and has no second evaluation.
    """

    def second(latents):
        x_end = ddim(step.x0, step.x0, step.eps, step.gamma_next, step.gamma_next, step.x0, 0)
        at_end, _, latents = evaluate(x_end, step.gamma_next, latents)
        return (step.x0 + at_end) / 2, latents

    return jax.lax.cond(step.last, lambda latents: (step.x0, latents), second, step.latents)


def extrapolated(step: Step, evaluate: Evaluate) -> tuple[Array, Any]:
    """DPM-Solver++(2M): x0 in the middle of the step, on the line through the one before."""
    del evaluate
    length = logsnr(step.gamma_next) - logsnr(step.gamma)
    length_before = logsnr(step.gamma) - logsnr(step.gamma_before)
    first = length_before == 0
    share = jnp.where(first, 0.0, length / jnp.where(first, 1.0, 2 * length_before))
    return step.x0 + expand(share, step.x0) * (step.x0 - step.x0_before), step.latents


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update rule."""

    update: Callable[..., Array]  # (xt, x0, eps, gamma, gamma_next, fresh, eta) -> x_next
    # (step, evaluate) -> (x0 for the update, latents to carry on); None: those of the evaluation
    estimate: Callable[[Step, Evaluate], tuple[Array, Any]] | None = None
    evaluations: int = 1  # of the network in a step, without refreshing; a step to t = 0 has one
    stochastic: bool = False  # whether every step adds fresh noise
    takes_eta: bool = False  # whether eta sets a share of fresh noise
    may_jump: bool = False  # whether a step may aim beyond the next one's time (time_difference)


DDPM = {"stochastic": True, "may_jump": True}
RULES: dict[str, Rule] = {
    "ddim": Rule(ddim, takes_eta=True, may_jump=True),
    "heun": Rule(ddim, mean_of_both_ends, evaluations=2),
    "dpmpp_2m": Rule(ddim, extrapolated, takes_eta=True),
    "ddpm_large": Rule(functools.partial(ddpm, small_variance=False), **DDPM),
    "ddpm_small": Rule(functools.partial(ddpm, small_variance=True), **DDPM),
}
