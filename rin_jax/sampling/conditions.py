"""What samples 0, 1, .. of a seed are conditioned on, and what really followed.

Classes come from a rule (`labels.py`). Where the network is given frames, they are those of real
clips: sample i takes record i, modulo their number, of the split "test" if the data set has one,
else of its own, in storage order; and the class of sample i is that record's.
"""

import dataclasses
from typing import Any

import numpy as np

from rin_jax.data import pipeline
from rin_jax.data.source import Source, open_source
from rin_jax.experiment import Experiment
from rin_jax.network.conditioning import NO_LABEL

HELD_OUT = "test"


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of N samples; indices are int [B], in 0..N-1."""

    labels: np.ndarray  # int32 [N], NO_LABEL where there is no class
    clips: pipeline.Reader | None  # of the given frames; None: no frames are given
    cond_frames: int  # how many frames are given
    num_classes: int  # of the network
    input_scale: float  # of the process
    fingerprint: str = ""  # of the data set whose frames are given

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The condition of the network for these samples."""
        cond = {"label": self.labels[indices]} if self.num_classes else {}
        if self.clips is not None:
            frames = self._records(indices)["frames"]
            cond["frames"] = scaled_frames(frames, self.input_scale)
        return cond

    def truth(self, indices: np.ndarray) -> np.ndarray:
        """The clips whose first frames are given, uint8 [B, T, H, W, C]."""
        records = self._records(indices)
        return np.concatenate([records["frames"], records["image"]], axis=1)

    def _records(self, indices: np.ndarray) -> pipeline.Batch:
        return self.clips(np.asarray(indices) % self.clips.num_records)


def scaled_frames(frames: Any, input_scale: float) -> Any:
    """uint8 frames, on the host or a device, as the condition has them: float32."""
    return (frames / np.float32(127.5) - 1) * np.float32(input_scale)


def make_conditions(
    experiment: Experiment, labels: np.ndarray, source: Source | None = None
) -> Conditions:
    """The conditions of a network's samples under `labels` int [N], or under those of real clips.

    `source` is the data set if it is open already; else it is opened where frames are given, which
    raises as `open_source`.
    """
    labels, num_classes = np.asarray(labels, np.int32), experiment.rin.num_classes
    clips, fingerprint = None, ""
    if experiment.rin.cond_frames:
        source = source_of(experiment, source or open_source(experiment.data))
        clips, known = pipeline.Reader(source), source.info.num_classes > 0
        fingerprint = source.fingerprint
        own = [source.label(i % len(source)) if known else NO_LABEL for i in range(len(labels))]
        labels = np.array(own, np.int32)
    cond_frames, scale = experiment.rin.cond_frames, experiment.objective.process.input_scale
    return Conditions(labels, clips, cond_frames, num_classes, scale, fingerprint)


def source_of(experiment: Experiment, source: Source) -> Source:
    """The records that samples belong to, where `source` is what the network learns from.

    They are those of HELD_OUT, where there are any, if frames are given; else those of `source`.
    """
    return (source.other_split(HELD_OUT) if experiment.rin.cond_frames else None) or source
