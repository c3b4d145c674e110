"""What --mode=evaluate refuses before it reads or samples; tests/test_main.py runs it."""

import numpy as np
import pytest

from rin_jax import ConfigError
from rin_jax.jobs import evaluate
from tests import tiny


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__num_classes": 0}, "for 2 to 250 classes; data.num_classes is 0"),
        ({"data__num_classes": 251}, "data.num_classes is 251"),
        ({"data__image_size": 36}, "images up to 32 pixels; data.image_size is 36"),
        ({"evaluation__num_samples": 0}, "evaluation.num_samples is 0; it must be at least 1"),
    ],
)
def test_what_is_not_measured(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(tiny.config(data__data_dir=str(tmp_path), **changes), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_class_of_which_too_few_images_are_read(tmp_path, monkeypatch):
    """Nine classes of two images and one of one: none could be held out of it."""
    labels = np.arange(19) // 2
    monkeypatch.setattr(evaluate, "open_source", lambda data: None)
    monkeypatch.setattr(evaluate.pipeline, "fixed_examples", lambda *_: {"label": labels})
    with pytest.raises(ConfigError, match="first 19 images of 'digits', and some class has 1 of"):
        evaluate.evaluate(tiny.config(), str(tmp_path))
