"""LAMB and AdamW over stacked layers, the learning-rate schedule and norms by module.

Layers applied by scan share one parameter array with leading layer axes; LAMB's trust ratio
takes one norm for each layer, as if they were separate variables. Weight decay and trust ratio
leave out biases and norm scales.

Source: LAMB arXiv 1904.00962 algorithm 2; AdamW arXiv 1711.05101; settings as in the authors'
released configurations.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any
NOT_DECAYED = ("bias", "scale")  # last part of a parameter's path


def decay_mask(params: Params) -> Params:
    """True for the parameters that are decayed and adapted: kernels and position tables."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in NOT_DECAYED, params
    )


def stacked_axes(path: tuple) -> int:
    """Leading layer axes of a parameter: one inside blocks, two inside their compute layers."""
    names = [key.key for key in path]
    return any(name.startswith("blocks_") for name in names) + ("compute" in names)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Scales each layer's update by |parameter| / |update|, 1 where either norm is 0."""

    def scale(path, update, param):
        axes = tuple(range(stacked_axes(path), param.ndim))

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


def linear(progress: jax.Array, end_factor: float) -> jax.Array:
    """A line from 1 to `end_factor`."""
    return end_factor + (1 - end_factor) * (1 - jnp.minimum(progress, 1.0))


def exponential(progress: jax.Array, rate: float) -> jax.Array:
    """rate ^ progress."""
    return rate**progress


def constant(progress: jax.Array) -> jax.Array:
    """1."""
    return jnp.ones_like(progress)


DECAYS = {"cosine": cosine, "linear": linear, "exponential": exponential, "constant": constant}


def learning_rate_schedule(
    peak: float, warmup_steps: int, total_steps: int, decay: Mapping[str, Any], tail_steps: int = 0
) -> optax.Schedule:
    """Learning rate of a 0-based step: linear warm-up from 0, then a decay.

    Args:
      peak: the rate at the end of warm-up.
      warmup_steps: steps of warm-up; the first has rate 0 if there are any.
      total_steps: T; the decay's progress is (step - warmup) / (T - warmup - tail).
      decay: {"name": one of DECAYS, and its parameters}.
      tail_steps: steps before T at which the decay has run its course.
    """
    shape = dict(decay)
    name = shape.pop("name")
    if name not in DECAYS:
        raise ValueError(
            f"optimizer.decay.name is {name!r}; choose one of {', '.join(DECAYS)}."
        )
    try:
        inspect.signature(DECAYS[name]).bind(None, **shape)
    except TypeError as error:
        raise ValueError(f"optimizer.decay: {name!r} with {sorted(shape)}: {error}.") from error
    if not 0 <= warmup_steps + tail_steps < total_steps:
        raise ValueError(
            f"optimizer.warmup_steps {warmup_steps} must be smaller than "
            f"train.num_steps {total_steps}."
        )
    length = total_steps - warmup_steps - tail_steps

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        decayed = DECAYS[name]((step - warmup_steps) / length, **shape)
        return peak * jnp.where(step < warmup_steps, step / max(warmup_steps, 1), decayed)

    return schedule


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    warmup_steps: int,
    decay: Mapping[str, Any],
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
    num_steps: int,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run and its learning-rate schedule.

    `clip_norm` bounds the global norm of the gradient before any optimizer; None leaves it.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name is {name!r}; choose one of {', '.join(OPTIMIZERS)}.")
    schedule = learning_rate_schedule(learning_rate, warmup_steps, num_steps, decay)
    update = OPTIMIZERS[name](schedule, b1, b2, eps, weight_decay)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"optimizer.clip_norm is {clip_norm}; it must be positive.")
    # Both have an empty state, so that a run can go on with clipping switched on or off.
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, update), schedule


def module_of(path: tuple) -> str:
    """The module of a parameter: "stem", "blocks_0.read", ..."""
    names = [key.key for key in path]
    return ".".join(names[: 2 if stacked_axes(path) else 1])


def module_norms(tree: Params) -> dict[str, jax.Array]:
    """The norm of each module, and of each of its layers: [], [blocks] or [blocks, depth]."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        axes = tuple(range(stacked_axes(path), leaf.ndim))
        square = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes)
        squares[module_of(path)] = squares.get(module_of(path), 0.0) + square
    return {module: jnp.sqrt(square) for module, square in squares.items()}


def updates_taken(opt_state: Any) -> jax.Array:
    """The number of updates made, which the learning rate follows; int32 scalar."""
    return optax.tree.get(opt_state, "count", filtering=_of_schedule)


def _of_schedule(path: tuple, value: Any) -> bool:
    del value
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"
