"""The forward process and the conversions between eps, x0 and v.

    xt = sqrt(gamma) x0 + sqrt(1 - gamma) eps
    v  = sqrt(gamma) eps - sqrt(1 - gamma) x0

x0 is the example x in [-1, 1] times `input_scale` (arXiv 2301.10972 section 2.2). All float32;
gamma is [B], examples are [B, ...] of any rank.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rin_jax import ConfigError, one_of

Array = jax.Array
TINY = 1e-9  # keeps 1 - gamma from dividing by zero where a schedule reaches gamma = 1

PREDICTION_TYPES = ("eps", "x0", "v")


def expand(scalars: Array, like: Array) -> Array:
    """[B] -> [B, 1, ...] with the rank of `like`."""
    return scalars.reshape(scalars.shape + (1,) * (like.ndim - 1))


def signal_noise(gamma: Array, like: Array) -> tuple[Array, Array]:
    """(sqrt(gamma), sqrt(1 - gamma)), expanded to the rank of `like`."""
    gamma = expand(gamma, like)
    return jnp.sqrt(gamma), jnp.sqrt(1 - gamma)


def add_noise(x0: Array, eps: Array, gamma: Array) -> Array:
    """xt = sqrt(gamma) x0 + sqrt(1 - gamma) eps."""
    signal, noise = signal_noise(gamma, x0)
    return signal * x0 + noise * eps


def velocity(x0: Array, eps: Array, gamma: Array) -> Array:
    """v = sqrt(gamma) eps - sqrt(1 - gamma) x0."""
    signal, noise = signal_noise(gamma, x0)
    return signal * eps - noise * x0


def eps_from_x0(xt: Array, x0: Array, gamma: Array) -> Array:
    """The noise that turns x0 into xt."""
    signal, _ = signal_noise(gamma, xt)
    return (xt - signal * x0) / jnp.sqrt(jnp.maximum(1 - expand(gamma, xt), TINY))


@dataclasses.dataclass(frozen=True)
class Process:
    """How examples are scaled and noised, and how a network's output is read."""

    prediction_type: str  # what the network predicts: "eps", "x0" or "v"
    input_scale: float  # b, the range of x0 is [-b, b]
    normalize_input: bool  # divide the network's input by its standard deviation, per example

    def __post_init__(self):
        one_of("diffusion.prediction_type", self.prediction_type, PREDICTION_TYPES)
        if not self.input_scale > 0:
            raise ConfigError(f"diffusion.input_scale is {self.input_scale}; it must be positive.")

    def network_input(self, xt: Array) -> Array:
        """What the network sees of xt [B, ...]: xt, or xt / std(xt) with its mean kept."""
        if not self.normalize_input:
            return xt
        return xt / jnp.std(xt, axis=tuple(range(1, xt.ndim)), keepdims=True)

    def clip(self, x0: Array) -> Array:
        """x0 clipped to [-b, b]."""
        return jnp.clip(x0, -self.input_scale, self.input_scale)

    def to_x0_eps(self, prediction: Array, xt: Array, gamma: Array) -> tuple[Array, Array]:
        """(x0, eps) of a prediction, both consistent with xt and neither clipped.

        The one exception is a predicted x0, which is clipped before eps follows from it.
        """
        signal, noise = signal_noise(gamma, xt)
        if self.prediction_type == "eps":
            return (xt - noise * prediction) / signal, prediction
        if self.prediction_type == "x0":
            x0 = self.clip(prediction)
            return x0, eps_from_x0(xt, x0, gamma)
        return signal * xt - noise * prediction, noise * xt + signal * prediction

    def to_clipped_x0_eps(self, prediction: Array, xt: Array, gamma: Array) -> tuple[Array, Array]:
        """(x0, eps) for a sampling step: x0 clipped to [-b, b], eps recomputed from it."""
        x0 = self.clip(self.to_x0_eps(prediction, xt, gamma)[0])
        return x0, eps_from_x0(xt, x0, gamma)

    def unscale(self, x0: Array) -> Array:
        """x0 in [-b, b] back to examples in [-1, 1]."""
        return x0 / self.input_scale
