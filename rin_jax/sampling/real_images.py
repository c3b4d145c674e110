"""Real images of a data set as the feature networks see them: computed once and kept in a run.

Of clips the network may be given the first frames. Then `evaluation.count_cond_frames` says which
frames are compared, and samples are compared with the clips from which their frames come.

    WORKDIR/evaluation/classifier-HASH.npz              the small classifier of the data set
    WORKDIR/evaluation/reference/NETWORK-HASH.npz       statistics: evaluation/real_statistics.py
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.data import pipeline
from rin_jax.data.source import Source
from rin_jax.evaluation import (
    classifier,
    feature_networks,
    i3d,
    protocol,
    real_statistics,
    summary,
)
from rin_jax.evaluation.feature_networks import FeatureNetwork
from rin_jax.evaluation.parts import Parts
from rin_jax.evaluation.real_statistics import Reference
from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import NO_LABEL
from rin_jax.runtime import console, processes
from rin_jax.sampling import measuring
from rin_jax.sampling.conditions import source_of

PREPROCESSING = "largest central square, antialiased bicubic, rounded"
OF_CLIPS = "largest central square, area, rounded"


def check_network(name: str, experiment: Experiment, source: Source) -> None:
    """Raises ConfigError if a feature network cannot be used.

    It sees no clips, or nothing but clips, or not so short ones; no weights; no labels.
    """
    classes, clip = source.info.num_classes, experiment.data.clip
    fitting = feature_networks.OF_IMAGES if clip is None else feature_networks.OF_CLIPS
    if name not in fitting:
        kind = "images" if clip is None else "clips"
        raise ConfigError(
            f"evaluation.networks has {name!r}, which does not see {kind}; choose of "
            f"{', '.join(fitting)}."
        )
    if name == "i3d" and (frames := len(range(*compared_frames(experiment)))) < i3d.FEWEST_FRAMES:
        raise ConfigError(
            f"evaluation.networks has 'i3d', which needs clips of {i3d.FEWEST_FRAMES} frames, but "
            f"{frames} are compared; take 'classifier', or more frames."
        )
    if name == "classifier" and classes < 2:
        raise ConfigError(
            f"evaluation.networks has 'classifier', but {source.info.name!r} has {classes} classes "
            "to learn; take "
            + ("'efficientnet', or 'inception' with its weights." if clip is None else "'i3d'.")
        )
    feature_networks.check(name, experiment.evaluation)


def open_network(
    name: str, experiment: Experiment, source: Source, workdir: str
) -> FeatureNetwork:
    """A feature network of `evaluation.networks`; the classifier is trained if it is not there.

    Raises ConfigError as `check_network`, or if a file is damaged or another network's.
    """
    check_network(name, experiment, source)
    if name == "classifier":
        return open_classifier(experiment, source, workdir)
    return feature_networks.open_network(name, experiment.evaluation)


def describe(
    experiment: Experiment, source: Source, network: FeatureNetwork
) -> dict[str, Any]:
    """What the statistics of the images of `source` depend on, as JSON."""
    data, limit = experiment.data, experiment.evaluation.real_samples
    return {
        "features": dict(network.identity),
        "data": data.name, "split": source.data.split, "fingerprint": source.fingerprint,
        "images": min(len(source), limit or len(source)),
        "image_size": data.image_size, "channels": data.channels,
        "preprocessing": PREPROCESSING if data.clip is None else OF_CLIPS,
        **describe_clips(experiment),
    }  # fmt: skip


def describe_samples(experiment: Experiment, source: Source) -> dict[str, Any]:
    """What clips that are sampled depend on beside the network, as JSON; nothing of images."""
    data, evaluation = experiment.data, experiment.evaluation
    if data.clip is None:
        return {}
    clip = dataclasses.asdict(data.clip) | {"image_size": data.image_size}
    if data.cond_frames:
        given = source_of(experiment, source)
        clip |= {
            "count_cond_frames": evaluation.count_cond_frames, "given_split": given.data.split,
            "given_fingerprint": given.fingerprint, "measures": evaluation.frame_measures,
        }  # fmt: skip
    return {"clip": clip}


def describe_clips(experiment: Experiment) -> dict[str, Any]:
    """Which frames are compared, as JSON; nothing of images."""
    clip = experiment.data.clip
    if clip is None:
        return {}
    frames = list(compared_frames(experiment))
    return {"clip": {"frames": frames, "stride": clip.stride, "window": clip.window}}


def compared_frames(experiment: Experiment) -> tuple[int, int]:
    """The first frame of a clip that is compared, and the one after the last."""
    counted = experiment.evaluation.count_cond_frames
    return 0 if counted else experiment.data.cond_frames, experiment.data.clip.frames


def compared(experiment: Experiment, batch: pipeline.Batch) -> np.ndarray:
    """What is compared of a batch: its images, or the frames of its clips that count."""
    if "frames" in batch and experiment.evaluation.count_cond_frames:
        return np.concatenate([batch["frames"], batch["image"]], axis=1)
    return batch["image"]


def find(
    experiment: Experiment, source: Source, network: FeatureNetwork, workdir: str, mesh: Mesh
) -> Reference:
    """The statistics that samples are compared with in the features of a network.

    Those of `evaluation.reference`, else those in the workdir, else computed now: by all processes,
    over the images of `source`, resumably. Raises ConfigError as `real_statistics.check`.
    """
    wanted = describe(experiment, source, network)
    if experiment.evaluation.reference is not None:
        path = epath.Path(experiment.evaluation.reference)
        if path.is_dir():
            path /= file_name(wanted)
        found = real_statistics.load(path)
        real_statistics.check(path, found, wanted)
        return found
    path = kept_path(wanted, workdir)
    exists = processes.gather(f"statistics for {network.name}", str(path.exists()))[0]
    if exists != "True":
        compute(experiment, source, network, wanted, path, mesh)
    found = real_statistics.load(path)
    real_statistics.check(path, found, wanted)
    return found


def kept_path(description: Mapping[str, Any], workdir: str) -> epath.Path:
    """Where a run keeps the statistics of a description."""
    return epath.Path(workdir) / "evaluation" / "reference" / file_name(description)


def file_name(description: Mapping[str, Any]) -> str:
    """Of the statistics that a description belongs to."""
    return f"{description['features']['network']}-{protocol.digest(description)}.npz"


def compute(
    experiment: Experiment, source: Source, network: FeatureNetwork,
    description: Mapping[str, Any], path: epath.Path, mesh: Mesh,
) -> None:  # fmt: skip
    """Makes the statistics of what the description says; all processes together."""
    console.say(f"real images in the features of {network.name}:")
    count, parts = description["images"], Parts(path.with_suffix(".parts"))
    reader = pipeline.Reader(source)

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = reader(indices * len(source) // count)  # the set may be in the order of its classes
        return compared(experiment, batch), batch.get("label", np.full(len(indices), NO_LABEL))

    spatial = "spatial_frechet" in experiment.evaluation.measures_of(network.name)
    outputs = ["pool", "spatial"] if spatial else ["pool"]
    features = measuring.make_features(network, outputs, mesh)
    images = measuring.from_host(read)
    measuring.extract([features], images, measuring.AT_ONCE, count, parts, mesh)
    if jax.process_index() == 0:
        blocks, classes = parts.blocks(count), source.info.num_classes
        summary.of_real(network.name, description, blocks, count, classes).save(path)
        parts.remove()
    processes.agree(f"statistics for {network.name}")


def open_classifier(experiment: Experiment, source: Source, workdir: str) -> FeatureNetwork:
    """The classifier of a data set; process 0 trains it on all of the split, with 1/10 held out."""
    data = source.data
    identity = {
        "network": "classifier", "recipe": classifier.RECIPE, "data": data.name,
        "split": data.split, "fingerprint": source.fingerprint, "image_size": data.image_size,
        "channels": data.channels, **describe_clips(experiment),
    }  # fmt: skip
    name = protocol.digest(identity)
    path = epath.Path(workdir) / "evaluation" / f"classifier-{name}.npz"
    if processes.gather("a classifier", str(classifier.load(path, name) is not None))[0] != "True":
        if jax.process_index() == 0:
            console.say(f"a small classifier learns {source.info.name}")
            params = train_classifier(experiment, source)
            classifier.save(path, params, name)
        processes.agree("a trained classifier")
    params = classifier.load(path, name)
    accuracy = float(params.pop("accuracy"))
    bits = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    identity["weights_sha256"] = hashlib.sha256(bits).hexdigest()
    return FeatureNetwork(
        "classifier", params, classifier.extract, False, True, identity, accuracy
    )


def train_classifier(experiment: Experiment, source: Source) -> dict[str, Any]:
    """The classifier of a data set, trained on its split.

    Its accuracy, which is kept with it, is measured on the data set's test split or, where that is
    what it learns from or there is none, on a tenth of the images, from which it does not learn.
    """
    learnt, test = pipeline.fixed_examples(source, len(source)), source.other_split("test")
    if test is not None:
        held_out = pipeline.fixed_examples(test, len(test))
    else:
        order = np.random.default_rng(0).permutation(len(source))
        held_out = {name: array[order[: len(order) // 10]] for name, array in learnt.items()}
        learnt = {name: array[order[len(order) // 10 :]] for name, array in learnt.items()}
    progress: list[console.Progress] = []

    def show(done: int, steps: int) -> None:
        if not done:
            progress.append(console.Progress(0, steps, classifier.BATCH))
            return
        progress[0].update(done)
        console.say(progress[0].line("step", "images"))

    num_classes = source.info.num_classes
    examples = compared(experiment, learnt)
    params = classifier.train(examples, learnt["label"], num_classes, progress=show)
    accuracy = classifier.accuracy(params, compared(experiment, held_out), held_out["label"])
    count = len(held_out["label"])
    console.say(f"it reads {100 * accuracy:.2f} % of {count:,} held-out images as labelled")
    return params | {"accuracy": np.float32(accuracy)}
