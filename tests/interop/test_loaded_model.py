"""A loaded model: what it is given is checked in sentences, and what it gives can be shown."""

import io
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from rin_jax import ConfigError
from rin_jax.interop.loading import Model
from rin_jax.network.partitioning import new_params
from rin_jax.runtime import sharding
from tests import tiny

NAMES = ("Town", "River", *(f"kind {i}" for i in range(2, 10)))
STEPS, AT_ONCE = 3, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)


def on_devices(count: int) -> Model:
    """A network that has learnt nothing, on so many devices."""
    experiment = tiny.experiment(sampler__images_per_device=AT_ONCE)
    mesh = sharding.make_mesh(count, 1, 1, jax.devices()[:count])
    params = new_params(experiment.rin, jax.random.key(0))
    params = jax.device_put(params, sharding.replicated(mesh))
    return Model(experiment, params, mesh, NAMES, 7, "decay_0.9")


@pytest.fixture(scope="module")
def model() -> Model:
    return on_devices(1)


def test_a_notebook_cell_prints_one_line(model):
    assert repr(model) == (
        "<rin_jax model of digits: 8 x 8 x 1, 10 classes, 11,096 parameters, step 7, decay_0.9>"
    )


def test_classes_have_names(model):
    by_number = model.sample(3, labels=[1, 0, 1])
    np.testing.assert_array_equal(model.sample(3, labels=["River", "Town", "River"]), by_number)
    np.testing.assert_array_equal(model.sample(3, labels=("River", 0, np.int64(1))), by_number)
    np.testing.assert_array_equal(model.sample(3, labels=np.array(["River", "Town", "River"])),
                                  by_number)  # fmt: skip
    np.testing.assert_array_equal(model.sample(2, labels="Town"), model.sample(2, labels=0))


def test_samples_do_not_depend_on_how_many_there_are(model):
    many = model.sample(2 * AT_ONCE + 3)  # three batches
    np.testing.assert_array_equal(many[: AT_ONCE + 1], model.sample(AT_ONCE + 1))
    none = model.sample(0)
    assert (none.shape, none.dtype) == ((0, 8, 8, 1), np.uint8)


def test_a_pass_on_several_devices_whether_or_not_the_batch_fills_them(model):
    rng = np.random.default_rng(0)
    xt, gamma = rng.normal(size=(4, 8, 8, 1)), np.linspace(0.1, 0.9, 4)
    several = on_devices(4)
    for batch in (3, 4):
        given = xt[:batch], gamma[:batch], list(range(batch))
        for one, theirs in zip(model.denoise(*given), several.denoise(*given), strict=True):
            assert theirs.shape[0] == batch
            np.testing.assert_allclose(theirs, one, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.sample(-1), "num is -1; it must be a whole number"),
        (lambda m: m.sample(2.5), "num is 2.5"),
        (lambda m: m.sample("ten"), "num is 'ten'"),
        (lambda m: m.sample(1, seed=-1), "seed is -1"),
        (lambda m: m.sample(1, seed="a"), "seed is 'a'"),
        (lambda m: m.sample(1, labels="Twn"), "labels has 'Twn'; .*; did you mean Town?"),
        (lambda m: m.sample(1, labels=[["Town"]]), "labels has 'Town'; give whole numbers"),
        (lambda m: m.sample(1, labels=1.5), "labels has 1.5; give whole numbers or names"),
        (lambda m: m.sample(1, labels=True), "labels has True"),
        (lambda m: m.sample(2, labels=[1, [2]]), "labels has"),
        (lambda m: m.sample(2, labels={"a": 1}), "labels has 'a'"),
        (lambda m: m.sample(2, labels=[1, 2, 3]), r"labels has shape \(3,\); give one number or 2"),
        (lambda m: m.sample(1, labels=10), r"labels has 10; the model's classes are 0..9"),
        (lambda m: m.sample(1, frames=np.zeros(3)), "there are frames, but the model is given"),
        (lambda m: m.sample_from("noise"), r"noise is str; give .* numbers \[B, 8, 8, 1\]"),
        (lambda m: m.sample_from(np.zeros((2, 9, 8, 1))), r"noise is float64 \(2, 9, 8, 1\); give"),
        (lambda m: m.denoise(np.zeros((2, 8, 8, 1)), 0.5), "gamma is float; give"),
        (lambda m: m.edit(np.zeros((2, 8, 8, 1))), "images are float64; give pixels of 0..255"),
        (lambda m: m.edit(PIXELS[..., 0]), r"images is uint8 \(2, 8, 8\); give .* \[B, 8, 8, 1\]"),
        (lambda m: m.edit(PIXELS, PIXELS), r"mask is uint8 \(2, 8, 8, 1\); give bool \(8, 8\) for"),
        (lambda m: m.edit(PIXELS, np.ones((3, 8, 8), bool)), r"mask is bool \(3, 8, 8\)"),
        (lambda m: m.edit(PIXELS, strength=0), r"strength is 0; it must be a number in \(0, 1\]"),
        (lambda m: m.edit(PIXELS, strength="weak"), "strength is 'weak'"),
        (lambda m: m.edit(PIXELS, labels="Twn"), "labels has 'Twn'"),
        (lambda m: m.grid(np.zeros((2, 8, 8, 1))), "images are float64"),
        (lambda m: m.grid(np.zeros((0, 8, 8, 1), np.uint8)), "images are uint8"),
        (lambda m: m.grid([[1], [1, 2]]), "images is list; give an array"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_sentences(model, call, words):
    with pytest.raises(ConfigError, match=words):
        call(model)


def test_names_that_are_not_known(model):
    nameless = Model(model.experiment, model.params, model.mesh, None, 7, "decay_0.9")
    with pytest.raises(ConfigError, match=r"labels has 'Town', but .* no names: they are 0\.\.9"):
        nameless.sample(1, labels="Town")


def test_a_grid_is_a_picture(model):
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 8, 8, 1), np.uint8)
    picture = model.grid(images, columns=3)
    assert picture.size == (3 * 50 + 2, 2 * 50 + 2)
    np.testing.assert_array_equal(np.asarray(picture)[30, 25::50][:3], [0, 1, 2])
    np.testing.assert_array_equal(np.asarray(picture)[80, 25::50][:3], [3, 4, 5])
    assert Image.open(io.BytesIO(picture._repr_png_())).size == picture.size  # of a notebook


def test_a_callback_sees_each_step(model):
    seen = []
    images = model.sample(AT_ONCE + 2, callback=lambda *told: seen.append(told))
    rows = [list(range(AT_ONCE)), [AT_ONCE, AT_ONCE + 1]]
    assert [(step, list(indices)) for step, indices, _ in seen] == [
        (step, batch) for batch in rows for step in range(1, STEPS + 1)
    ]
    last = np.concatenate([x0 for step, _, x0 in seen if step == STEPS])
    assert last.dtype == np.uint8
    np.testing.assert_array_equal(last, images)  # the last step returns its estimate
    assert np.abs(images.astype(int) - model.sample(AT_ONCE + 2)).max() <= 1


def test_a_notebook_has_a_bar(model, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    model.sample(2)
    assert not capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    model.sample(AT_ONCE + 2)
    assert f"{AT_ONCE + 2}/{AT_ONCE + 2}" in capsys.readouterr().out


def test_images_are_made_anew_where_the_mask_is_true(model):
    """The rest stays to the last bit, and another seed makes other pixels."""
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:] = True
    first, second = (model.edit(PIXELS, mask, labels="Town", seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(first[:, ~mask], PIXELS[:, ~mask])
    assert (first[:, mask] != PIXELS[:, mask]).mean() > 0.9
    assert (first[:, mask] != second[:, mask]).any()
    each = np.stack([mask, ~mask])
    both = model.edit(PIXELS, each, labels="Town")
    np.testing.assert_array_equal(both[0], first[0])
    np.testing.assert_array_equal(both[1][mask], PIXELS[1][mask])


def test_images_are_made_anew_in_part(model):
    """At full strength as `sample` does without them; with less of it they count."""
    plain = model.sample(2, labels=3)
    assert np.abs(model.edit(PIXELS, labels=3).astype(int) - plain).max() <= 1
    weak = model.edit(PIXELS, strength=0.3, labels=3).astype(int)
    assert np.abs(weak - plain).max() > 1
    other = model.edit(255 - PIXELS, strength=0.3, labels=3)
    assert np.abs(weak - other).max() > 1
    seen = []
    model.edit(PIXELS, strength=0.6, callback=lambda step, *told: seen.append(step))
    assert seen == [1, 2]  # of three steps
