"""LAMB, AdamW and Muon over stacked layers, the learning-rate schedule and norms by module.

Layers applied by scan share one parameter array with leading layer axes; LAMB's trust ratio
takes one norm for each layer, and Muon one matrix, as if they were separate variables. Weight decay
and trust ratio leave out biases and norm scales.

Source: LAMB arXiv 1904.00962 algorithm 2; AdamW arXiv 1711.05101; Muon arXiv 2502.16982; settings
as in the authors' released configurations, which have no Muon.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rin_jax import ConfigError, check_types, one_of
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
    learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, eps: float, weight_decay: float,
    mask: Callable[[Params], Params] = decay_mask,
) -> optax.GradientTransformation:  # fmt: skip
    """LAMB; parameters outside `mask` get Adam steps without decay."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(scale_by_layer_trust_ratio(), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def muon(
    learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon for the kernels of attention and MLPs, AdamW for the rest; `b1` is the momentum of both.

    Updates of kernels have a root mean square of 0.2, about that of Adam's (section 2.2).
    """

    def axes(path, x):
        return partitioning.matrix_axes(partitioning.names(path), x.ndim)

    def kinds(params):
        return jax.tree_util.tree_map_with_path(
            lambda *leaf: "matrix" if axes(*leaf) else "other", params
        )

    def dimensions(matrices):
        return jax.tree_util.tree_map_with_path(
            lambda *leaf: optax.contrib.MuonDimensionNumbers(*axes(*leaf)), matrices
        )

    of_matrices = optax.contrib.muon(
        learning_rate, beta=b1, eps=eps, weight_decay=weight_decay, consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip
    of_others = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)
    return optax.partition({"matrix": of_matrices, "other": of_others}, kinds)


OPTIMIZERS = {
    "lamb": lamb, "adamw": functools.partial(optax.adamw, mask=decay_mask), "muon": muon,
}  # fmt: skip


def cosine(progress: jax.Array, end_factor: float, rate: float) -> jax.Array:
    """Half a cosine from 1 to `end_factor`, of which only the share `rate` is travelled."""
    angle = jnp.pi * jnp.minimum(progress * rate, 1.0)
    return end_factor + (1 - end_factor) * 0.5 * (1 + jnp.cos(angle))


DECAYS = {"cosine": cosine, "constant": lambda progress: jnp.ones_like(progress)}
# what they need, where a configuration gives the name alone
DECAY_DEFAULTS = {"cosine": {"end_factor": 0.0, "rate": 1.0}, "constant": {}}


def learning_rate_schedule(
    peak: float, warmup_steps: int, total_steps: int, decay: Mapping[str, Any]
) -> optax.Schedule:
    """Learning rate of a 0-based step: linear warm-up from 0 to `peak`, then a decay.

    `decay`: {"name": one of DECAYS, and its parameters}; its progress is (step - warmup_steps) /
    (total_steps - warmup_steps).
    """
    shape = dict(decay)
    name = shape.pop("name", None)
    one_of("optimizer.decay.name", name, DECAYS)
    try:
        inspect.signature(DECAYS[name]).bind(None, **shape)
    except TypeError as error:
        text = f"optimizer.decay: {name!r} with {sorted(shape)}: {error}"
        raise ConfigError(f"{text}; give all, or the name alone for its defaults.") from error
    check_types("optimizer.decay.", DECAYS[name], shape)
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"optimizer.warmup_steps {warmup_steps} must be smaller than train.num_steps "
            f"{total_steps}."
        )

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        decayed = DECAYS[name]((step - warmup_steps) / (total_steps - warmup_steps), **shape)
        return peak * jnp.where(step < warmup_steps, step / max(warmup_steps, 1), decayed)

    return schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The section `optimizer` of a configuration."""

    name: str  # "lamb", "adamw" or "muon"
    learning_rate: float  # the peak, at the end of the warm-up; positive
    warmup_steps: int  # over which the learning rate grows from 0; fewer than train.num_steps
    decay: Mapping[str, Any]  # how the learning rate falls afterwards: "cosine" or "constant"
    b1: float  # decay of the first moment, in [0, 1)
    b2: float  # decay of the second moment, in [0, 1)
    eps: float  # added to the root of the second moment; positive
    weight_decay: float  # of kernels and position tables; at least 0
    clip_norm: float | None  # bound of the gradient's global norm, before anything else; None: none

    def __post_init__(self):
        one_of("optimizer.name", self.name, OPTIMIZERS)
        for field in ("learning_rate", "eps", "clip_norm"):
            if (value := getattr(self, field)) is not None and not value > 0:
                raise ConfigError(f"optimizer.{field} is {value}; it must be positive.")
        for field in ("warmup_steps", "weight_decay"):
            if (value := getattr(self, field)) < 0:
                raise ConfigError(f"optimizer.{field} is {value}; it must not be negative.")
        for field in ("b1", "b2"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ConfigError(f"optimizer.{field} is {value}; it must be in [0, 1).")

    def make(self, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The transformation and its learning-rate schedule, for a run of `num_steps`."""
        schedule = learning_rate_schedule(
            self.learning_rate, self.warmup_steps, num_steps, self.decay
        )
        update = OPTIMIZERS[self.name](
            schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay
        )
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

    def of_schedule(path, _):
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    found = optax.tree.get_all_with_path(opt_state, "count", filtering=of_schedule)
    return found[0][1]  # Muon has two, of the same steps
