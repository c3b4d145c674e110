"""Experiments: sections and their fields, and what makes weights another network's."""

import copy

import ml_collections
import pytest

from rin_jax import ConfigError
from rin_jax.configuration.stored import (
    SINCE_FORMAT_2,
    architecture,
    check_architecture,
    saved_config,
)
from rin_jax.experiment import make_experiment
from tests import tiny


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__time_scale": 10.0}, "model.time_scale: checkpoint 10.0, now 1000.0"),
        ({"model__latent_self_cond": False}, "model.latent_self_cond: checkpoint False, now True"),
        ({"model__depth": 2}, "model.depth: checkpoint 2, now 1"),
        ({"data__num_classes": 12}, "data.num_classes: checkpoint 12, now 10"),
        ({"diffusion__prediction_type": "v"}, "diffusion.prediction_type: checkpoint 'v'"),
        ({"diffusion__input_scale": 0.5, "diffusion__normalize_input": True}, "input_scale"),
    ],
)
def test_weights_of_another_network_are_told(changes, named):
    saved = tiny.experiment(**changes).config.to_dict()
    with pytest.raises(ConfigError, match="another architecture") as caught:
        check_architecture(tiny.experiment(), saved, "checkpoint 3 in runs/a")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__remat": "full", "model__dtype": "bfloat16", "model__dropout": 0.0,
         "model__drop_path": 0.0},
        {"optimizer__name": "adamw"},  # the weights do not depend on it
        {"diffusion__loss_type": "v", "sampler__num_steps": 7, "seed": 3},
    ],
)  # fmt: skip
def test_what_may_change_while_weights_are_used(changes):
    saved = tiny.experiment(**changes).config.to_dict()
    check_architecture(tiny.experiment(), saved, "checkpoint 3 in runs/a")


def test_a_configuration_from_before_some_fields_is_completed():
    saved = tiny.experiment().config.to_dict()
    for field in SINCE_FORMAT_2:
        del saved["model"][field]
    del saved["data"]["clip"]
    check_architecture(tiny.experiment(), saved, "checkpoint 3 in runs/a")
    assert make_experiment(saved_config(saved)).rin == tiny.experiment().rin
    with pytest.raises(ConfigError, match="missing field"):
        make_experiment(ml_collections.ConfigDict(saved))


def test_the_frames_of_a_clip_belong_to_the_architecture():
    clip = {"frames": 6, "cond_frames": 2, "stride": 1, "window": "first"}

    def parts(**changes):
        config = copy.deepcopy(tiny.TINY)
        config["data"]["clip"] = {**clip, **changes} if changes else None
        return architecture(config)

    assert parts(frames=6) == parts(stride=3) == parts(window="random")
    for changes in ({"frames": 7}, {"cond_frames": 1}, {}):
        assert parts(**changes) != parts(frames=6)


def test_a_section_that_is_not_known():
    config = tiny.config()
    config.optimiser = ml_collections.ConfigDict({"name": "lamb"})
    with pytest.raises(ConfigError, match="unknown field optimiser; did you mean optimizer"):
        make_experiment(config)
    config = tiny.config()
    del config["ema"]
    with pytest.raises(ConfigError, match="missing field 'ema'"):
        make_experiment(config)


def test_a_name_alone_has_its_defaults():
    decay = {"optimizer__decay": {"name": "cosine"}}
    config = tiny.experiment(sampler__schedule={"name": "logsnr"}, **decay).config
    assert config.sampler.schedule.to_dict() == {"name": "logsnr", "start": 6.0, "end": -9.0}
    assert config.optimizer.decay.to_dict() == {"name": "cosine", "end_factor": 0.0, "rate": 1.0}
    with pytest.raises(ConfigError, match=r"tau.*the name alone"):
        tiny.experiment(sampler__schedule={"name": "logsnr", "start": 1.0, "end": -1.0, "tau": 1})


def test_an_error_of_a_library_stays_what_it_is(monkeypatch):
    """Only our own class is a mistake of the user."""

    def broken(self):
        raise ValueError("a bug")

    monkeypatch.setattr("rin_jax.data.dataset.Data.resolved", broken)
    with pytest.raises(ValueError, match="a bug") as caught:
        make_experiment(tiny.config())
    assert not isinstance(caught.value, ConfigError)
