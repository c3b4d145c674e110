"""The moving digits of configs/moving_digits.py:tiny, as few clips, and how tests change them."""

import ml_collections
import pytest

from configs import moving_digits as configuration
from rin_jax.data import moving_digits
from rin_jax.data.source import open_source
from rin_jax.experiment import Experiment, make_experiment

NUM = {"train": 12, "test": 7}


def config(data_dir, **changes) -> ml_collections.ConfigDict:
    """Of that data set in `data_dir`, with fields changed: config(folder, data__clip__frames=6)."""
    config = configuration.get_config("tiny")
    config.data.data_dir, config.sampler.num_steps = str(data_dir), 3
    config.diffusion.prediction_type = config.diffusion.loss_type = "x0"  # as made-up networks do
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    config.update_from_flattened_dict(changes)
    return config


def experiment(data_dir, **changes) -> Experiment:
    """The experiment of a changed configuration."""
    return make_experiment(config(data_dir, **changes))


def prepare(data_dir, **changes):
    """Renders the clips of that configuration; returns `data_dir`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "CLIPS", NUM)
        open_source(experiment(data_dir, **changes).data)
    return data_dir
