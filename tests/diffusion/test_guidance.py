"""Guidance against its formula, pass by pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from rin_jax.diffusion.guidance import EVERYWHERE, Guidance
from rin_jax.diffusion.samplers import Sampler
from tests.diffusion.toys import process, ramp

OLD = {"z": jnp.float32([0.5, -1.0, 2.0])}
GAMMA = jnp.float32([0.1, 0.5, 0.9])
COND, NULL = {"label": jnp.float32([1, 2, 3])}, {"label": jnp.float32([-1, -1, -1])}


def _normal(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def _conditional(xt, gamma, cond, latents):
    """Depends on every argument, example by example."""
    shift = cond["label"][:, None] + gamma[:, None]
    shift = shift if latents is None else shift + latents["z"][:, None]
    return jnp.sin(xt) * shift, {"z": 10 * cond["label"] + xt[:, 0]}


def _weak(xt, gamma, cond, latents):
    """Another network, whose latents have another shape."""
    shift = cond["label"][:, None] - (0.0 if latents is None else latents[0])
    return jnp.cos(xt) * shift, (3 * xt[:, :2],)


def _classifier_free(scale=1.5, interval=EVERYWHERE, latents="shared", denoise_fn=_conditional):
    return Guidance(scale, interval, latents).classifier_free(denoise_fn, NULL)


@pytest.mark.parametrize("kind", ["classifier_free", "auto"])
def test_no_guidance_is_no_wrapper(kind):
    guidance = Guidance(0.0, EVERYWHERE, "shared")
    assert getattr(guidance, kind)(_conditional, None) is _conditional


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((-0.5, EVERYWHERE, "shared"), r"guidance_scale is -0\.5"),
        ((1.0, (0.5, 0.5), "shared"), r"guidance_interval is \(0\.5, 0\.5\); .* values of gamma"),
        ((1.0, (-0.1, 0.5), "shared"), r"guidance_interval"),
        ((1.0, (0.1, 1.5), "shared"), r"guidance_interval"),
        ((1.0, (0.1,), "shared"), r"guidance_interval"),
        ((1.0, EVERYWHERE, "both"), r"guidance_latents is 'both'; choose one of shared, own"),
    ],
)
def test_errors_name_field_and_value(options, words):
    with pytest.raises(ValueError, match=words):
        Guidance(*options)


@pytest.mark.parametrize("previous", [None, OLD])
def test_classifier_free_is_two_passes_in_one_batch(previous):
    sizes = []

    def spy(xt, gamma, cond, latents):
        sizes.append(xt.shape[0])
        return _conditional(xt, gamma, cond, latents)

    xt = _normal(3, 4)
    guided, latents = _classifier_free(denoise_fn=spy)(xt, GAMMA, COND, previous)
    assert sizes == [6]
    with_cond, expected = _conditional(xt, GAMMA, COND, previous)
    without, other = _conditional(xt, GAMMA, NULL, previous)
    np.testing.assert_allclose(guided, 2.5 * with_cond - 1.5 * without, rtol=1e-5)
    np.testing.assert_allclose(latents["z"], expected["z"], rtol=1e-6)
    assert np.abs(latents["z"] - other["z"]).min() > 1


def test_the_second_pass_may_carry_latents_of_its_own():
    xt, second = _normal(3, 4), {"z": jnp.float32([5.0, 6.0, 7.0])}
    own = _classifier_free(latents="own")
    guided, (latents, others) = own(xt, GAMMA, COND, (OLD, second))
    with_cond, expected = _conditional(xt, GAMMA, COND, OLD)
    without, expected_other = _conditional(xt, GAMMA, NULL, second)
    np.testing.assert_allclose(guided, 2.5 * with_cond - 1.5 * without, rtol=1e-5)
    np.testing.assert_allclose(latents["z"], expected["z"], rtol=1e-6)
    np.testing.assert_allclose(others["z"], expected_other["z"], rtol=1e-6)
    shared, _ = _classifier_free()(xt, GAMMA, COND, OLD)
    assert np.abs(shared - guided).max() > 1


@pytest.mark.parametrize("latents", ["shared", "own"])
def test_the_interval_says_where_guidance_acts(latents):
    xt, previous = _normal(3, 4), OLD if latents == "shared" else (OLD, {"z": 2 * OLD["z"]})
    everywhere, carried = _classifier_free(latents=latents)(xt, GAMMA, COND, previous)
    plain, expected = _conditional(xt, GAMMA, COND, OLD)

    def guided(low, high):
        return _classifier_free(latents=latents, interval=(low, high))(xt, GAMMA, COND, previous)

    some, _ = guided(0.1, 0.5)  # both ends belong to it
    np.testing.assert_allclose(some[:2], everywhere[:2], rtol=1e-6)
    np.testing.assert_allclose(some[2], plain[2], rtol=1e-6)
    assert np.abs(everywhere - plain).max(axis=1).min() > 0.1
    none, kept = guided(0.91, 1.0)
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    first = kept if latents == "shared" else kept[0]
    np.testing.assert_allclose(first["z"], expected["z"], rtol=1e-6)
    if latents == "own":  # not computed, so unchanged
        np.testing.assert_array_equal(kept[1]["z"], previous[1]["z"])
        assert np.abs(carried[1]["z"] - previous[1]["z"]).min() > 0.1


def test_autoguidance_moves_away_from_the_weaker_network():
    xt, weak_latents = _normal(3, 4), (_normal(3, 2).repeat(2, axis=1),)
    auto = Guidance(1.5, EVERYWHERE, "own").auto(_conditional, _weak)
    guided, (latents, others) = auto(xt, GAMMA, COND, (OLD, weak_latents))
    first, expected = _conditional(xt, GAMMA, COND, OLD)
    second, expected_other = _weak(xt, GAMMA, COND, weak_latents)
    np.testing.assert_allclose(guided, 2.5 * first - 1.5 * second, rtol=1e-5)
    np.testing.assert_allclose(latents["z"], expected["z"], rtol=1e-6)
    np.testing.assert_allclose(others[0], expected_other[0], rtol=1e-6)
    copy = Guidance(1.5, EVERYWHERE, "shared").auto(_conditional, _conditional)
    np.testing.assert_allclose(copy(xt, GAMMA, COND, OLD)[0], first, rtol=1e-4)


@pytest.mark.parametrize("latents", ["shared", "own"])
@pytest.mark.parametrize("interval", [EVERYWHERE, (0.3, 0.7)])
def test_guidance_inside_a_sampler(interval, latents):
    sampler = Sampler(process("x0", 100.0), ramp, "ddim", 5, 0.0, 0.0, "carry", 0, 0.0)
    noise, low, high = _normal(3, 4), *interval

    def separate(xt, gamma, cond, pair):
        first, second = ({"z": jnp.zeros(3)},) * 2 if pair is None else pair
        with_cond, carried = _conditional(xt, gamma, cond, first)
        without, others = _conditional(xt, gamma, NULL, first if latents == "shared" else second)
        acts = (low <= gamma[0]) & (gamma[0] <= high)
        others = {"z": jnp.where(acts, others["z"], second["z"])}
        w = 2.0 * acts
        return (1 + w) * with_cond - w * without, (carried, others)

    def sample(denoise_fn):
        return 100 * sampler.sample(denoise_fn, noise, COND, None)

    guided = sample(_classifier_free(2.0, interval, latents))
    np.testing.assert_allclose(guided, sample(separate), rtol=1e-4, atol=1e-4)
    assert np.abs(guided - sample(_conditional)).max() > 0.1
