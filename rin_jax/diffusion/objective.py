"""The training loss with two-pass latent self-conditioning.

Pass 1 runs with empty latents; its latents, with the gradient stopped, feed pass 2 in the
examples that self-conditioning takes (rate 0.9); the loss is that of pass 2 alone.

Source: arXiv 2212.11972 section 2.3 and algorithm 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rin_jax import ConfigError
from rin_jax.diffusion import process as process_lib
from rin_jax.diffusion.guidance import DenoiseFn
from rin_jax.diffusion.process import Process, expand
from rin_jax.diffusion.schedules import Schedule

Array = jax.Array

LOSS_TYPES = ("eps", "x0", "v")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """The randomness of one batch, given so that it can be split, sharded and tested.

    Attributes:
      t: times [B] in [0, 1).
      eps: noise [B, ...].
      self_cond: 1.0 where pass 2 gets pass 1's latents, else 0.0, [B].
      keep_cond: whether each pass sees the condition, bool [B, 2]; drawn per pass.
    """

    t: Array
    eps: Array
    self_cond: Array
    keep_cond: Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
      process: scaling and prediction type.
      schedule: gamma(t) of training.
      loss_type: the quantity whose mean squared error is taken: "eps", "x0" or "v".
      self_cond_rate: share of examples that get latents from a first pass; 0: no first pass.
      cond_dropout: share of examples whose condition is hidden, for guidance.
    """

    process: Process
    schedule: Schedule
    loss_type: str
    self_cond_rate: float
    cond_dropout: float

    def __post_init__(self):
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(
                f"diffusion.loss_type is {self.loss_type!r}; choose one of {', '.join(LOSS_TYPES)}."
            )
        for name in ("self_cond_rate", "cond_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"diffusion.{name} is {getattr(self, name)}; it is a share, 0..1."
                )

    def draw(self, key: Array, shape: tuple[int, ...]) -> Draws:
        """Draws for a batch of examples of `shape` [B, ...]."""
        batch = shape[0]
        keys = jax.random.split(key, 4)
        return Draws(
            t=jax.random.uniform(keys[0], (batch,)),
            eps=jax.random.normal(keys[1], shape),
            self_cond=jax.random.bernoulli(keys[2], self.self_cond_rate, (batch,)).astype(
                jnp.float32
            ),
            keep_cond=jax.random.bernoulli(keys[3], 1 - self.cond_dropout, (batch, 2)),
        )

    def loss(
        self,
        first_pass: DenoiseFn,
        second_pass: DenoiseFn,
        drop_cond: Callable[[Any, Array], Any],
        x: Array,
        cond: Any,
        draws: Draws,
    ) -> Array:
        """Mean squared error of a batch, a float32 scalar.

        Args:
          first_pass, second_pass: the network with its parameters, once for each pass: each has
            its own dropout.
          drop_cond: (cond, keep bool [B]) -> cond with the others' condition hidden.
          x: examples [B, ...] in [-1, 1].
          cond: condition, any pytree that the passes understand.
          draws: the batch's randomness.
        """
        x0 = x * self.process.input_scale
        gamma = self.schedule(draws.t)
        xt = process_lib.add_noise(x0, draws.eps, gamma)
        net_input = self.process.network_input(xt)

        prev_latents = None
        if self.self_cond_rate:
            first_cond = drop_cond(cond, draws.keep_cond[:, 0])
            _, prev_latents = first_pass(net_input, gamma, first_cond, None)
            prev_latents = jax.tree.map(
                lambda z: jax.lax.stop_gradient(z) * expand(draws.self_cond, z), prev_latents
            )
        second_cond = drop_cond(cond, draws.keep_cond[:, 1])
        prediction, _ = second_pass(net_input, gamma, second_cond, prev_latents)
        return self.error(prediction, x0, xt, draws.eps, gamma)

    def error(self, prediction: Array, x0: Array, xt: Array, eps: Array, gamma: Array) -> Array:
        """Mean squared error of a prediction in the units of `loss_type`."""
        x0_hat, eps_hat = self.process.to_x0_eps(prediction, xt, gamma)
        if self.loss_type == "eps":
            difference = eps - eps_hat
        elif self.loss_type == "x0":
            difference = (x0 - self.process.clip(x0_hat)) / self.process.input_scale
        else:
            v_hat = process_lib.velocity(x0_hat, eps_hat, gamma)
            difference = process_lib.velocity(x0, eps, gamma) - v_hat
        return jnp.mean(jnp.square(difference))
