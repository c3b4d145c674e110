"""Noise schedules gamma(t): signal power against time, t = 0 data, t = 1 noise.

    xt = sqrt(gamma) x0 + sqrt(1 - gamma) eps

Families of arXiv 2301.10972 section 2.1 (cosine, sigmoid, linear), the cosine of arXiv
2102.09672 eq. 17, a logarithmic one, one that is uniform in log-SNR (arXiv 2211.01095 section 5)
and the one of EDM (arXiv 2206.00364 eq. 5). Everything here is float32, elementwise, and keeps the
shape of its argument.

A sampler takes equal steps of t, so its schedule is its time grid: neither the network nor an
update rule sees anything of a time but its gamma.

A family is one entry of SCHEDULES. It has the formula twice: as a function of JAX, and as text that
an export writes into programs without JAX (the model card's, the PyTorch file's).
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rin_jax import ConfigError, check_types

Array = jax.Array
Schedule = Callable[[Array], Array]

MIN_GAMMA = 1e-9  # the lower clip of all families but the offset cosine


def offset_cosine(t: Array, small: float = 2e-4, stretch: float = 2.5e-4) -> Array:
    """cos^2(pi/2 (t + small) / (1 + stretch)), which stays inside (0, 1) without clipping."""
    return jnp.square(jnp.cos((t + small) / (1 + stretch) * (np.pi / 2)))


def cosine(t: Array, start: float, end: float, tau: float) -> Array:
    """cos(pi/2 u)^(2 tau) over u in [start, end], scaled to run from 1 to 0; 0 <= u <= 1."""

    def power(u):  # cos(pi/2) rounds below zero in float32, and a power of that is not a number
        return jnp.maximum(jnp.cos(u * np.float32(np.pi / 2)), 0.0) ** (2 * tau)

    return _between(power, t, start, end)


def sigmoid(t: Array, start: float, end: float, tau: float) -> Array:
    """sigmoid(-u / tau) over u in [start, end], scaled to run from 1 to 0."""
    return _between(lambda u: jax.nn.sigmoid(-u / tau), t, start, end)


def linear(t: Array) -> Array:
    """1 - t."""
    return jnp.clip(1 - t, MIN_GAMMA, 1.0)


def logarithmic(t: Array, start: float, end: float, reverse: bool) -> Array:
    """(ln end - ln u) / (ln end - ln start), u from start to end; `reverse` swaps the two."""
    start, end = (end, start) if reverse else (start, end)
    u = start + (end - start) * t
    gamma = (np.log(end) - jnp.log(u)) / (np.log(end) - np.log(start))
    return jnp.clip(gamma, MIN_GAMMA, 1.0)


def uniform_logsnr(t: Array, start: float, end: float) -> Array:
    """The log-SNR falls linearly from `start` at t = 0 to `end` at t = 1."""
    return jax.nn.sigmoid(start + (end - start) * t)


def edm(t: Array, sigma_min: float, sigma_max: float, rho: float) -> Array:
    """Noise to signal sigma = sqrt((1 - gamma) / gamma) with sigma^(1 / rho) linear in t."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return 1 / (1 + jnp.square((low + (high - low) * t) ** rho))


def _between(function: Schedule, t: Array, start: float, end: float) -> Array:
    first, last = function(jnp.float32(start)), function(jnp.float32(end))
    gamma = (function(start + (end - start) * t) - last) / (first - last)
    return jnp.clip(gamma, MIN_GAMMA, 1.0)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of schedules: gamma(t) in JAX and, for programs without JAX, as a formula.

    The formula is a Python expression of one number t in [0, 1] (of Python, NumPy or PyTorch), the
    parameters, `cos`, `exp`, `log` and `pi` for such numbers, and the function of FOREIGN_BETWEEN.
    """

    gamma: Callable[..., Array]  # gamma(t, **parameters)
    formula: str | None  # None: a run with it cannot be exported
    # what `gamma` needs, where a configuration gives the name alone
    defaults: Mapping[str, float | bool] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Name -> what the signature of `gamma` says of it, without t."""
        signature = inspect.signature(self.gamma).parameters.items()
        return {name: parameter for name, parameter in signature if name != "t"}


FOREIGN_BETWEEN = f"""\
def between(f, t, start, end):  # 0 * t: numbers of the kind of t
    return min(max(
        (f(start + (end - start) * t) - f(end + 0 * t)) / (f(start + 0 * t) - f(end + 0 * t)),
        {MIN_GAMMA},
    ), 1.0)
"""

SCHEDULES: dict[str, Family] = {
    "offset_cosine": Family(offset_cosine, "cos((t + small) / (1 + stretch) * pi / 2) ** 2"),
    "cosine": Family(
        cosine, "between(lambda u: max(cos(u * pi / 2), 0.0) ** (2 * tau), t, start, end)",
        {"start": 0.0, "end": 1.0, "tau": 1.0},
    ),
    "sigmoid": Family(
        sigmoid, "between(lambda u: 1 / (1 + exp(u / tau)), t, start, end)",
        {"start": -3.0, "end": 3.0, "tau": 0.9},
    ),
    "linear": Family(linear, f"max(1.0 - t, {MIN_GAMMA})"),
    "logarithmic": Family(
        logarithmic, "between(log, t, *((end, start) if reverse else (start, end)))",
        {"start": 1.0, "end": 10.0, "reverse": False},
    ),
    "logsnr": Family(
        uniform_logsnr, "1 / (1 + exp((start - end) * t - start))", {"start": 6.0, "end": -9.0}
    ),
    "edm": Family(
        edm,
        "1 / (1 + (sigma_min ** (1 / rho) * (1 - t) + sigma_max ** (1 / rho) * t) ** (2 * rho))",
        {"sigma_min": 0.02, "sigma_max": 80.0, "rho": 7.0},
    ),
}  # fmt: skip


def make_schedule(name: str, **parameters: float) -> Schedule:
    """gamma(t) from a family's name and all its parameters; ConfigError if they are not those."""
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no schedule {name!r}; choose one of {', '.join(SCHEDULES)}.{hint}")
    family = SCHEDULES[name]
    try:
        inspect.signature(family.gamma).bind(None, **parameters)
    except TypeError as error:
        raise ConfigError(
            f"schedule {name!r} takes {list(family.parameters)}, not {sorted(parameters)}: "
            f"{error}; give all of them, or the name alone for its defaults."
        ) from error
    check_types("", family.gamma, parameters)
    return functools.partial(family.gamma, **parameters)


def logsnr(gamma: Array) -> Array:
    """log(gamma / (1 - gamma)), finite for gamma in [0, 1] by clipping to [1e-9, 1 - 6e-8]."""
    gamma = jnp.clip(gamma, MIN_GAMMA, 1 - np.finfo(np.float32).epsneg)
    return jnp.log(gamma) - jnp.log1p(-gamma)
