"""Figures of few samples while a run trains: how its averages get better, not what they are worth.

The samples are those of the run's seed, with the same noise and labels each time. A trend figure
says its number of samples in its name; it is no substitute for --mode=evaluate.

    WORKDIR/best/STEP    with evaluation.keep_best, the average with the lowest Frechet distance
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.checkpointing.checkpoints import Checkpoints, folder
from rin_jax.data.source import Source
from rin_jax.evaluation import protocol
from rin_jax.evaluation.parts import Parts
from rin_jax.experiment import Experiment
from rin_jax.runtime import console, processes
from rin_jax.sampling import labels as label_rules
from rin_jax.sampling import measuring, real_images
from rin_jax.sampling.conditions import make_conditions, source_of
from rin_jax.sampling.generate import make_device_sampler
from rin_jax.training import curves

MEASURES = "frechet", "agreement"  # what few samples can tell
PREFIX = "samples/"


class Trend:
    """Measures a run's averages; what that needs is read, or made, when it is first asked.

    A feature network that cannot be used is left out, which is said at once. A context manager that
    ends with what it saves complete.
    """

    def __init__(self, experiment: Experiment, source: Source, workdir: str, mesh: Mesh):
        self._experiment, self._source = experiment, source
        self._workdir, self._mesh = workdir, mesh
        self._evaluation = dataclasses.replace(experiment.evaluation, measures=MEASURES)
        self._features: list[measuring.Features] = []
        self._sampler = make_device_sampler(experiment, mesh, experiment.seed)
        self._references: dict[str, real_images.Reference] = {}
        measures = experiment.evaluation.frame_measures
        self._measures_frames = bool(experiment.data.cond_frames and measures)
        self._best = None  # where the average with the lowest figure so far is kept
        if experiment.evaluation.keep_best:
            self._best = Checkpoints(folder(workdir, "best"), only_best=True)
        self._names = []
        for name in experiment.evaluation.chosen:
            try:
                real_images.check_network(name, experiment, source)
                self._names.append(name)
            except ConfigError as error:
                console.say(f"training goes on without figures in {name}'s features: {error}")

    def __enter__(self) -> "Trend":
        return self

    def __exit__(self, *exception) -> None:
        if self._best is not None:
            self._best.__exit__(*exception)

    def lacks(self, step: int) -> bool:
        """Whether the figures of a step are not in the run's curves."""
        return curves.last_step(epath.Path(self._workdir), PREFIX) != step

    def measure(self, step: int, emas: Mapping[str, Any]) -> dict[str, float]:
        """The figures of a step's averages, said; the best average by them is kept."""
        if not (self._names or self._measures_frames):
            return {}
        figures = self.figures(step, emas)
        lines = [f"  {name.removeprefix(PREFIX):50} {value:.4g}" for name, value in figures.items()]
        console.say("\n".join([f"step {step}, a trend:", *lines]))
        distances = {x.split("/")[-2]: value for x, value in figures.items() if "/frechet/" in x}
        if self._best is not None and distances and not self._best.has(step):
            name = min(distances, key=distances.get)
            metadata = {"config": self._experiment.config.to_dict(), "emas": [name]}
            self._best.save(step, {f"ema_{name}": emas[name]}, metadata, distances[name])
        return figures

    def figures(self, step: int, emas: Mapping[str, Any]) -> dict[str, float]:
        """"samples/NETWORK/MEASURE/EMA/nNUM" of each average; every process has them.

        Of predicted frames "samples/MEASURE/FRAME/EMA/nNUM".
        """
        if not self._features:
            self._open()
        experiment, evaluation = self._experiment, self._evaluation
        known, count = experiment.rin.num_classes, evaluation.trend_samples
        histograms = [x.histogram[:known] for x in self._references.values()] or [None]
        labels = label_rules.by_rule(
            evaluation.labels, count, known, experiment.seed, histograms[0]
        )
        conditions = make_conditions(experiment, labels, self._source)
        found, config = {}, protocol.digest(experiment.config.to_dict())
        for name, params in emas.items():
            kept = f"trend-{step}-{name}-{config}"
            path = epath.Path(self._workdir) / "evaluation" / "parts" / kept
            images = self._sampler(params, conditions)
            images, of_frames = measuring.of_clips(experiment, images, conditions)
            size, parts = experiment.generation.images_per_device, Parts(path)
            features = self._features + of_frames
            figures = measuring.figures(
                evaluation, self._mesh, images, size, count, features, self._references, parts
            )
            if figures:  # process 0 has them
                parts.remove()
            found |= {f"{PREFIX}{key}/{name}/n{count}": value for key, value in figures.items()}
        return json.loads(processes.gather("trend", json.dumps(found))[0])

    def _open(self) -> None:
        for name in self._names:
            network = real_images.open_network(name, self._experiment, self._source, self._workdir)
            outputs = self._evaluation.outputs_of(name)
            self._features.append(measuring.make_features(network, outputs, self._mesh))
            real = source_of(self._experiment, self._source)
            self._references[name] = real_images.find(
                self._experiment, real, network, self._workdir, self._mesh
            )
