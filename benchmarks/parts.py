"""What `benchmarks.step` times: a training step of an experiment, its parts, and a sampler step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Part
from rin_jax.experiment import Experiment
from rin_jax.network import attention, conditioning, layers
from rin_jax.runtime import sharding
from rin_jax.sampling.denoiser import denoiser
from rin_jax.training import ema
from rin_jax.training.state import TrainState, create_state
from rin_jax.training.step import compile_train_step, make_loss, prepare_images

PARTS = ("forward_backward", "optimizer_update", "ema_update", "training_step", "sampler_step")
ATTENTIONS = ("device", "xla", "cudnn")


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """A batch of random images and, if the model has classes, labels."""
    rng = np.random.default_rng(0)
    size, classes = experiment.train.batch_size, experiment.rin.num_classes
    shape = (size, *experiment.rin.example_shape)
    batch = {"image": rng.integers(0, 256, shape, dtype=np.uint8)}
    if classes:
        batch["label"] = rng.integers(0, classes, size, dtype=np.int32)
    return batch


def forward_backward(experiment: Experiment, params: Any, batch: dict[str, jax.Array]) -> Part:
    """Loss and gradients of a batch, both passes."""
    key = jax.random.key(0)
    images = prepare_images(batch["image"], key, flip=False)
    draws = experiment.objective.draw(key, images.shape)
    compute = jax.jit(jax.value_and_grad(make_loss(experiment)))
    return lambda _: compute(params, images, conditioning.of_batch(batch), draws, key), None


def optimizer_update(experiment: Experiment, state: TrainState) -> Part:
    """The optimizer's update added to the parameters; both are donated, as in the step."""

    def update(carry, grads):
        params, opt_state = carry
        updates, opt_state = experiment.optimizer.update(grads, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    compiled = jax.jit(update, donate_argnums=0)
    grads = jax.jit(lambda tree: jax.tree.map(lambda p: jnp.full_like(p, 1e-3), tree))(state.params)
    carry = copy((state.params, state.opt_state))
    return lambda carry: compiled(carry, grads), carry


def ema_update(experiment: Experiment, state: TrainState) -> Part:
    """The running average of the parameters, donated."""
    compiled = jax.jit(
        lambda emas, params, t: ema.update(emas, params, experiment.averages, t), donate_argnums=0
    )
    return lambda emas: compiled(emas, state.params, jnp.int32(1000)), copy(state.emas)


def copy(tree: Any) -> Any:
    """Arrays that may be donated in place of those given."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(tree)


def sampler_step(experiment: Experiment, params: Any, cond: conditioning.Cond) -> Part:
    """One sampler step that carries images and latents, half-way through the noise."""
    rin, sampler = experiment.rin, experiment.sampler
    times = jnp.float32(0.5), jnp.float32(0.49)

    @jax.jit
    def step(params, carry, cond):
        xt, latents = carry
        denoise_fn = denoiser(rin, params)
        xt, latents, _ = sampler.step(
            denoise_fn, xt, latents, cond, *times, fresh=jnp.zeros_like(xt)
        )
        return xt, latents

    size = experiment.train.batch_size
    noise = jax.random.normal(jax.random.key(0), (size, *rin.example_shape))
    latents = jax.tree.map(lambda z: jnp.zeros(z.shape, z.dtype), rin.abstract_latents(size))
    return lambda carry: step(params, carry, cond), (noise, latents)


def make_parts(experiment: Experiment) -> dict[str, Callable[[], Part]]:
    """What makes each part, on the first device; the batch lies on the device already.

    The training step is the last, since it gives the state away.
    """
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    state = create_state(experiment, mesh, experiment.seed)
    batch = sharding.global_batch(random_batch(experiment), mesh)
    ema_params = next(iter(state.emas.values()))

    def training_step() -> Part:
        train_step = compile_train_step(experiment, mesh)
        return lambda carry: train_step(carry[0], batch), (state, None)

    return {
        "forward_backward": lambda: forward_backward(experiment, state.params, batch),
        "optimizer_update": lambda: optimizer_update(experiment, state),
        "ema_update": lambda: ema_update(experiment, state),
        "sampler_step": lambda: sampler_step(experiment, ema_params, conditioning.of_batch(batch)),
        "training_step": training_step,
    }


def use_attention(form: str) -> None:
    """Computes all attention from now on in that form of ATTENTIONS."""
    if form != "device":
        layers.attend = functools.partial(attention.plain, implementation=form)
