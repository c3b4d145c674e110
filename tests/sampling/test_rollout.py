"""Roll-out: windows follow each other without a gap, each from its own noise; latents as asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.sampling import rollout
from rin_jax.sampling.conditions import make_conditions
from rin_jax.sampling.generate import make_generate
from rin_jax.sampling.rollout import Rollout
from tests.sampling import videos
from tests.sampling.test_generate import mesh_of, weights


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("videos")
    for frames in (4, 6):
        videos.prepare(data_dir, data__clip__frames=frames)
    return data_dir


def moves_on(rin, params):
    """A network that knows: all that is in a frame is one pixel to the right in the next one."""

    def denoise_fn(xt, gamma, cond, prev_latents):
        last = cond["frames"][:, -1]
        x0 = jnp.stack([jnp.roll(last, 1 + t, axis=2) for t in range(xt.shape[1])], axis=1)
        return x0, jnp.zeros((xt.shape[0], 1))

    return denoise_fn


def counts_passes(rin, params):
    """A network whose latents count its passes, and whose frames show how many there were."""

    def denoise_fn(xt, gamma, cond, prev_latents):
        before = jnp.zeros((xt.shape[0], 1)) if prev_latents is None else prev_latents
        x0 = jnp.broadcast_to(before[..., None, None, None] / 127.5 - 1, xt.shape)
        return x0, before + 1

    return denoise_fn


def clips_of(experiment, how, num=3, seed=1):
    """(real clips, clips that a roll-out makes of them)"""
    conditions, indices = make_conditions(experiment, np.full(num, -1)), np.arange(num)
    generate = make_generate(experiment, mesh_of(1), seed, how.program)
    return conditions.truth(indices), generate({}, indices, conditions.of(indices))


@pytest.mark.parametrize(("frames", "cond_frames"), [(4, 2), (6, 2), (6, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_windows_continue_the_clip(data_dir, monkeypatch, frames, cond_frames, scale):
    """More frames are predicted than given, as many, or fewer, so that given ones stay a while."""
    monkeypatch.setattr(rollout, "denoiser", moves_on)
    experiment = videos.experiment(
        data_dir, data__clip__frames=frames, data__clip__cond_frames=cond_frames,
        diffusion__input_scale=scale, model__video__patch_frames=1,
    )  # fmt: skip
    truth, made = clips_of(experiment, Rollout(3, "reset"))
    assert made.shape == (3, 3 * (frames - cond_frames), 16, 16, 1)
    for t in range(made.shape[1]):
        expected = np.roll(truth[:, cond_frames - 1], 1 + t, axis=2)
        np.testing.assert_array_equal(made[:, t], expected)


def test_latents_are_carried_or_start_from_zeros(data_dir, monkeypatch):
    monkeypatch.setattr(rollout, "denoiser", counts_passes)
    experiment = videos.experiment(data_dir, sampler__num_steps=5, diffusion__input_scale=1.0)
    for latents, last_passes in (("reset", [4, 4, 4]), ("carry", [4, 9, 14])):
        _, made = clips_of(experiment, Rollout(3, latents))
        for window, passes in enumerate(last_passes):
            assert (made[:, 2 * window : 2 * window + 2] == passes).all()


def test_the_first_window_is_the_sample_and_more_windows_change_none(data_dir):
    """With a random network under fresh noise at each step, on any devices."""
    experiment = videos.experiment(data_dir, sampler__name="ddpm_small")
    conditions, indices = make_conditions(experiment, np.full(6, -1)), np.arange(6)

    def sampled(devices, **how):
        mesh = mesh_of(devices)
        generate = make_generate(experiment, mesh, 3, **how)
        return generate(weights(experiment, mesh), indices, conditions.of(indices)).astype(int)

    two = sampled(1, make_program=Rollout(2, "reset").program)
    assert np.abs(sampled(1) - two[:, :2]).max() <= 1
    np.testing.assert_array_equal(sampled(2, make_program=Rollout(2, "reset").program), two)
    carried = sampled(1, make_program=Rollout(2, "carry").program)
    assert np.abs(carried[:, :2] - two[:, :2]).max() <= 1
    assert np.abs(carried[:, 2:] - two[:, 2:]).max() > 1


def test_windows_have_their_own_noise(data_dir, monkeypatch):
    """Shown by a network that says there is nothing but the noise it gets."""

    def shows_noise(rin, params):
        return lambda xt, gamma, cond, prev: (xt, jnp.zeros((len(xt), 1)))

    monkeypatch.setattr(rollout, "denoiser", shows_noise)
    experiment = videos.experiment(data_dir, sampler__num_steps=1)
    _, made = clips_of(experiment, Rollout(3, "reset"))
    windows = made.reshape(3, 3, -1).astype(float)
    flat = windows.reshape(9, -1)
    correlations = np.corrcoef(flat) - np.eye(9)
    assert np.abs(correlations).max() < 0.3


def test_a_window_is_a_sampling_of_the_sampler(data_dir):
    """From zeros it is `Sampler.sample`, from other latents the first step starts from these."""
    experiment = videos.experiment(data_dir, sampler__name="dpmpp_2m", sampler__eta=1.0)
    sampler = experiment.sampler
    noise = jax.random.normal(jax.random.key(0), (2, *experiment.rin.example_shape))

    def denoise_fn(xt, gamma, cond, prev):
        before = jnp.zeros((2, 1)) if prev is None else prev
        return jnp.tanh(xt + before[..., None, None, None]), before + 0.1

    def fresh(i):
        return jax.random.normal(jax.random.key(i), noise.shape)

    begin = sampler.no_latents(denoise_fn, noise, {})
    found, last = sampler.continued(denoise_fn, noise, {}, fresh, begin)
    np.testing.assert_allclose(found, sampler.sample(denoise_fn, noise, {}, fresh), atol=1e-6)
    np.testing.assert_allclose(last, 0.1 * sampler.num_steps, rtol=1e-5)
    other, last = sampler.continued(denoise_fn, noise, {}, fresh, begin - 2.0)
    np.testing.assert_allclose(last, 0.1 * sampler.num_steps - 2.0, rtol=1e-5)
    assert np.abs(other - found).max() > 0.1


def test_mistakes():
    experiment = functools.partial(videos.experiment, "/nowhere")
    Rollout(2, "reset").check(experiment(sampler__latents="reset"))
    with pytest.raises(ConfigError, match="--rollout is 0; it must be at least 1"):
        Rollout(0, "reset")
    with pytest.raises(ConfigError, match="--rollout is 2, but the network is given no frames"):
        Rollout(2, "reset").check(experiment(data__clip__cond_frames=0))
    with pytest.raises(ConfigError, match="rollout_latents is carry, but sampler.latents is 'rese"):
        Rollout(2, "carry").check(experiment(sampler__latents="reset"))
