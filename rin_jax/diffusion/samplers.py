"""Samplers: one scan over the steps of an update rule that carries examples and latents.

    t_i = 1 - i / N,   t_i' = max(1 - (i + 1 + d) / N, 0),   i = 0 .. N - 1

The result is the last step's estimate of x0: a step to t = 0 returns it in every rule. The
schedule is the grid: equal steps of t in any gamma(t).

Latents. Each evaluation of the network starts from the latents of the one before it, whatever step
or stage that belongs to. So Heun's second evaluation, at the end of the step, receives those of the
first, one step away as always, and hands on its own. The next step then begins at the noise level
that its latents come from, with nearly the same input, which is closer to training (both passes at
one input and gamma) than the first stage's latents would be. `refresh` passes at the start of a
step do exactly what training does: they update the latents at the input and gamma of the step.

Given examples. A sample may start from an example x0_g, noised, at a later step than the first, and
keep a part of it: before each step the part that is kept becomes

    xt = sqrt(gamma) x0_g + sqrt(1 - gamma) eps

with fresh eps, at the noise level of the rest, so that each evaluation sees both. This is eq. 8 of
RePaint, without its resampling.

Source: arXiv 2212.11972 section 2.3, arXiv 2201.09865 eq. 8; those of the rules are in
update_rules.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rin_jax import ConfigError, at_least_one, one_of
from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.process import Process, add_noise, eps_from_x0
from rin_jax.diffusion.schedules import Schedule
from rin_jax.diffusion.update_rules import RULES, Rule, Step

Array = jax.Array
# noise_fn(i) -> fresh noise [B, ...] of step i
NoiseFn = Callable[[Array], Array]
# watch(x0 [B, ...], latents) -> what to keep of a step
Watch = Callable[[Array, Any], Any]
Before = tuple[Array, Array]  # time (a scalar) and x0 [B, ...] of the step before

MOST_STEPS = 2**24


class Given(NamedTuple):
    """Examples that samples start from, and which part of them they keep."""

    x0: Array  # [B, ...], in the range of the process
    free: Array  # bool, broadcasts to x0: where a sample is made; elsewhere it is x0
    first: int  # of the steps 0..num_steps-1; from 0 the free part starts as noise alone


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampling procedure."""

    process: Process  # scaling and prediction type, as in training
    schedule: Schedule  # gamma(t) of sampling; need not be that of training
    name: str  # of the update rule: "ddim", "ddpm_large", "ddpm_small", "heun" or "dpmpp_2m"
    num_steps: int  # steps from noise to an image
    eta: float  # share of fresh noise in [0, 1], for rules that take it; 0 is deterministic
    time_difference: float  # d >= 0: a step aims d steps beyond the next time, if its rule may
    latents: str  # "carry" from step to step, or "reset" to zero at the start of each step
    refresh: int  # evaluations at the start of each step that update the latents alone
    latent_decay: float  # weight in [0, 1) of the carried latents in an exponential mean; 0: none

    def __post_init__(self):
        one_of("sampler.name", self.name, RULES)
        one_of("sampler.latents", self.latents, ("carry", "reset"))
        at_least_one("sampler", self, "num_steps")
        if self.num_steps > MOST_STEPS:
            raise ConfigError(
                f"sampler.num_steps is {self.num_steps}; float32 does not tell the times of more "
                f"than {MOST_STEPS} steps apart."
            )
        for field in ("time_difference", "refresh"):
            if (value := getattr(self, field)) < 0:
                raise ConfigError(f"sampler.{field} is {value}; it must not be negative.")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"sampler.eta is {self.eta}; it must be in [0, 1].")
        if self.eta and not self.rule.takes_eta:
            raise ConfigError(
                f"sampler.eta is {self.eta}, but sampler.name is {self.name!r}, which does not "
                f"read it; set it to 0, or the name to {_rules('takes_eta')}."
            )
        if self.time_difference and not self.rule.may_jump:
            raise ConfigError(
                f"sampler.time_difference is {self.time_difference}, but sampler.name is "
                f"{self.name!r}, whose steps must join; set it to 0, or the name to "
                f"{_rules('may_jump')}."
            )
        if not 0 <= self.latent_decay < 1:
            raise ConfigError(f"sampler.latent_decay is {self.latent_decay}; it must be in [0, 1).")
        if self.latent_decay and self.latents == "reset":
            raise ConfigError(
                f"sampler.latent_decay is {self.latent_decay}, but sampler.latents is 'reset', "
                "which leaves nothing to average with; set one of them to 0 or 'carry'."
            )

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return RULES[self.name]

    @property
    def num_evaluations(self) -> int:
        """How often the network is evaluated for a sample."""
        return self.num_steps * (self.refresh + self.rule.evaluations) - (self.rule.evaluations - 1)

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.eta > 0 or self.rule.stochastic

    def times(self) -> tuple[Array, Array]:
        """(t, t_next), both [num_steps]."""
        steps = jnp.arange(self.num_steps, dtype=jnp.float32)
        ahead = steps + 1 + self.time_difference
        return 1 - steps / self.num_steps, jnp.maximum(1 - ahead / self.num_steps, 0.0)

    def check_grid(self) -> None:
        """Raises ConfigError if there are steps in which gamma does not grow, in float32."""

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
        raise ConfigError(
            f"sampler.num_steps is {self.num_steps}, more than its grid allows: gamma does not "
            f"grow in the step from t = {still[0]:.6g}; set it to {few} or less, or choose another "
            "sampler.schedule."
        )

    def step(
        self, denoise_fn: DenoiseFn, xt: Array, latents: Any, cond: Any, t: Array, t_next: Array,
        fresh: Array, before: Before | None = None,
    ) -> tuple[Array, Any, Array]:  # fmt: skip
        """One step from scalar time t to t_next: (x_next, latents, x0).

        `before`: time and x0 of the step before; at the first step None, or any x0 at time t.
        """

        def gamma_at(time):
            return jnp.broadcast_to(self.schedule(time), xt.shape[:1])

        def evaluate(x, gamma, latents):
            prediction, new = denoise_fn(self.process.network_input(x), gamma, cond, latents)
            decay = self.latent_decay
            latents = jax.tree.map(lambda old, z: decay * old + (1 - decay) * z, latents, new)
            return *self.process.to_clipped_x0_eps(prediction, x, gamma), latents

        gamma, gamma_next = gamma_at(t), gamma_at(t_next)
        if self.latents == "reset":
            latents = jax.tree.map(jnp.zeros_like, latents)
        if self.refresh:
            latents = jax.lax.fori_loop(
                0, self.refresh, lambda _, z: evaluate(xt, gamma, z)[2], latents
            )
        x0, eps, latents = evaluate(xt, gamma, latents)
        better = x0
        if self.rule.estimate:
            t_before, x0_before = before or (t, x0)
            gamma_before = gamma_at(t_before)
            step = Step(x0, eps, latents, gamma, gamma_next, t_next <= 0, gamma_before, x0_before)
            better, latents = self.rule.estimate(step, evaluate)
            eps = eps_from_x0(xt, better, gamma)
        x_next = self.rule.update(xt, better, eps, gamma, gamma_next, fresh, self.eta)
        return x_next, latents, x0

    def sample(self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn) -> Array:
        """Examples [B, ...] in [-1, 1] from `noise` [B, ...] and, if steps add any, noise_fn(i)."""
        return self.watched(denoise_fn, noise, cond, noise_fn, lambda x0, latents: None)[0]

    def watched(
        self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn, watch: Watch,
        given: Given | None = None,
    ) -> tuple[Array, Any]:  # fmt: skip
        """`sample`, and what `watch` keeps of each step, with the steps as a leading axis.

        With `given` noise_fn is called by every rule, and there are num_steps - first steps.
        """
        latents = self.no_latents(denoise_fn, noise, cond)
        x0, _, kept = self._scan(denoise_fn, noise, cond, noise_fn, latents, watch, given)
        return x0, kept

    def continued(
        self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn, latents: Any
    ) -> tuple[Array, Any]:
        """`sample` that starts from latents of before, and the last latents."""
        return self._scan(denoise_fn, noise, cond, noise_fn, latents, lambda *_: None)[:2]

    def no_latents(self, denoise_fn: DenoiseFn, noise: Array, cond: Any) -> Any:
        """The zeros from which a sampling starts."""
        gamma = jnp.broadcast_to(self.schedule(jnp.float32(1)), noise.shape[:1])
        shapes = jax.eval_shape(denoise_fn, noise, gamma, cond, None)[1]
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def _scan(
        self, denoise_fn: DenoiseFn, noise: Array, cond: Any, noise_fn: NoiseFn, latents: Any,
        watch: Watch, given: Given | None = None,
    ) -> tuple[Array, Any, Any]:  # fmt: skip
        """All steps: the examples, the last latents, and what `watch` keeps of each step."""
        first = given.first if given else 0
        t, t_next = (times[first:] for times in self.times())
        start = noise
        if first:
            gamma = jnp.broadcast_to(self.schedule(t[0]), noise.shape[:1])
            start = add_noise(given.x0, noise, gamma)

        def body(carry, step):
            i, t_before, t, t_next = step
            xt, latents, x0 = carry
            fresh = noise_fn(i) if self.stochastic or given else jnp.zeros_like(xt)
            if given:
                gamma = jnp.broadcast_to(self.schedule(t), noise.shape[:1])
                xt = jnp.where(given.free, xt, add_noise(given.x0, fresh, gamma))
            xt, latents, x0 = self.step(
                denoise_fn, xt, latents, cond, t, t_next, fresh, (t_before, x0)
            )
            x0 = jnp.where(given.free, x0, given.x0) if given else x0
            return (xt, latents, x0), watch(x0, latents)

        steps = jnp.arange(first, self.num_steps), jnp.concatenate([t[:1], t[:-1]]), t, t_next
        carry = start, latents, jnp.zeros_like(noise)
        (_, latents, x0), kept = jax.lax.scan(body, carry, steps)
        return self.process.unscale(x0), latents, kept


def _rules(able: str) -> str:
    """Names of the rules that have a property, for a message."""
    return " or ".join(name for name, rule in RULES.items() if getattr(rule, able))


def example_noise(keys: Array, shape: tuple[int, ...]) -> tuple[Array, NoiseFn]:
    """Initial noise [B, *shape] and fresh noise per step, each example from its own key [B].

    An example's noise depends on its key alone, so example i is the same in any batch.
    """

    def draw(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    return draw(0), lambda i: draw(i + 1)
