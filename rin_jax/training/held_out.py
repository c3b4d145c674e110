"""The loss on examples that a run does not learn from: of the data set's split "test".

It is that of the current weights, not of an average, without dropout and mirroring, and with the
same noise each time: where it rises while train/loss falls, the run overfits.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax.data import pipeline
from rin_jax.data.source import Source
from rin_jax.experiment import Experiment
from rin_jax.network import conditioning
from rin_jax.runtime import console, sharding
from rin_jax.sampling.conditions import HELD_OUT
from rin_jax.sampling.denoiser import denoiser
from rin_jax.training import curves
from rin_jax.training.step import abstract_batch, prepare_batch

MOST = 1024  # examples, the first of the split
FIRST_KEY = np.uint32(2**31)  # training folds in its steps, which are less


class HeldOut:
    """Measures that loss; nothing is read before the first time.

    Where a data set has no such split there is no such loss, which is said at once.
    """

    def __init__(self, experiment: Experiment, source: Source, workdir: str, mesh: Mesh):
        self._experiment, self._workdir, self._mesh = experiment, workdir, mesh
        self._source = source.other_split(HELD_OUT)
        if self._source is None:
            name = experiment.data.name
            console.say(f"{name} has no other split {HELD_OUT!r}; there is no held-out loss")
        self._program = jax.jit(self._sums, out_shardings=sharding.replicated(mesh))

    def lacks(self, step: int) -> bool:
        """Whether the loss of a step is not in the run's curves and can be measured."""
        return self._source is not None and (
            curves.last_step(epath.Path(self._workdir), curves.HELD_OUT) != step
        )

    def measure(self, params: Mapping[str, Any]) -> dict[str, float]:
        """The curve of the loss under `params`; {} without such a split. All processes together."""
        if self._source is None:
            return {}
        train, count = self._experiment.train, min(len(self._source), MOST)
        size = train.batch_size // train.accumulation_steps  # what fits in memory in a step
        part, parts = sharding.batch_part(
            sharding.batch_sharding(self._mesh), jax.process_index()
        )
        read, wanted, sums = pipeline.Reader(self._source), abstract_batch(self._experiment), []
        for first in range(0, count, size):
            rows = np.array_split(np.arange(first, first + size), parts)[part]
            batch = read(rows % count)  # rows past the end count nothing
            batch = {name: batch[name] for name in wanted}
            weights = (rows < count).astype(np.float32)
            batch, weights = sharding.global_batch((batch, weights), self._mesh)
            with sharding.logical_axes(self._mesh):
                sums.append(self._program(params, batch, weights, FIRST_KEY + np.uint32(first)))
        total, weight = np.sum(jax.device_get(sums), axis=0)
        return {curves.HELD_OUT: float(total / weight)}

    def _sums(self, params, batch, weights, first):
        """(sum of the errors, number) of the examples of a batch that has weights [B]."""
        key = jax.random.fold_in(jax.random.key(self._experiment.seed), first)
        x, cond = prepare_batch(self._experiment, batch, None)
        objective, denoise_fn = self._experiment.objective, denoiser(self._experiment.rin, params)
        draws = objective.draw(key, x.shape)
        x, draws = jax.lax.with_sharding_constraint(
            (x, draws), sharding.batch_sharding(self._mesh)
        )
        errors = objective.errors(denoise_fn, denoise_fn, conditioning.drop, x, cond, draws)
        return (errors * weights).sum(), weights.sum()
