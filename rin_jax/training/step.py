"""The training step: gradients of a batch, the optimizer's update, the running averages.

All randomness of a step follows from fold_in(key(seed), step). A step whose loss, gradient or
update is not finite changes neither parameters nor the optimizer's state; it still counts.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rin_jax.diffusion.objective import Draws
from rin_jax.experiment import Experiment
from rin_jax.network.rin import NO_LABEL
from rin_jax.runtime import sharding
from rin_jax.training import ema
from rin_jax.training.optimizer import module_norms, updates_taken
from rin_jax.training.state import TrainState, abstract_state

Array = jax.Array
Batch = dict[str, Array]


def prepare_images(images: Array, key: Array, flip: bool) -> Array:
    """uint8 images [B, H, W, C] to float32 [-1, 1]; `flip` mirrors each with probability 1/2."""
    images = images.astype(jnp.float32) / 127.5 - 1.0
    if not flip:
        return images
    mirrored = jax.random.bernoulli(key, 0.5, images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def make_loss(experiment: Experiment):
    """loss(params, images [B, H, W, C], labels [B] or None, draws, key) -> scalar."""
    rin, objective = experiment.rin, experiment.objective

    def drop_labels(labels, keep):
        return None if labels is None else jnp.where(keep, labels, NO_LABEL)

    def loss(params, images, labels, draws, key):
        def denoise_fn(key):
            def denoise(xt, gamma, cond, prev_latents):
                return rin.apply(
                    {"params": params}, xt, gamma, cond, prev_latents, True, rngs={"dropout": key}
                )

            return denoise

        first_key, second_key = jax.random.split(key)
        return objective.loss(
            denoise_fn(first_key), denoise_fn(second_key), drop_labels, images, labels, draws
        )

    return loss


def make_train_step(experiment: Experiment, mesh: Mesh):
    """step(state, batch) -> (state, metrics), to be compiled with the state donated.

    batch: {"image": uint8 [B, H, W, C], "label": int32 [B] where the model has classes}.
    metrics: float32 scalars loss, grad_norm, update_norm, param_norm, learning_rate; bool finite;
      modules: norms of "grad", "update" and "param" by module (`optimizer.module_norms`).
    """
    config = experiment.config
    accumulation = config.train.accumulation_steps
    loss_and_grad = jax.value_and_grad(make_loss(experiment))
    rows = sharding.batch_sharding(mesh)

    def split(x):
        """[B, ...] to [accumulation, B / accumulation, ...]; each device keeps its rows."""
        x = x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)
        spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    def gradients(params, images, labels, draws: Draws, key):
        if accumulation == 1:
            return loss_and_grad(params, images, labels, draws, key)

        def add(total, micro):
            index, (images, labels, draws) = micro
            one = loss_and_grad(params, images, labels, draws, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, one), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        micros = jax.tree.map(split, (images, labels, draws))
        total, _ = jax.lax.scan(add, zero, (jnp.arange(accumulation), micros))
        return jax.tree.map(lambda x: x / accumulation, total)

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        flip_key, draw_key, dropout_key = jax.random.split(key, 3)
        images = prepare_images(batch["image"], flip_key, config.data.flip)
        draws = experiment.objective.draw(draw_key, images.shape)
        images, draws = jax.lax.with_sharding_constraint((images, draws), rows)
        loss, grads = gradients(state.params, images, batch.get("label"), draws, dropout_key)

        updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
        norms = {"grad": grads, "update": updates, "param": state.params}
        norms = {name: module_norms(tree) for name, tree in norms.items()}
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "learning_rate": experiment.learning_rate(updates_taken(state.opt_state)),
            "modules": norms,
        }
        finite = jnp.isfinite(loss + metrics["grad_norm"] + metrics["update_norm"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(state.params, updates), opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {"param_norm": optax.tree.norm(params), "finite": finite}
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            emas=ema.update(state.emas, params, experiment.averages, state.step + 1),
            opt_state=opt_state,
        )
        return new_state, metrics

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
    size = experiment.config.train.batch_size
    batch = {"image": jax.ShapeDtypeStruct((size, *experiment.rin.image_shape), jnp.uint8)}
    if experiment.rin.num_classes:
        batch["label"] = jax.ShapeDtypeStruct((size,), jnp.int32)
    return batch
