"""The job that measures a run's newest checkpoint: whether its samples show the class asked for."""

import json

import jax
import numpy as np
from etils import epath

from rin_jax import ConfigError
from rin_jax.data import pipeline
from rin_jax.data.source import open_source
from rin_jax.evaluation import classifier
from rin_jax.experiment import device_mesh, make_experiment
from rin_jax.runtime import console
from rin_jax.sampling.generate import generate_all
from rin_jax.sampling.weights import load_ema

REAL_IMAGES = 5000  # the classifier learns from at most this many,
IMAGES_PER_CLASS = 20  # needs about so many of each class,
HELD_OUT = 5  # is measured on every fifth,
LARGEST_IMAGE = 32  # and reads no larger images


def evaluate(config, workdir: str, ema: str | None = None) -> dict[str, float]:
    """Samples `evaluation.num_samples` images, classes in turn, and writes and returns the record.

    WORKDIR/evaluation/STEP-WEIGHTS.json names the sampler, the seed and the weights beside the
    figures. `ema` as `load_ema`.
    """
    experiment = make_experiment(config)
    config, num_classes = experiment.config, experiment.rin.num_classes
    if not 2 <= num_classes <= REAL_IMAGES // IMAGES_PER_CLASS:
        raise ConfigError(
            f"--mode=evaluate measures whether samples show their class, for 2 to "
            f"{REAL_IMAGES // IMAGES_PER_CLASS} classes; data.num_classes is {num_classes}."
        )
    if experiment.data.image_size > LARGEST_IMAGE:
        text = f"--mode=evaluate reads images up to {LARGEST_IMAGE} pixels"
        raise ConfigError(f"{text}; data.image_size is {experiment.data.image_size}.")
    real = pipeline.fixed_examples(open_source(experiment.data), REAL_IMAGES)
    fewest = np.bincount(real["label"], minlength=num_classes).min()
    if fewest < 2:
        raise ConfigError(
            f"--mode=evaluate reads the first {len(real['label']):,} images of "
            f"{experiment.data.name!r}, and some class has {fewest} of them; it needs 2 at least."
        )
    mesh = device_mesh(experiment)
    step, name, params = load_ema(experiment, mesh, workdir, ema)
    count, part = experiment.evaluation.num_samples, experiment.evaluation.batch_size
    labels = np.arange(count, dtype=np.int32) % num_classes
    images = generate_all(experiment, mesh, experiment.seed, params, labels, part)
    learned, accuracy = _classifier(real["image"], real["label"], num_classes)
    agreement = classifier.accuracy(learned, images, labels)
    record = {
        "step": step, "agreement": agreement, "classifier_accuracy": accuracy,
        "num_samples": count, "weights": name, "seed": config.seed,
        "sampler": config.sampler.to_dict(),
        "data": {"name": experiment.data.name, "split": experiment.data.split,
                 "real_images": len(real["image"])},
    }  # fmt: skip
    path = epath.Path(workdir) / "evaluation" / f"{step:08d}-{name}.json"
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
    console.say(
        f"step {step}: a classifier reads {100 * agreement:.1f} % of {count} samples as asked, "
        f"and {100 * accuracy:.1f} % of held-out real images as labelled; {path}"
    )
    return record


def _classifier(images, labels, num_classes):
    """The classifier's parameters, and the share of held-out images that it reads as labelled."""
    held_out = np.arange(len(labels)) % HELD_OUT == 0
    params = classifier.train(images[~held_out], labels[~held_out], num_classes)
    return params, classifier.accuracy(params, images[held_out], labels[held_out])
