"""Running averages of the parameters (EMA): by a constant decay or by a power function.

    step t       ema <- ema + w(t) (params - ema)
    decay d      w(t) = 1 - d
    power gamma  w(t) = 1 - (1 - 1/t)^(gamma + 1)

In a power average the parameters after step k weigh k^(gamma+1) - (k-1)^(gamma+1), over
t^(gamma+1): it forgets its start at once and its length is a share of the training so far,

    sigma = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-1/2,

the standard deviation of the profile over t. Power averages of two lengths, stored now and then,
give those of any other length afterwards: the profile wanted is fitted by the stored ones in the
least-squares sense, and the averages combine by the same coefficients.

Source: arXiv 2312.02696 section 3 and appendix C (EDM2).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rin_jax import ConfigError

Params = Any
# weight(t) of the parameters after step t = 1, 2, ..., float32 in (0, 1]
Weight = Callable[[jax.Array], jax.Array]
LONGEST = 12**-0.5  # sigma of gamma = 0, the plain mean


def power_name(length: float) -> str:
    """The name of the power average of that length."""
    return f"power_{length:g}"


@dataclasses.dataclass(frozen=True)
class Ema:
    """The section `ema` of a configuration: which averages a run keeps."""

    decays: tuple[float, ...]  # of the averages of constant decay, each in [0, 1)
    power_lengths: tuple[float, ...]  # of the power averages, each in (0, 0.288]
    # steps between two snapshots of the power averages, from which averages of other lengths can
    # be computed after training; None: no snapshots
    snapshot_every_steps: int | None

    def __post_init__(self):
        decays, lengths = self.decays, self.power_lengths
        if len(self.weights()) != len(decays) + len(lengths):
            raise ConfigError(f"ema: an average is given twice: {decays}, {lengths}.")
        if not self.weights():
            raise ConfigError("ema.decays and ema.power_lengths are both empty; give at least one.")
        if self.snapshot_every_steps and not lengths:
            raise ConfigError(
                f"ema.snapshot_every_steps is {self.snapshot_every_steps}, but there is no power "
                "average to store; set ema.power_lengths, for instance (0.05, 0.1), or leave it "
                "out."
            )

    def weights(self) -> dict[str, Weight]:
        """The averages by name, "decay_0.9999" or "power_0.05", in the order given.

        Raises ConfigError if a decay or a length is out of its range.
        """
        averages: dict[str, Weight] = {}
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise ConfigError(f"ema.decays has {decay}; a decay is in [0, 1).")
            averages[f"decay_{decay:g}"] = lambda t, decay=decay: jnp.float32(1 - decay)
        for length in self.power_lengths:
            averages[power_name(length)] = _power_weight(exponent(length))
        return averages


def exponent(length: float, told: str = "ema.power_lengths has") -> float:
    """gamma of a power average of length sigma; ConfigError, after `told`, beyond (0, 0.288]."""
    if not 0 < length <= LONGEST:
        raise ConfigError(
            f"{told} {length}; a length is a share of the training so far, in (0, 0.288], where "
            "the upper end is the plain mean."
        )
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _power_weight(gamma: float) -> Weight:
    # as it stands, 1 - (1 - 1/t)^(gamma+1) loses all digits in float32 for large t
    return lambda t: -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(t, jnp.float32)))


def update(emas: Mapping[str, Params], params: Params, averages: Mapping[str, Weight], t) -> dict:
    """All averages after step t, whose parameters are `params`; float32."""

    def one(ema, weight):
        return jax.tree.map(lambda e, p: e + weight * (p - e), ema, params)

    return {name: one(emas[name], weight(t)) for name, weight in averages.items()}


def coefficients(
    stored: Sequence[tuple[int, float]], step: int, length: float
) -> tuple[np.ndarray, float]:
    """How stored power averages, (step, sigma) of each, combine to one of `length` at `step` >= 1.

    Returns the coefficient of each stored average, float64, and the relative error of the profile
    that they give, in [0, 1]: the norm of the difference over the norm of the profile wanted.

    Source: arXiv 2312.02696 appendix C.2, with the inner products of continuous profiles.
    """
    t = np.array([step for step, _ in stored], np.float64)
    gamma = np.array([exponent(sigma) for _, sigma in stored])
    wanted_t, wanted_gamma = np.float64(step), exponent(length)
    gram = inner_product(t[:, None], gamma[:, None], t, gamma)
    right = inner_product(t, gamma, wanted_t, wanted_gamma)
    found = np.linalg.lstsq(gram, right, rcond=None)[0]
    norm = inner_product(wanted_t, wanted_gamma, wanted_t, wanted_gamma)
    square = norm - 2 * found @ right + found @ gram @ found
    return found, float(np.sqrt(max(square, 0.0) / norm))


def inner_product(t_a, gamma_a, t_b, gamma_b):
    """Integral over time of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1)."""
    first = t_a <= t_b
    ratio = np.where(first, t_a / t_b, t_b / t_a)
    power = np.where(first, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * ratio**power / np.maximum(t_a, t_b)
