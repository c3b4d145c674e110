"""What the training step makes of a batch of clips."""

import dataclasses

import jax
import numpy as np

from configs import moving_digits
from rin_jax.experiment import make_experiment
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.sampling.conditions import Conditions
from rin_jax.training.step import prepare_batch

CLIPS = 16


def test_given_frames_are_scaled_as_x0_and_mirrored_with_what_follows():
    experiment = make_experiment(moving_digits.get_config("tiny"))
    data = dataclasses.replace(experiment.data, flip=True)
    experiment = dataclasses.replace(experiment, data=data)
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (CLIPS, 4, 16, 16, 1), dtype=np.uint8)
    batch = {"image": clips[:, 2:], "frames": clips[:, :2]}
    x, cond = prepare_batch(experiment, batch, jax.random.key(3))

    scale = experiment.objective.process.input_scale
    assert scale != 1  # else a forgotten scale would not be seen
    expected = clips / np.float32(127.5) - 1
    turned = [not np.allclose(one, other) for one, other in zip(x, expected[:, 2:], strict=True)]
    assert 0 < sum(turned) < CLIPS
    expected[turned] = expected[turned][..., ::-1, :]
    np.testing.assert_allclose(x, expected[:, 2:], atol=1e-6)
    np.testing.assert_allclose(cond["frames"], scale * expected[:, :2], atol=1e-6)


def test_training_and_sampling_give_the_network_the_same_frames():
    experiment = make_experiment(moving_digits.get_config("tiny"))
    frames = np.arange(2 * 2 * 256, dtype=np.uint8).reshape(2, 2, 16, 16, 1)
    _, cond = prepare_batch(
        experiment, {"image": frames, "frames": frames}, jax.random.key(0)
    )  # no flip in this configuration

    class Clips:
        num_records = 2

        def __call__(self, indices):
            return {"frames": frames[indices]}

    scale = experiment.objective.process.input_scale
    conditions = Conditions(np.full(2, NO_LABEL, np.int32), Clips(), 2, 0, scale)
    np.testing.assert_allclose(conditions.of(np.arange(2))["frames"], cond["frames"], atol=1e-6)
