"""The training step: the same on every mesh, under accumulation and remat; every weight learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.network.partitioning import param_shapes
from rin_jax.runtime import sharding
from rin_jax.training.state import create_state
from rin_jax.training.step import compile_train_step, make_loss, prepare_images
from tests import tiny
from tests.network.small import fill

STEPS = 5


def compiled(experiment):
    """The step on one device."""
    return compile_train_step(experiment, one_device())


def one_device():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def run(step, state, batches=None):
    """(losses, parameters, averages, losses by level) of STEPS steps; the state is donated."""
    losses, levels = [], []
    for batch in batches or tiny.batches(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        levels.append(np.asarray(metrics["levels"]))
    return np.array(losses), *jax.device_get((state.params, state.emas)), np.array(levels)


def difference(a, b) -> float:
    leaves = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    # key biases have no true gradient: a LAMB step moves them by rounding noise
    flat = jax.tree_util.tree_leaves_with_path(leaves)
    return max(
        value
        for path, value in flat
        if [key.key for key in path][-2:] != ["key", "bias"]
    )


@pytest.fixture(scope="module")
def step():
    """(compiled step, fresh state on the host) of TINY."""
    experiment = tiny.experiment()
    return compiled(experiment), jax.device_get(create_state(experiment, one_device(), 0))


@pytest.fixture(scope="module")
def trained(step):
    return run(*step)


def test_another_seed_differs(step, trained):
    """Of the steps alone: both start from one state."""
    losses, params, *_ = run(compiled(tiny.experiment(seed=1)), step[1])
    assert np.abs(losses - trained[0]).max() > 1e-3
    assert difference(params, trained[1]) > 1e-4


def test_the_state_is_updated_in_place(step):
    """All of it: the results lie where the arguments have been."""
    program, state = step[0], jax.device_put(step[1], jax.devices()[0])
    leaves = jax.tree.leaves(state)
    assert program.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)
    program(state, tiny.batches(1)[0])
    assert all(leaf.is_deleted() for leaf in leaves)


def temporary(num_blocks: int, rate: float) -> int:
    """Bytes that the compiled gradient keeps meanwhile."""
    experiment = tiny.experiment(
        model__num_blocks=num_blocks, diffusion__self_cond_rate=rate, model__dropout=0.0,
        model__drop_path=0.0,
    )  # fmt: skip
    rin, key = experiment.rin, jax.random.key(0)
    x = jax.ShapeDtypeStruct((64, *rin.example_shape), jnp.float32)
    draws = jax.eval_shape(lambda key: experiment.objective.draw(key, x.shape), key)
    gradient = jax.jit(jax.grad(make_loss(experiment)))
    lowered = gradient.lower(param_shapes(rin), x, rin.abstract_cond(64), draws, key)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_the_first_pass_keeps_nothing_for_the_gradient(monkeypatch):
    """What six more blocks keep is the same with self-conditioning and without."""

    def more(rate):
        return temporary(8, rate) - temporary(2, rate)

    alone = more(0.0)
    assert more(0.9) < 1.05 * alone
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    assert more(0.9) > 1.5 * alone


@pytest.fixture(scope="module")
def accumulated(step):
    """The same steps without dropout, of a batch at once and of four parts of it."""
    still = {"model__dropout": 0.0, "model__drop_path": 0.0}
    return [
        run(compiled(tiny.experiment(**still, train__accumulation_steps=parts)), step[1])
        for parts in (1, 4)
    ]


@pytest.mark.slow
def test_the_levels_of_a_step_make_up_its_loss(accumulated):
    for (losses, _, _, levels), parts in zip(accumulated, (1, 4), strict=True):
        sums, counts = np.moveaxis(levels * parts, 1, 0)
        assert (counts.sum(-1) == 16).all()
        assert ((counts > 0).sum(-1) > 3).all()
        np.testing.assert_allclose(sums.sum(-1) / 16, losses, rtol=1e-5)


@pytest.mark.slow
def test_accumulation_is_the_mean_of_the_parts(accumulated):
    whole, parts = accumulated
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-5)
    assert difference(whole[1], parts[1]) < 1e-5


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_memory_and_nothing_else(step, trained, remat):
    losses, params, *_ = run(compiled(tiny.experiment(model__remat=remat)), step[1])
    np.testing.assert_allclose(losses, trained[0], atol=1e-5)
    assert difference(params, trained[1]) < 1e-5


def test_ema_starts_from_the_parameters_and_follows(step, trained):
    state = step[1]
    jax.tree.map(np.testing.assert_array_equal, state.params, state.emas["decay_0.9"])
    _, params, averages, _ = trained
    assert difference(params, averages["decay_0.9"]) > 0


def test_an_unconditional_model_trains_without_labels():
    """With another optimizer, and with clipping."""
    batches = [{"image": batch["image"]} for batch in tiny.batches(STEPS)]
    changes = {"optimizer__clip_norm": 1.0, "optimizer__learning_rate": 1e-3}
    experiment = tiny.experiment(data__num_classes=0, optimizer__name="muon", **changes)
    state = create_state(experiment, one_device(), 0)
    losses, params, *_ = run(compiled(experiment), state, batches)
    assert np.isfinite(losses).all()
    assert "label" not in params


def test_every_parameter_gets_a_gradient():
    experiment = tiny.experiment(model__dropout=0.0, model__drop_path=0.0)
    params = fill(param_shapes(experiment.rin))
    batch = tiny.batches(1)[0]
    images = prepare_images(batch["image"], jax.random.key(0), False)
    draws = experiment.objective.draw(jax.random.key(1), images.shape)
    grads = jax.jit(jax.grad(make_loss(experiment)))(
        params, images, {"label": batch["label"]}, draws, jax.random.key(2)
    )
    dead = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if np.abs(grad).max() < 1e-7
    ]
    assert all("['key']['bias']" in name for name in dead), dead


def test_images_are_scaled_and_flipped_half_of_the_time():
    images = np.zeros((400, 2, 2, 1), np.uint8)
    images[:, :, 0] = 255
    plain = prepare_images(images, jax.random.key(0), False)
    assert plain.min() == -1.0
    assert plain.max() == 1.0
    np.testing.assert_array_equal(plain[:, :, 0], 1.0)
    flipped = prepare_images(images, jax.random.key(0), True)
    share = float((flipped[:, 0, 1, 0] == 1.0).mean())
    assert 0.4 < share < 0.6
    np.testing.assert_array_equal(flipped.sum(2), plain.sum(2))


def test_a_step_that_is_not_finite_changes_no_parameter(step):
    step, fresh = step
    good, _ = step(fresh, tiny.batches(1)[0])
    before = jax.device_get(good)
    stem = jax.tree.map(lambda x: x * np.float32(np.nan), before.params["stem"])
    poisoned = before.replace(params={**before.params, "stem": stem})
    after, metrics = step(poisoned, tiny.batches(1)[0])
    assert not metrics["finite"]
    assert int(after.step) == int(before.step) + 1
    jax.tree.map(np.testing.assert_array_equal, after.params, poisoned.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, poisoned.opt_state)
    next_one, metrics = step(fresh, tiny.batches(1)[0])
    assert metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(next_one), before)


def test_norms_of_modules_make_up_the_whole(step):
    step, fresh = step
    _, metrics = step(fresh, tiny.batches(1)[0])
    modules = jax.device_get(metrics["modules"])
    assert modules["grad"]["blocks_0.compute"].shape == (2, 1)
    assert modules["grad"]["blocks_0.read"].shape == (2,)
    for name in ("grad", "update"):
        squares = sum(np.square(norm).sum() for norm in modules[name].values())
        np.testing.assert_allclose(np.sqrt(squares), metrics[f"{name}_norm"], rtol=1e-5)
