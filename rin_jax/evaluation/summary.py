"""Figures from features: of real images their statistics, of samples all measures against them.

Features come as blocks {"NETWORK/OUTPUT": float32 [B, F], "label": int [B]} in the order of the
images, see `parts.Parts.blocks`; only one block is in memory, and of NEIGHBOURS images "pool".
What `frames.compare` finds comes with them as "frames/MEASURE", float32 [B, T].
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rin_jax import ConfigError
from rin_jax.evaluation import neighbours
from rin_jax.evaluation.distances import frechet_distance
from rin_jax.evaluation.protocol import OUTPUTS, Evaluation
from rin_jax.evaluation.real_statistics import Reference
from rin_jax.evaluation.statistics import InceptionScore, Sums, finite

Block = Mapping[str, np.ndarray]
NEIGHBOURS = 10_000  # images of either kind that KID and precision/recall compare
SPLITS = {"adm": "consecutive_5000", "rin_tfgan": "one"}  # of the Inception score, by protocol
DISTANCES = {name: OUTPUTS[name] for name in ("frechet", "spatial_frechet")}


def of_real(
    network: str, description: Mapping[str, Any], blocks: Iterable[Block], count: int,
    num_classes: int,
) -> Reference:  # fmt: skip
    """The statistics of `count` real images in the features of one network.

    The features that are kept are those of every k-th image, for the smallest k that leaves
    NEIGHBOURS: a data set may be in the order of its classes. The floor is the Frechet distance
    between the images of even and of odd index. ConfigError: not finite, or fewer than 4 images.
    """
    sums: dict[str, list[Sums]] = {}
    kept, histogram, first = [], np.zeros(num_classes, np.int64), 0
    stride = -(-count // NEIGHBOURS)
    for block in blocks:
        for output in DISTANCES.values():
            if (rows := block.get(f"{network}/{output}")) is not None:
                halves = rows[first % 2 :: 2], rows[1 - first % 2 :: 2]
                totals = sums.setdefault(output, [Sums(), Sums(), Sums()])
                for total, part in zip(totals, (rows, *halves), strict=True):
                    if len(part):
                        total.add(part)
        kept.append(block[f"{network}/pool"][-first % stride :: stride])
        labels = block["label"]
        histogram += np.bincount(labels[labels >= 0], minlength=num_classes)[:num_classes]
        first += len(block["label"])
    moments = {output: total.moments() for output, (total, _, _) in sums.items()}
    floor = {
        output: frechet_distance(even.moments(), odd.moments())
        for output, (_, even, odd) in sums.items()
    }
    return Reference(description, moments, np.concatenate(kept), histogram, floor)


class Measures:
    """All measures of `count` samples, nothing added yet; `references` are by network.

    Raises ConfigError: too few samples for a measure; a reference that lacks what it needs.
    """

    def __init__(
        self, evaluation: Evaluation, references: Mapping[str, Reference], count: int
    ):
        self._measures = [
            measure
            for network, reference in references.items()
            for measure in _of_network(evaluation, network, reference, count)
        ]
        self._measures.append(_Frames())

    def figures(self, blocks: Iterable[Block]) -> dict[str, float]:
        """"NETWORK/MEASURE" in the order of the configuration; ConfigError: not finite.

        Then of predicted frames "MEASURE/first", "MEASURE/last" and "MEASURE/mean".
        """
        for block in blocks:
            for measure in self._measures:
                measure.add(block)
        figures: dict[str, float] = {}
        for measure in self._measures:
            figures |= measure.figures()
        return figures


def _of_network(evaluation: Evaluation, network: str, reference: Reference, count: int) -> list:
    """The measures of one network."""
    wanted, found = evaluation.measures_of(network), []
    for name, output in DISTANCES.items():
        if name in wanted:
            if output not in reference.moments:
                raise ConfigError(
                    f"evaluation.measures has {name!r}, but the statistics of real images have no "
                    f"{output!r} features; make them anew with --mode=reference."
                )
            found.append(_Distance(f"{network}/{name}", f"{network}/{output}", reference, output))
    near = [name for name in wanted if name in ("kid", "precision_recall")]
    if near:
        found.append(_Neighbours(network, near, reference, count))
    if "inception_score" in wanted:
        found.append(_Score(network, count, evaluation.inception_protocol))
    if "agreement" in wanted:
        found.append(_Agreement(network))
    return found


class _Distance:
    """Frechet distance in one output of one network."""

    def __init__(self, name: str, entry: str, reference: Reference, output: str):
        self._name, self._entry = name, entry
        self._sums, self._real = Sums(), reference.moments[output]

    def add(self, block: Block) -> None:
        self._sums.add(block[self._entry])

    def figures(self) -> dict[str, float]:
        return {self._name: frechet_distance(self._sums.moments(), self._real)}


class _Neighbours:
    """KID and precision/recall of the first NEIGHBOURS samples."""

    def __init__(self, network: str, wanted: list[str], reference: Reference, count: int):
        self._network, self._wanted, self._held = network, wanted, []
        self._real, self._room = reference.features, min(count, NEIGHBOURS)
        if not len(self._real):
            raise ConfigError(
                f"evaluation.measures has {wanted}, but the statistics of real images have no "
                "features of single images; make them with --mode=reference."
            )
        for name, fewest in (("kid", neighbours.SUBSET), ("precision_recall", 4)):
            if name in wanted:
                neighbours.check(name, len(self._real), self._room, fewest)

    def add(self, block: Block) -> None:
        rows = block[f"{self._network}/pool"][: self._room]
        self._held.append(rows)
        self._room -= len(rows)

    def figures(self) -> dict[str, float]:
        samples, found = np.concatenate(self._held), {}
        if "kid" in self._wanted:
            found["kid"] = neighbours.kid(self._real, samples)[0]
        if "precision_recall" in self._wanted:
            found["precision"], found["recall"] = neighbours.precision_recall(self._real, samples)
        return {f"{self._network}/{name}": float(value) for name, value in found.items()}


class _Score:
    """The Inception score, with the splits of the protocol."""

    def __init__(self, network: str, count: int, protocol: str):
        self._network, self._first = network, 0
        self._score = InceptionScore(count, SPLITS[protocol])

    def add(self, block: Block) -> None:
        logits = block[f"{self._network}/logits"]
        self._score.add(self._first, logits)
        self._first += len(logits)

    def figures(self) -> dict[str, float]:
        return {f"{self._network}/inception_score": self._score.value()[0]}


class _Agreement:
    """The share of samples, 0..1, to which a classifier gives the label that was asked for."""

    def __init__(self, network: str):
        self._network, self._right, self._count = network, 0, 0

    def add(self, block: Block) -> None:
        given = block[f"{self._network}/logits"].argmax(-1)
        self._right += int(np.sum(given == block["label"]))
        self._count += len(given)

    def figures(self) -> dict[str, float]:
        return {f"{self._network}/agreement": self._right / self._count}


class _Frames:
    """Measures of predicted frames: means over the clips of the figures of single frames."""

    def __init__(self):
        self._totals: dict[str, np.ndarray] = {}
        self._count = 0

    def add(self, block: Block) -> None:
        for entry, rows in block.items():
            room, _, name = entry.partition("/")
            if room == "frames":
                total = finite(rows).sum(0)
                self._totals[name] = self._totals.get(name, 0.0) + total
        self._count += len(block["label"])

    def figures(self) -> dict[str, float]:
        found = {}
        for name, total in self._totals.items():
            frames = total / self._count
            ends = {"first": frames[0], "last": frames[-1], "mean": frames.mean()}
            found |= {f"{name}/{which}": float(value) for which, value in ends.items()}
        return found
