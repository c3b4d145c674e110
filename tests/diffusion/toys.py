"""Denoisers known in closed form, to stand in for the network."""

import jax.numpy as jnp

from rin_jax.diffusion.process import Process, expand

TYPES = ("eps", "x0", "v")


def column(gamma, like):
    """gamma [B] against images [B, ...], and its complement."""
    gamma = expand(gamma, like)
    return gamma, 1 - gamma


def target(kind: str, x0, eps, gamma):
    """What a network of one prediction type should say."""
    g, h = column(gamma, x0)
    return {"eps": eps, "x0": x0, "v": jnp.sqrt(g) * eps - jnp.sqrt(h) * x0}[kind]


def predict_x0(kind: str, x0, xt, gamma):
    """The prediction that stands for the estimate x0 of a noisy xt."""
    g, h = column(gamma, xt)
    return target(kind, x0, (xt - jnp.sqrt(g) * x0) / jnp.sqrt(h), gamma)


def oracle(kind: str, x0):
    """A denoise_fn that knows the image."""

    def denoise_fn(xt, gamma, cond, latents):
        return predict_x0(kind, x0, xt, gamma), latents

    return denoise_fn


def gaussian(kind: str, mean: float, std: float):
    """The denoise_fn of pixels N(mean, std^2): the posterior mean."""

    def denoise_fn(xt, gamma, cond, latents):
        g, h = column(gamma, xt)
        gain = std**2 * jnp.sqrt(g) / (g * std**2 + h)
        return predict_x0(kind, mean + gain * (xt - jnp.sqrt(g) * mean), xt, gamma), latents

    return denoise_fn


def process(kind: str = "x0", input_scale: float = 1.0, normalize_input: bool = False) -> Process:
    """A Process with defaults for tests."""
    return Process(kind, input_scale, normalize_input)


def ramp(t):
    """A schedule without extreme values: 0.98 to 0.02."""
    return 0.98 - 0.96 * t
