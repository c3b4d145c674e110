"""The training loss with two-pass latent self-conditioning.

Pass 1 runs with empty latents; its latents, with the gradient stopped, feed pass 2 in the
examples that self-conditioning takes (rate 0.9); the loss is that of pass 2 alone.

Source: arXiv 2212.11972 section 2.3 and algorithm 1; instead of even weights and times those of
arXiv 2410.19324 eq. 4 (SiD2) and of arXiv 2403.03206 section 3.1 may be chosen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rin_jax import ConfigError, one_of
from rin_jax.diffusion import process as process_lib
from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.process import PREDICTION_TYPES, Process, expand
from rin_jax.diffusion.schedules import Schedule, logsnr

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """The randomness of one batch, given so that it can be split, sharded and tested."""

    t: Array  # times [B] in [0, 1)
    eps: Array  # noise [B, ...]
    self_cond: Array  # 1.0 where pass 2 gets pass 1's latents, else 0.0, [B]
    keep_cond: Array  # whether each pass sees the condition, bool [B, 2]; drawn per pass


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised."""

    process: Process  # scaling and prediction type
    schedule: Schedule  # gamma(t) of training
    loss_type: str  # the quantity whose mean squared error is taken: "eps", "x0" or "v"
    self_cond_rate: float  # share of examples with latents from a first pass; 0: no first pass
    cond_dropout: float  # share of examples whose condition is hidden, for guidance
    # bias b of a weight -dlogSNR/dt e^b sigmoid(logSNR - b) of the loss of x0; None: no weight
    sigmoid_bias: float | None
    # mean and standard deviation of log(t / (1 - t)), normal; None: t is uniform
    logit_normal_times: tuple[float, float] | None

    def __post_init__(self):
        one_of("diffusion.loss_type", self.loss_type, PREDICTION_TYPES)
        for name in ("self_cond_rate", "cond_dropout"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(f"diffusion.{name} is {share}; it is a share, 0..1.")
        if self.sigmoid_bias is not None and self.loss_type != "x0":
            raise ConfigError(
                f"diffusion.sigmoid_bias is {self.sigmoid_bias} and diffusion.loss_type "
                f"{self.loss_type!r}; the weight is one of the loss of x0: set loss_type 'x0', or "
                "leave the bias out."
            )
        times = self.logit_normal_times
        if times is not None and not (len(times) == 2 and times[1] > 0):
            raise ConfigError(
                f"diffusion.logit_normal_times is {times}; it is a mean and a standard deviation "
                "above 0, for instance (0.0, 1.0)."
            )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Draws for a batch of examples of `shape` [B, ...]."""
        batch, keys = shape[0], jax.random.split(key, 4)
        t, eps = self._times(keys[0], batch), jax.random.normal(keys[1], shape)
        self_cond = jax.random.bernoulli(keys[2], self.self_cond_rate, (batch,))
        self_cond = self_cond.astype(jnp.float32)
        keep_cond = jax.random.bernoulli(keys[3], 1 - self.cond_dropout, (batch, 2))
        return Draws(t, eps, self_cond, keep_cond)

    def _times(self, key: Array, count: int) -> Array:
        if self.logit_normal_times is None:
            return jax.random.uniform(key, (count,))
        mean, deviation = self.logit_normal_times
        return jax.nn.sigmoid(mean + deviation * jax.random.normal(key, (count,)))

    def errors(
        self, first_pass: DenoiseFn, second_pass: DenoiseFn,
        drop_cond: Callable[[Any, Array], Any], x: Array, cond: Any, draws: Draws,
    ) -> Array:  # fmt: skip
        """Mean squared error of each of a batch of examples x [B, ...] in [-1, 1], float32 [B].

        Weighted if there is a `sigmoid_bias`. The loss is their mean. Each pass is the network with
        its parameters and a dropout of its own. `drop_cond`: (cond, keep bool [B]) -> cond with the
        others' condition hidden; `cond` is any pytree that it and the passes understand.
        """
        x0 = x * self.process.input_scale
        gamma = self.schedule(draws.t)
        xt = process_lib.add_noise(x0, draws.eps, gamma)
        net_input = self.process.network_input(xt)

        prev_latents = None
        if self.self_cond_rate:
            first_cond = drop_cond(cond, draws.keep_cond[:, 0])
            _, latents = first_pass(net_input, gamma, first_cond, None)
            prev_latents = jax.tree.map(
                lambda z: jax.lax.stop_gradient(z) * expand(draws.self_cond, z), latents
            )
        second_cond = drop_cond(cond, draws.keep_cond[:, 1])
        prediction, _ = second_pass(net_input, gamma, second_cond, prev_latents)
        error = self.error(prediction, x0, xt, draws.eps, gamma)
        return error if self.sigmoid_bias is None else error * self.weight(draws.t)

    def weight(self, t: Array) -> Array:
        """-dlogSNR/dt e^b sigmoid(logSNR - b) of times [B]: arXiv 2410.19324 eq. 4."""
        levels, slopes = jax.jvp(lambda u: logsnr(self.schedule(u)), (t,), (jnp.ones_like(t),))
        return -slopes * jnp.exp(self.sigmoid_bias) * jax.nn.sigmoid(levels - self.sigmoid_bias)

    def error(self, prediction: Array, x0: Array, xt: Array, eps: Array, gamma: Array) -> Array:
        """Mean squared error of each example's prediction in the units of `loss_type`, [B]."""
        x0_hat, eps_hat = self.process.to_x0_eps(prediction, xt, gamma)
        if self.loss_type == "eps":
            difference = eps - eps_hat
        elif self.loss_type == "x0":
            difference = (x0 - self.process.clip(x0_hat)) / self.process.input_scale
        else:
            v_hat = process_lib.velocity(x0_hat, eps_hat, gamma)
            difference = process_lib.velocity(x0, eps, gamma) - v_hat
        return jnp.mean(jnp.square(difference), axis=range(1, difference.ndim))
