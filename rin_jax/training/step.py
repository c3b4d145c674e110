"""The training step: gradients of a batch, the optimizer's update, the running averages.

All randomness of a step follows from fold_in(key(seed), step). A step whose loss or gradient is
not finite changes neither parameters nor the optimizer's state; it still counts. The update has no
check of its own: that of finite gradients and moments is finite, and moments, parameters and
averages could not be written while its norm is summed.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rin_jax.diffusion.objective import Draws
from rin_jax.experiment import Experiment
from rin_jax.network import conditioning
from rin_jax.network.partitioning import cast_kernels
from rin_jax.runtime import sharding
from rin_jax.sampling.denoiser import training_denoiser
from rin_jax.training import ema, noise_levels
from rin_jax.training.optimizer import module_norms, updates_taken
from rin_jax.training.state import TrainState, abstract_state

Array = jax.Array
Batch = dict[str, Array]


def prepare_images(images: Array, key: Array | None, flip: bool) -> Array:
    """uint8 images or videos [B, ..., H, W, C] to float32 [-1, 1].

    `flip` mirrors each example with probability 1/2; those of one key are the same.
    """
    images = images.astype(jnp.float32) / 127.5 - 1.0
    if not flip:
        return images
    mirrored = jax.random.bernoulli(key, 0.5, images.shape[:1])
    mirrored = mirrored.reshape(-1, *(1,) * (images.ndim - 1))
    return jnp.where(mirrored, images[..., ::-1, :], images)


def prepare_batch(experiment: Experiment, batch: Batch, key: Array | None) -> tuple[Array, dict]:
    """(what is denoised, in [-1, 1]; the condition) of a batch as `make_train_step` takes it.

    Given frames are mirrored with what follows them, and scaled as x0 is. Nothing is mirrored
    without a key.
    """
    flip, cond = experiment.data.flip and key is not None, conditioning.of_batch(batch)
    if "frames" in cond:
        frames = prepare_images(cond["frames"], key, flip)
        cond["frames"] = frames * experiment.objective.process.input_scale
    return prepare_images(batch["image"], key, flip), cond


def make_errors(experiment: Experiment):
    """errors(params, x [B, ...] in [-1, 1], cond of [B], draws, key) -> [B]."""
    rin, objective = experiment.rin, experiment.objective

    def errors(params, x, cond, draws, key):
        params = cast_kernels(rin, params)
        # the first pass gives latents alone and no gradient: nothing of it is to be kept for one
        trees = jax.lax.stop_gradient(params), params
        keys = jax.random.split(key)
        passes = (training_denoiser(rin, *pair) for pair in zip(trees, keys, strict=True))
        return objective.errors(*passes, conditioning.drop, x, cond, draws)

    return errors


def make_loss(experiment: Experiment):
    """loss(params, x [B, ...] in [-1, 1], cond of [B], draws, key) -> scalar."""
    errors = make_errors(experiment)
    return lambda *arguments: errors(*arguments).mean()


def make_train_step(experiment: Experiment, mesh: Mesh):
    """step(state, batch) -> (state, metrics), to be compiled with the state donated.

    batch: {"image": uint8 [B, *example_shape]} and the entries of the condition, frames as uint8.
    metrics: float32 scalars loss, grad_norm, update_norm, param_norm, learning_rate; bool finite;
      levels: the loss by noise level (`noise_levels.by_level`);
      modules: norms of "grad", "update" and "param" by module (`optimizer.module_norms`).
    """
    accumulation, errors_of = experiment.train.accumulation_steps, make_errors(experiment)

    def loss(params, x, cond, draws, key):
        errors = errors_of(params, x, cond, draws, key)
        levels = noise_levels.by_level(errors, experiment.objective.schedule(draws.t))
        return errors.mean(), levels

    loss_and_grad = jax.value_and_grad(loss, has_aux=True)
    rows = sharding.batch_sharding(mesh)

    def split(x):
        """[B, ...] to [accumulation, B / accumulation, ...]; each device keeps its rows."""
        x = x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)
        spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    def gradients(params, x, cond, draws: Draws, key):
        if accumulation == 1:
            return loss_and_grad(params, x, cond, draws, key)

        def add(total, micro):
            index, (x, cond, draws) = micro
            one = loss_and_grad(params, x, cond, draws, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, one), None

        of_loss = (jnp.zeros(()), jnp.zeros((2, len(noise_levels.NAMES))))
        zero = (of_loss, jax.tree.map(jnp.zeros_like, params))
        micros = jax.tree.map(split, (x, cond, draws))
        total, _ = jax.lax.scan(add, zero, (jnp.arange(accumulation), micros))
        return jax.tree.map(lambda x: x / accumulation, total)

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
        flip_key, draw_key, dropout_key = jax.random.split(key, 3)
        x, cond = prepare_batch(experiment, batch, flip_key)
        draws = experiment.objective.draw(draw_key, x.shape)
        x, draws = jax.lax.with_sharding_constraint((x, draws), rows)
        (loss, levels), grads = gradients(state.params, x, cond, draws, dropout_key)

        updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
        # at every step: the compiler takes them along in passes that the optimizer makes anyway
        norms = {"grad": grads, "update": updates, "param": state.params}
        norms = {name: module_norms(tree) for name, tree in norms.items()}
        metrics = {
            "loss": loss,
            "levels": levels,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": experiment.learning_rate(updates_taken(state.opt_state)),
            "modules": norms,
        }
        finite = jnp.isfinite(loss + metrics["grad_norm"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.params, updates), opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"param_norm": optax.tree.norm(params), "finite": finite}
        taken = state.step + 1
        # the new parameters, summed once more: XLA:TPU then makes one pass of them and the averages
        summed = jax.tree.map(lambda p, u: p + jnp.where(finite, u, 0), state.params, updates)
        emas = ema.update(state.emas, summed, experiment.averages, taken)
        return TrainState(taken, params, emas, opt_state), metrics

    return step


def compile_train_step(experiment: Experiment, mesh: Mesh):
    """The training step compiled for `mesh`, ahead of the first batch."""
    state = abstract_state(experiment, mesh)
    placements = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(
        make_train_step(experiment, mesh),
        in_shardings=(placements, sharding.batch_sharding(mesh)),
        out_shardings=(placements, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    with sharding.logical_axes(mesh):
        return jitted.lower(state, abstract_batch(experiment)).compile()


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch."""
    size, rin = experiment.train.batch_size, experiment.rin
    images = {"image": jax.ShapeDtypeStruct((size, *rin.example_shape), jnp.uint8)}
    cond = rin.abstract_cond(size)
    if "frames" in cond:
        images["frames"] = jax.ShapeDtypeStruct(cond["frames"].shape, jnp.uint8)
    return cond | images
