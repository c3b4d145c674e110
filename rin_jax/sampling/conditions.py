"""What samples 0, 1, .. of a seed are conditioned on.

A network that is given frames predicts how real clips go on: sample i follows record i, modulo the
number of records, of the data set's split "test" or, where there is none, of its own split, and has
that record's class. The samples of any other network have labels by a rule: labels.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rin_jax.data import pipeline
from rin_jax.data.source import Source
from rin_jax.experiment import Experiment
from rin_jax.network import conditioning
from rin_jax.network.conditioning import NO_LABEL, Cond
from rin_jax.sampling.labels import by_rule


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of as many samples as there are labels."""

    labels: np.ndarray  # int32 [N], the classes of the samples; NO_LABEL where they have none
    num_classes: int  # that the network knows
    reader: pipeline.Reader | None = None  # of real clips, if their first frames are given
    input_scale: float = 1.0

    def of(self, indices: np.ndarray) -> Cond:
        """The conditions of some samples, on the host."""
        cond = conditioning.of_labels(self.labels[indices], self.num_classes)
        if self.reader is not None:
            frames = self._records(indices)["frames"]
            cond["frames"] = (frames.astype(np.float32) / 127.5 - 1) * np.float32(self.input_scale)
        return cond

    def truth(self, indices: np.ndarray) -> np.ndarray:
        """The whole real clips uint8 [B, T, H, W, C] of some samples."""
        records = self._records(indices)
        return np.concatenate([records["frames"], records["image"]], axis=1)

    def _records(self, indices: np.ndarray) -> pipeline.Batch:
        return self.reader(np.asarray(indices) % self.reader.num_records)


def make_conditions(
    experiment: Experiment, source: Source, count: int, histogram: Sequence[int]
) -> Conditions:
    """Of `count` samples that are measured, by the section `evaluation`.

    `source` is what the network learns from, `histogram` how many real images have each label.
    """
    rin = experiment.rin
    if not rin.cond_frames:
        rule, known = experiment.evaluation.labels, rin.num_classes
        return Conditions(by_rule(rule, count, known, experiment.seed, histogram[:known]), known)
    source = source_of(experiment, source)
    labels = np.full(len(source), NO_LABEL, np.int32)
    if source.info.num_classes:
        labels[:count] = [source.label(i) for i in range(min(count, len(source)))]
    scale = experiment.objective.process.input_scale
    reader = pipeline.Reader(source)
    return Conditions(np.resize(labels, count), rin.num_classes, reader, scale)


def source_of(experiment: Experiment, source: Source) -> Source:
    """The records that samples belong to: those of "test" for clips whose first frames are given.

    Of any other network they are those that it learns from, `source`.
    """
    return (source.other_split("test") if experiment.data.cond_frames else None) or source
