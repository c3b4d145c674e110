"""The committed models: small, whole, and measured with the very weights that are there."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import rin_jax
from rin_jax.sampling.generate import describe_images

MODELS = Path(__file__).parents[1] / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/config.json"))
MOST_BYTES = 8_000_000

pytestmark = pytest.mark.usefixtures("one_device")


def test_all_are_there():
    names = ["cifar10_jpeg", "digits", "fashion_mnist", "moving_digits"]
    assert [folder.name for folder in FOLDERS] == names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_model(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) < MOST_BYTES
    model = rin_jax.load(str(folder))
    assert model.step == model.config.train.num_steps
    (record,) = json.loads((folder / "evaluation.json").read_text())
    made = describe_images(model.experiment, model.step, model.ema, model.params)
    assert record["weights"] == made["weights"]
    text = (folder / "README.md").read_text()
    for name, value in record["figures"].items():
        assert f"| {name} | {value:.4f} |" in text
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == model.step


def test_the_digits_are_digits():
    """Most samples lie nearest to a real digit of their own class."""
    model = rin_jax.load(str(MODELS / "digits")).with_sampler(num_steps=25)
    labels = np.arange(50) % 10
    samples = model.sample(50, labels, seed=1).reshape(50, -1).astype(np.float64)
    images, classes = load_digits(return_X_y=True)
    distances = np.square(samples[:, None] - images * 255 / 16).sum(-1)
    nearest = classes[distances.argmin(1)]
    assert (nearest == labels).mean() > 0.9


def test_clips_go_on_where_the_given_frames_end():
    """The network has no classes, the clips that come along do."""
    model = rin_jax.load(str(MODELS / "moving_digits")).with_sampler(num_steps=10)
    made, given = (some.astype(np.float64) for some in (model.sample(8), model.clips["frames"][:8]))
    distances = np.square(made[:, None, 0] - given[None, :, -1]).mean((2, 3, 4))
    assert (distances.argmin(1) == np.arange(8)).sum() >= 7
