"""Exports of networks that are given frames: how they are passed, and the clips that come along."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import rin_jax
from rin_jax import ConfigError
from rin_jax.data import moving_digits
from rin_jax.experiment import make_experiment
from rin_jax.interop import card, rin_torch
from rin_jax.jobs import export
from rin_jax.sampling.conditions import make_conditions
from rin_jax.sampling.generate import make_generate
from rin_jax.sampling.moving_pictures import grid_labels
from tests import tiny
from tests.interop import exports
from tests.network.small import distance

pytestmark = pytest.mark.usefixtures("one_device")
SHAPE = (2, 8, 8, 1)  # of the given frames


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    changes = {"diffusion__input_scale": 0.5, "diffusion__prediction_type": "x0"}
    model = exports.model(**exports.VIDEO, **changes)
    return exports.write(tmp_path_factory.mktemp("to"), model)


@pytest.fixture(scope="module")
def model(exported, one_device):
    return rin_jax.load(str(exported))


def test_clips_come_with_an_export_and_are_taken_in_turn(model):
    frames, labels = model.clips["frames"], model.clips["labels"]
    made = model.sample(8, seed=3)
    assert made.shape == (8, 3, 8, 8, 1)
    turn = np.arange(8) % 6
    np.testing.assert_array_equal(made, model.sample(8, labels[turn], 3, frames=frames[turn]))
    assert (made != model.sample(8, labels[turn], 3, frames=frames[turn][::-1])).any()
    for_all = model.sample(2, 1, 3, frames=frames[4])
    np.testing.assert_array_equal(for_all, model.sample(2, 1, 3, frames=frames[[4, 4]]))


def test_samplers_take_pixels_and_a_pass_takes_what_the_network_sees(model):
    """Black, white and all between, by hand: a sampler of one step is a pass and an estimate."""
    one = model.with_sampler(num_steps=1)
    frames = np.linspace(0, 255, 4 * 128).round().astype(np.uint8).reshape(4, *SHAPE)
    noise, process = exports.noise(model), model.experiment.sampler.process
    gamma = np.broadcast_to(model.experiment.sampler.schedule(np.float32(1)), 4)
    seen = (frames / 255 - 0.5).astype(np.float64)  # in [-0.5, 0.5], as input_scale says
    x0, _ = process.to_clipped_x0_eps(one.denoise(noise, gamma, 2, frames=seen)[0], noise, gamma)
    made = one.sample_from(noise, 2, frames=frames)
    np.testing.assert_allclose(made, x0 / 0.5, atol=1e-5)
    assert distance(made, one.sample_from(noise, 2, frames=255 - frames)) > 0.01


def test_frames_that_do_not_fit(model):
    frames, noise, gamma = np.zeros((4, *SHAPE), np.uint8), exports.noise(model), np.full(4, 0.5)
    bare = dataclasses.replace(model, clips=None)
    with pytest.raises(ConfigError, match=r"given frames and there are none; pass uint8 \(2, 8, 8"):
        bare.sample(4)
    with pytest.raises(ConfigError, match=r"frames are uint8 \(4, 2, 8, 8, 1\); pass uint8 .*\(3,"):
        model.sample(3, frames=frames)
    with pytest.raises(ConfigError, match=r"frames are float64 .*; pass uint8"):
        model.sample_from(noise, frames=frames / 255)
    with pytest.raises(ConfigError, match=r"frames are uint8 .*; pass float32"):
        model.denoise(noise, gamma, frames=frames)
    with pytest.raises(ConfigError, match="there are frames, but the model is given none"):
        exports.model().sample(4, frames=frames)


def test_pytorch_names_frames_that_do_not_fit(exported):
    theirs, noise = rin_torch.load(str(exported)), torch.zeros(1, 3, 8, 8, 1)
    with pytest.raises(ValueError, match=r"frames are None instead of \(1, 2, 8, 8, 1, torch.uint"):
        theirs.sample(noise)
    with pytest.raises(ValueError, match=r"frames are \(1, 2, 8, 8, 1, torch.float32\) instead"):
        theirs.sample(noise, frames=torch.zeros(1, *SHAPE))


def test_a_card_without_clips_puts_others_in_their_place(exported, tmp_path, model, monkeypatch):
    for name in ("config.json", "model.safetensors", "rin_torch.py"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    description = json.loads((exported / "config.json").read_text())
    text = card.card("x", description, [], picture=False, onnx=True, clips=False)
    assert "| videos | 3 frames of 8 x 8 x 1, which follow 2 that are given |" in text
    assert "first 2 frames, uint8 [batch, 2, 8, 8, 1]." in text
    (tmp_path / "README.md").write_text(text)
    black = np.zeros(SHAPE, np.uint8)
    code = exports.readme_code(tmp_path, "model.sample(4")
    made = exports.run_here(code, tmp_path, monkeypatch)["samples"]
    np.testing.assert_array_equal(made, model.sample(4, range(4), frames=black))
    made = exports.run_here(exports.readme_code(tmp_path, "torch"), tmp_path, monkeypatch)
    ours = model.sample_from(made["noise"].numpy(), range(4), frames=black)
    np.testing.assert_allclose(made["samples"], ours, atol=1e-4)


def test_damaged_clips_are_named(exported, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "frames.npz").write_bytes((exported / "frames.npz").read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"frames.npz is damaged: .*; copy the file again"):
        rin_jax.load(str(tmp_path))


CHANGES = exports.VIDEO | {
    "data__name": "moving_digits", "data__split": "train", "data__image_size": 12,
    "data__flip": False, "sampler__images_per_device": 4,
}  # fmt: skip


def test_the_job_draws_what_really_followed_and_keeps_what_was_given(
    tmp_path, monkeypatch, one_device
):
    monkeypatch.setattr(moving_digits, "CLIPS", {"train": 12, "test": 10})
    config = tiny.config(**CHANGES, data__data_dir=str(tmp_path / "data"))
    experiment = make_experiment(config)
    model = exports.model_of(experiment)
    preview = export.preview_conditions(experiment)
    model = dataclasses.replace(model, clips=export.given_clips(model, preview))
    export.write(tmp_path / "to", model, [], preview=preview, with_onnx=False)
    picture = (tmp_path / "to" / "samples.png").read_bytes()
    assert picture.startswith(b"\x89PNG")

    loaded = rin_jax.load(str(tmp_path / "to"))
    conditions = make_conditions(experiment, grid_labels(experiment.rin))
    made = loaded.sample(8)
    rows = np.arange(8)
    generate = make_generate(experiment, model.mesh, 0)
    for_job = generate(model.params, rows, conditions.of(rows))
    np.testing.assert_array_equal(made, for_job)
    truth = conditions.truth(np.arange(8))
    np.testing.assert_array_equal(loaded.clips["frames"], truth[:, :2])
    np.testing.assert_array_equal(loaded.clips["labels"], conditions.labels)
    monkeypatch.setattr(export, "MOST_BYTES", truth[:, :2].nbytes - 1)
    assert export.given_clips(model, preview) is None


def test_without_the_data_set_there_is_no_grid(tmp_path, capsys):
    config = tiny.config(**CHANGES, data__data_dir=str(tmp_path))
    config.data.name = "no_such_clips"
    assert export.preview_conditions(make_experiment(config)) is None
    assert "no samples.png, which needs real clips: " in capsys.readouterr().out
