"""LAMB and AdamW over stacked layers, the learning-rate schedule and norms by module.

Layers applied by scan share one parameter array with leading layer axes; LAMB's trust ratio
takes one norm for each layer, as if they were separate variables. Weight decay and trust ratio
leave out biases and norm scales.

Source: LAMB arXiv 1904.00962 algorithm 2; AdamW arXiv 1711.05101; settings as in the authors'
released configurations.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rin_jax import ConfigError
from rin_jax.network import partitioning

Params = Any


def decay_mask(params: Params) -> Params:
    """True for the parameters that are decayed and adapted: kernels and position tables."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: partitioning.is_decayed(partitioning.names(path)), params
    )


def _axes_of_a_layer(path: tuple, x: jax.Array) -> tuple[int, ...]:
    """The axes of a parameter, or of what is shaped like it, without those of its layers."""
    return tuple(range(partitioning.stacked_axes(partitioning.names(path)), x.ndim))


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Scales each layer's update by |parameter| / |update|, 1 where either norm is 0."""

    def scale(path, update, param):
        axes = _axes_of_a_layer(path, param)

        def norm(x):
            return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

        param_norm, update_norm = norm(param), norm(update)
        ratio = param_norm / jnp.where(update_norm == 0, 1.0, update_norm)
        return update * jnp.where((param_norm == 0) | (update_norm == 0), 1.0, ratio)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)
    )


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mask: Callable[[Params], Params] = decay_mask,
) -> optax.GradientTransformation:
    """LAMB; parameters outside `mask` get Adam steps without decay."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(scale_by_layer_trust_ratio(), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mask: Callable[[Params], Params] = decay_mask,
) -> optax.GradientTransformation:
    """AdamW; parameters outside `mask` are not decayed."""
    return optax.adamw(learning_rate, b1, b2, eps=eps, weight_decay=weight_decay, mask=mask)


OPTIMIZERS = {"lamb": lamb, "adamw": adamw}


def cosine(progress: jax.Array, end_factor: float, rate: float) -> jax.Array:
    """Half a cosine from 1 to `end_factor`, of which only the share `rate` is travelled."""
    angle = jnp.pi * jnp.minimum(progress * rate, 1.0)
    return end_factor + (1 - end_factor) * 0.5 * (1 + jnp.cos(angle))


def constant(progress: jax.Array) -> jax.Array:
    """1."""
    return jnp.ones_like(progress)


DECAYS = {"cosine": cosine, "constant": constant}


def learning_rate_schedule(
    peak: float, warmup_steps: int, total_steps: int, decay: Mapping[str, Any]
) -> optax.Schedule:
    """Learning rate of a 0-based step: linear warm-up from 0, then a decay.

    Args:
      peak: the rate at the end of warm-up.
      warmup_steps: steps of warm-up; the first has rate 0 if there are any.
      total_steps: T; the decay's progress is (step - warmup) / (T - warmup).
      decay: {"name": one of DECAYS, and its parameters}.
    """
    shape = dict(decay)
    name = shape.pop("name")
    if name not in DECAYS:
        raise ConfigError(f"optimizer.decay.name is {name!r}; choose one of {', '.join(DECAYS)}.")
    try:
        inspect.signature(DECAYS[name]).bind(None, **shape)
    except TypeError as error:
        raise ConfigError(f"optimizer.decay: {name!r} with {sorted(shape)}: {error}.") from error
    if not 0 <= warmup_steps < total_steps:
        raise ConfigError(
            f"optimizer.warmup_steps {warmup_steps} must be smaller than "
            f"train.num_steps {total_steps}."
        )

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        decayed = DECAYS[name]((step - warmup_steps) / (total_steps - warmup_steps), **shape)
        return peak * jnp.where(step < warmup_steps, step / max(warmup_steps, 1), decayed)

    return schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The section `optimizer` of a configuration.

    Attributes:
      name: "lamb" or "adamw".
      learning_rate: its peak, at the end of the warm-up.
      warmup_steps: steps over which it grows from 0.
      decay: how it falls afterwards, {"name": one of DECAYS, and its parameters}.
      b1, b2, eps: of Adam's moments.
      weight_decay: of kernels and tables.
      clip_norm: bound of the global norm of the gradient, before anything else; None: no bound.
    """

    name: str
    learning_rate: float
    warmup_steps: int
    decay: Mapping[str, Any]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float | None

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer.name is {self.name!r}; choose one of {', '.join(OPTIMIZERS)}."
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optimizer.clip_norm is {self.clip_norm}; it must be positive.")

    def make(self, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The transformation and its learning-rate schedule, for a run of `num_steps`."""
        schedule = learning_rate_schedule(
            self.learning_rate, self.warmup_steps, num_steps, self.decay
        )
        update = OPTIMIZERS[self.name](schedule, self.b1, self.b2, self.eps, self.weight_decay)
        # Both have an empty state, so that a run can go on with clipping switched on or off.
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, update), schedule


def module_norms(tree: Params) -> dict[str, jax.Array]:
    """The norm of each module, and of each of its layers: [], [blocks] or [blocks, depth]."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        module = partitioning.module_of(partitioning.names(path))
        square = jnp.square(leaf.astype(jnp.float32)).sum(_axes_of_a_layer(path, leaf))
        squares[module] = squares.get(module, 0.0) + square
    return {module: jnp.sqrt(square) for module, square in squares.items()}


def updates_taken(opt_state: Any) -> jax.Array:
    """The number of updates made, which the learning rate follows; int32 scalar."""
    return optax.tree.get(opt_state, "count", filtering=_of_schedule)


def _of_schedule(path: tuple, value: Any) -> bool:
    del value
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"
