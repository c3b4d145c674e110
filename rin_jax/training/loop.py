"""The loop of training: steps, logs, saves and samples, until the last step or the end of the run.

A phase that may be long (sampling) begins only when the state of its step is being saved, so that a
run that is told to end in it has nothing left to do.
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rin_jax.checkpointing.checkpoints import Checkpoints
from rin_jax.data.source import Source
from rin_jax.experiment import Experiment
from rin_jax.network import cost
from rin_jax.runtime import chips, console, processes, sharding
from rin_jax.runtime.preemption import Preempted, Watch
from rin_jax.runtime.profiler import Profiler
from rin_jax.sampling import grids, moving_pictures
from rin_jax.sampling.conditions import Conditions, make_conditions
from rin_jax.sampling.generate import make_generate
from rin_jax.training import curves
from rin_jax.training.held_out import HeldOut
from rin_jax.training.metrics import Window, module_figures
from rin_jax.training.state import TrainState, items_of, metadata_of
from rin_jax.training.trend import Trend

POLL = 0.2  # seconds between two looks at whether the run is to end, while it waits for data


def utilisation(experiment: Experiment, mesh: Mesh, images_per_second: float) -> dict[str, float]:
    """Images per second and chip and, where the chip's peak is known, the per cent of it used.

    Counted are the FLOPs of the model (`network/cost.py`), not those of rematerialisation.
    """
    rate = images_per_second / mesh.size
    chip = chips.by_kind(mesh.devices.flat[0].device_kind)
    if chip is None:
        return {"time/images_per_second_per_chip": rate}
    flops = cost.training_flops(experiment.rin, bool(experiment.objective.self_cond_rate))
    mfu = 100 * rate * flops / chip.peak_flops
    return {"time/images_per_second_per_chip": rate, "time/mfu_percent": mfu}


@dataclasses.dataclass
class Saver:
    """Saves a run's checkpoints and snapshots, each step once."""

    experiment: Experiment
    checkpoints: Checkpoints
    snapshots: Checkpoints | None  # None: the run keeps none
    step: int  # the last one saved
    unsaved: epath.Path  # the mark of a run that has none yet

    def save(self, state: TrainState, step: int, images_read: int, loss: float) -> None:
        """Starts saving the state after `step`, if that is not saved yet; `loss` ranks it."""
        if step == self.step:
            return
        first, self.step = not self.step, step
        metadata = metadata_of(state, self.experiment, images_read)
        self.checkpoints.save(step, items_of(state), metadata, loss)
        if first:
            self.checkpoints.wait()
            if jax.process_index() == 0:
                self.unsaved.unlink(missing_ok=True)

    def snapshot(self, state: TrainState, step: int) -> None:
        """Starts saving the power averages after `step`, unless an interrupted run has done so."""
        if self.snapshots is not None and not self.snapshots.has(step):
            powers = [name for name in state.emas if name.startswith("power_")]
            metadata = {"config": self.experiment.config.to_dict(), "emas": powers}
            items = {f"ema_{name}": state.emas[name] for name in powers}
            self.snapshots.save(step, items, metadata)

    def wait(self) -> None:
        """Until everything is saved; from any thread."""
        self.checkpoints.wait()
        if self.snapshots is not None:
            self.snapshots.wait()


def run_loop(
    experiment: Experiment, mesh: Mesh, train_step: Callable, state: TrainState, batches: Iterator,
    source: Source, images_read: int, saver: Saver, writer: curves.Writer, trend: Trend | None,
    held_out: HeldOut | None, profiler: Profiler, watch: Watch,
) -> TrainState:  # fmt: skip
    """Steps, logs, saves, samples and measures until `train.num_steps`; returns the last state.

    Raises NotFiniteError at too many steps in a row that are not finite (nothing of them is saved),
    and Preempted if the run is told to end (its state is saved).
    """
    num_steps = experiment.train.num_steps
    generate = make_generate(experiment, mesh, experiment.seed)
    conditions = make_conditions(experiment, moving_pictures.grid_labels(experiment.rin), source)
    indices = np.arange(len(conditions))
    first_step = int(state.step)
    progress = console.Progress(first_step, num_steps, experiment.train.batch_size)
    window = Window(experiment.train.max_skipped_steps)
    shown = next(iter(state.emas))  # the average whose samples are shown
    watch.end_quiet()

    def after(step: int, due: dict[str, bool]) -> None:
        """What follows the save of a step."""
        if due["snapshot"]:
            with progress.spending("checkpoint"):
                saver.snapshot(state, step)
        if due["held_out"] and held_out is not None:
            with progress.spending("evaluation"), watch.quiet(step, saver.wait):
                figures = held_out.measure(state.params)
                if figures:
                    loss = figures[curves.HELD_OUT]
                    console.say(f"step {step}: loss {loss:.4g} on held-out examples")
                    writer.scalars(step, figures)
        if due["sample"]:
            with progress.spending("samples"), watch.quiet(step, saver.wait):
                images = generate(state.emas[shown], indices, conditions.of(indices))
                show(writer, step, images, conditions)
        if due["trend"] and trend is not None:
            with progress.spending("evaluation"), watch.quiet(step, saver.wait):
                writer.scalars(step, trend.measure(step, state.emas))
                writer.copy()  # no save may follow

    if first_step:  # the run may have been interrupted between the save and these
        due = due_at(first_step, experiment)
        lacks = str(due["sample"] and writer.lacks(first_step, "progress"))
        due["sample"] = processes.gather("drawing", lacks)[0] == "True"  # process 0 knows
        lacks = str(trend is not None and trend.lacks(first_step))
        due["trend"] &= processes.gather("measuring", lacks)[0] == "True"
        lacks = str(held_out is not None and held_out.lacks(first_step))
        due["held_out"] &= processes.gather("held-out loss", lacks)[0] == "True"
        after(first_step, due)

    pool = futures.ThreadPoolExecutor(1, "rin-next-batch")
    try:
        for step in range(first_step + 1, num_steps + 1):
            with progress.spending("input_wait"):
                batch = next_unless(pool, batches, lambda done=step - 1: watch.stops_at(done))
            if batch is None:
                window.read()
                writer.copy()
                saver.save(state, step - 1, images_read, window.loss())
                saver.wait()
                raise Preempted
            batch = sharding.global_batch(batch, mesh)
            with jax.transfer_guard("disallow"):  # to or from the host: the batch was the last
                state, metrics = profiler.step(step, train_step, state, batch)
                window.put(step, metrics)
            images_read += experiment.train.batch_size
            due = due_at(step, experiment)
            if not any(due.values()):
                continue
            window.read()
            loss = window.loss()
            if due["log"]:
                figures = window.means() | {"train/lr": float(metrics["learning_rate"])}
                window.clear()
                figures |= progress.update(step)
                figures |= utilisation(experiment, mesh, figures["time/images_per_second"])
                console.say(log_line(progress, figures))
                writer.scalars(step, figures | module_figures(jax.device_get(metrics["modules"])))
            if due["save"] or due["sample"] or due["trend"] or due["held_out"]:
                with progress.spending("checkpoint"):
                    writer.copy()  # before the save, after which a run that is killed goes on
                    saver.save(state, step, images_read, loss)
            after(step, due)
    finally:
        pool.shutdown(wait=False)  # it may hang in a read
    return state


def log_line(progress: console.Progress, figures: dict[str, float]) -> str:
    """What is said of the steps since the line before; all else is in the curves."""
    loss = f"loss {figures.get('train/loss', np.nan):7.4f}"
    rest = [f"wait {figures.get('time/input_wait_percent', 0.0):3.0f} %"]
    if "time/mfu_percent" in figures:
        rest.append(f"mfu {figures['time/mfu_percent']:3.0f} %")
    if figures["train/skipped_steps"]:
        rest.append(f"{figures['train/skipped_steps']:.0f} skipped")
    return progress.line("step", "images", loss, "  ".join(rest))


def show(writer: curves.Writer, step: int, images: np.ndarray, conditions: Conditions) -> None:
    """The samples of a step as "progress": a grid of images; of clips their frames and a GIF."""
    if images.ndim == 4:
        writer.image(step, "progress", grids.grid(images, grids.COLUMNS))
        return
    strips = moving_pictures.strips(images, conditions, np.arange(len(images)))
    writer.moving(step, "progress", moving_pictures.moving(strips))
    writer.image(step, "progress", moving_pictures.still(strips))  # last: `lacks` looks for it


def due_at(step: int, experiment: Experiment) -> dict[str, bool]:
    """What is due after a step; all is after the last."""
    train = experiment.train
    cadences = {
        "log": train.log_every_steps, "sample": train.sample_every_steps,
        "save": experiment.checkpoint.every_steps,
        "snapshot": experiment.ema.snapshot_every_steps, "trend": experiment.evaluation.every_steps,
        "held_out": experiment.evaluation.held_out_every_steps,
    }  # fmt: skip
    last = step == train.num_steps
    return {name: last or (bool(n) and step % n == 0) for name, n in cadences.items()}


def next_unless(pool: futures.Executor, batches: Iterator, stops) -> Any:
    """The next batch, or None as soon as `stops()` is true."""
    if stops():
        return None
    future = pool.submit(next, batches)
    while not future.done():
        futures.wait([future], timeout=POLL)
        if not future.done() and stops():
            return None
    return future.result()
