"""Sampling programs: image i is image i, to the last bit; weights and guides that do not fit."""

import types

import jax
import ml_collections
import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.experiment import make_experiment
from rin_jax.runtime import sharding
from rin_jax.sampling import generate
from rin_jax.sampling import guide as guide_lib
from rin_jax.sampling import weights as weights_lib
from rin_jax.sampling.generate import make_generate, places
from rin_jax.sampling.weights import load_ema, whole
from tests import tiny
from tests.sampling import videos

SIZE = 5
SAMPLER = {
    "sampler__images_per_device": SIZE, "sampler__num_steps": 3, "sampler__name": "dpmpp_2m",
    "sampler__eta": 1.0, "sampler__guidance_scale": 1.0,
}  # fmt: skip


def mesh_of(devices: int, **sizes) -> jax.sharding.Mesh:
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | sizes
    return sharding.make_mesh(**sizes, devices=jax.devices()[:devices])


def weights(experiment, mesh, seed=0):
    """Random weights, so that no part of the network is still at zero."""
    return tiny.state(experiment, mesh, seed).params


def cond(indices) -> dict:
    """The classes of TINY in turn."""
    return {"label": np.asarray(indices, np.int32) % 10}


@pytest.fixture
def raw(monkeypatch):
    """Samples stay float32, so that not a bit is hidden by rounding to uint8."""
    monkeypatch.setattr(generate, "to_uint8", lambda images: images)


def test_an_index_has_its_row_in_the_fewest_batches():
    rng = np.random.default_rng(0)
    for size in (1, 4, 7):
        for indices in (np.arange(20), rng.integers(0, 50, 33), np.full(3, 9), np.arange(5, 9)):
            batch, row = places(indices, size)
            np.testing.assert_array_equal(row, indices % size)
            assert len(set(zip(batch, row, strict=True))) == len(indices)  # no two in one place
            assert batch.max() + 1 == np.bincount(indices % size).max()
    batch, _ = places(np.arange(20), 5)
    np.testing.assert_array_equal(batch, np.arange(20) // 5)


@pytest.mark.usefixtures("raw")
def test_an_image_is_the_same_in_any_batch():
    experiment = tiny.experiment(**SAMPLER)
    mesh = mesh_of(1)
    params, generate = weights(experiment, mesh), make_generate(experiment, mesh, seed=3)
    indices = np.arange(16)
    every = generate(params, indices, cond(indices))
    assert every.shape == (16, 8, 8, 1)
    assert np.abs(every[:-1] - every[1:]).max(axis=(1, 2, 3)).min() > 0.1
    for chosen in ([0], [0, 1, 2], [15, 2, 7, 2], [11]):
        some = generate(params, chosen, cond(np.array(chosen)))
        np.testing.assert_array_equal(some, every[chosen])
    other = make_generate(experiment, mesh, seed=4)(params, indices, cond(indices))
    assert np.abs(other - every).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(generate(params, [1], cond([2])) - every[1]).max() > 1e-3  # another class


@pytest.mark.usefixtures("raw")
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_an_image_is_the_same_on_any_devices(sizes):
    """Also where training splits the weights: latent_dim 256 makes some of them large enough."""
    experiment = tiny.experiment(
        **SAMPLER, model__latent_dim=256, model__num_blocks=1, model__latent_mlp_ratio=1
    )
    indices = np.arange(11)  # three batches, so three of the devices

    def sampled(mesh):
        params = weights(experiment, mesh)
        return images_of(experiment, mesh, params, indices), params

    alone, _ = sampled(mesh_of(1))
    together, params = sampled(mesh_of(8, **sizes))
    np.testing.assert_array_equal(alone, together)
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)]
    assert any(split) == bool(sizes)


def images_of(experiment, mesh, params, indices):
    return make_generate(experiment, mesh, seed=0)(params, indices, cond(indices))


def test_half_precision_is_an_option_of_the_same_weights():
    mesh, indices = mesh_of(1), np.arange(4)
    full, half = (
        tiny.experiment(**SAMPLER, model__dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    params = weights(full, mesh)
    images = [
        images_of(experiment, mesh, params, indices).astype(int) for experiment in (full, half)
    ]
    difference = np.abs(images[0] - images[1])
    assert 0 < difference.mean() < 8


def test_steps_that_the_grid_does_not_allow():
    experiment = tiny.experiment(sampler__num_steps=1_000_000)
    with pytest.raises(ConfigError, match="sampler.num_steps is 1000000, more than its grid"):
        make_generate(experiment, mesh_of(1), seed=0)


# Checkpoints and guides.


def save(workdir, config: ml_collections.ConfigDict, steps=(1,), seed=0):
    """Checkpoints of a run that never ran."""
    experiment = make_experiment(config)
    tiny.save(
        workdir, experiment, {s: tiny.state(experiment, mesh_of(1), seed + s) for s in steps}
    )
    return experiment


def test_a_checkpoint_is_chosen_by_its_step(tmp_path):
    experiment = save(tmp_path, tiny.config(), steps=(2, 4))
    for wanted, found in ((None, 4), (2, 2), (4, 4)):
        step, _, params = load_ema(experiment, mesh_of(1), str(tmp_path), checkpoint=wanted)
        assert step == found
        expected = tiny.state(experiment, mesh_of(1), found).emas["decay_0.9"]
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(ConfigError, match=r"no checkpoint 3 in .*; there are 2, 4\."):
        load_ema(experiment, mesh_of(1), str(tmp_path), checkpoint=3)


def guided(workdir, **changes):
    return tiny.config(
        **SAMPLER | {"sampler__guide": str(workdir), "sampler__guidance_latents": "own"} | changes
    )


def test_autoguidance_by_a_smaller_network(tmp_path):
    """A guide with the network's own weights changes nothing; a smaller one does."""
    twin, smaller = tmp_path / "twin", tmp_path / "smaller"
    experiment = save(twin, tiny.config())
    save(smaller, tiny.config(model__latent_dim=32, model__num_latents=5, model__num_blocks=1))
    mesh, indices = mesh_of(1), np.arange(3)
    params = load_ema(experiment, mesh, str(twin)).params

    def images(config):
        return images_of(make_experiment(config), mesh, params, indices).astype(int)

    plain = images(tiny.config(**SAMPLER | {"sampler__guidance_scale": 0.0}))
    assert np.abs(images(guided(twin)) - plain).max() <= 1
    assert np.abs(images(guided(smaller)) - plain).mean() > 1


@pytest.mark.parametrize(
    ("guide", "changes", "words"),
    [
        ({"model__num_latents": 5}, {"sampler__guidance_latents": "shared"},
         "model.num_latents is 6 here and 5 in checkpoint 1 .*sampler.guidance_latents to 'own'"),
        ({"diffusion__prediction_type": "v"}, {}, "diffusion.prediction_type is eps here and v"),
        ({"data__num_classes": 12}, {}, "data.num_classes is 10 here and 12 in checkpoint 1"),
        ({}, {"sampler__guide_checkpoint": 7}, "no checkpoint 7 in .*; there are 1"),
    ],
)  # fmt: skip
def test_a_guide_that_does_not_fit(tmp_path, guide, changes, words):
    save(tmp_path, tiny.config(**guide))
    experiment = make_experiment(guided(tmp_path, **changes))
    with pytest.raises(ConfigError, match=words):
        make_generate(experiment, mesh_of(1), seed=0)


def test_a_guide_of_other_clips_does_not_fit(monkeypatch):
    guide = {"sampler__guide": "a", "sampler__guidance_scale": 1.0}
    experiment = videos.experiment("/nowhere", **guide)
    for frames in (6, 4):
        saved = videos.config("/nowhere", data__clip__frames=frames).to_dict()
        found = [types.SimpleNamespace(step=1, config=saved)]
        monkeypatch.setattr(guide_lib, "find_checkpoints", lambda *wanted, found=found: found)
        if frames == 6:
            with pytest.raises(ConfigError, match="(?s)data.clip is .*frames: 4.* and .*frames: 6"):
                guide_lib.guide_experiment(experiment)
    assert guide_lib.guide_experiment(experiment).rin == experiment.rin


def test_weights_are_made_whole_by_one_program_however_often():
    experiment, mesh = tiny.experiment(), mesh_of(2)
    weights_lib._replicate.cache_clear()  # other tests may have made others whole on this mesh
    params = weights(experiment, mesh)
    for _ in range(3):
        whole(params, mesh)
    assert weights_lib._replicate(mesh)._cache_size() == 1
