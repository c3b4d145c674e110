"""The job that trains: builds everything from a configuration, runs the loop, reports.

A step's randomness and its data follow from the seed and the step alone, so a run that stops and
goes on under the same command is the run that never stopped.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rin_jax import checkpoints, chips, processes, reports, sharding
from rin_jax.chips import GIB
from rin_jax.data import pipeline
from rin_jax.data.source import open_source
from rin_jax.experiment import (
    ConfigError,
    Experiment,
    check_architecture,
    check_devices,
    check_labels,
    config_errors,
    device_mesh,
    make_experiment,
)
from rin_jax.network import cost
from rin_jax.sample import GRID_COLUMNS, grid_labels, make_generate
from rin_jax.state import TrainState, abstract_state, create_state
from rin_jax.train_step import compile_train_step

Array = jax.Array
SHARING_SECONDS = 60.0  # network file systems show a new file late


def describe(experiment: Experiment, mesh: Mesh) -> str:
    """The configuration, the parameters and the costs of a run, for a person."""
    rin, config = experiment.rin, experiment.config
    state = abstract_state(rin, experiment.optimizer, mesh)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    forward = cost.forward_flops(rin)
    step = cost.training_flops(rin, bool(config.diffusion.self_cond_rate))
    kind = mesh.devices.flat[0].device_kind
    chip = chips.by_kind(kind)
    peak = f"{chip.peak_flops / 1e12:g} TFLOP/s bfloat16 a chip" if chip else "not known"
    table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    return (
        f"{config}\n{table}\n"
        f"tokens: {rin.num_tokens} interface, {rin.num_latents} latents\n"
        f"parameters: {count:,}\n"
        f"FLOPs per image: {forward / 1e9:,.3f} G forward, {step / 1e9:,.3f} G training step\n"
        f"mesh: {dict(mesh.shape)} of {kind}; peak that mfu_percent assumes: {peak}"
    )


def utilisation(experiment: Experiment, mesh: Mesh, images_per_second: float) -> dict[str, float]:
    """Images per second and chip and, where the chip's peak is known, the per cent of it used.

    Counted are the FLOPs of the model (`network/cost.py`), not those of rematerialisation.
    """
    rate = images_per_second / mesh.size
    chip = chips.by_kind(mesh.devices.flat[0].device_kind)
    if chip is None:
        return {"images_per_second_per_chip": rate}
    flops = cost.training_flops(experiment.rin, bool(experiment.config.diffusion.self_cond_rate))
    return {"images_per_second_per_chip": rate, "mfu_percent": 100 * rate * flops / chip.peak_flops}


def describe_memory(compiled) -> str:
    """Bytes per device of a compiled step, as far as the backend tells."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "memory per device: the backend does not tell"
    return (
        f"memory per device: {memory.argument_size_in_bytes / GIB:.3f} GiB state and batch, "
        f"{memory.temp_size_in_bytes / GIB:.3f} GiB temporary"
    )


def newest_step(experiment: Experiment, workdir: str) -> int | None:
    """The step of the newest checkpoint in `workdir`, or None if there is none.

    Raises:
      ConfigError: it belongs to another architecture or format.
    """
    with config_errors():
        saved = checkpoints.latest(workdir)
    if saved is None:
        return None
    check_architecture(experiment.config, saved[1], f"checkpoint {saved[0]} in {workdir}")
    return saved[0]


def open_batches(config, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches from `start_step` on.

    Raises:
      ConfigError: the data set does not fit the configuration, or not that of other processes;
        while reading, if a record is damaged.
    """
    data = config.data
    rows = sharding.batch_sharding(device_mesh(config))
    with config_errors():
        part, parts = sharding.batch_part(rows, jax.process_index())
        source = open_source(
            data.name, data.split, data.data_dir, data.image_size, data.channels
        )
        check_labels(data, source.info.num_classes)
        processes.agree(
            f"reading {data.name}", records=len(source), fingerprint=source.fingerprint[:12]
        )
        batches = pipeline.train_batches(
            source,
            image_size=data.image_size,
            channels=data.channels,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start_step,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
            process_index=part,
            process_count=parts,
        )
    wanted = ("image", "label") if data.num_classes else ("image",)

    def chosen():
        with config_errors():
            for batch in batches:
                yield {name: batch[name] for name in wanted}

    return chosen()


def open_workdir(config, workdir: str) -> None:
    """Makes the folder, which all processes must see, with the resolved configuration in it.

    Raises:
      ConfigError: nothing can be written there.
    """
    path = epath.Path(workdir)
    if jax.process_index() == 0:
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(
                f"cannot write to --workdir {workdir}: {error}. Name a folder that can be written."
            ) from error
    processes.agree("writing to --workdir")
    deadline = time.monotonic() + SHARING_SECONDS
    while not (path / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(1.0)
    processes.agree("sharing --workdir", sees_config_json=(path / "config.json").exists())


def train(config, workdir: str) -> None:
    """Trains to `train.num_steps`, from the newest checkpoint in `workdir` if there is one."""
    experiment = make_experiment(config)
    config = experiment.config
    mesh = device_mesh(config)
    check_devices(config, mesh)
    resumed_step = newest_step(experiment, workdir)
    processes.agree("resuming", newest_checkpoint=resumed_step)
    first_step = resumed_step or 0
    if first_step >= config.train.num_steps:
        reports.say(
            f"{workdir} is trained to step {first_step}; for more steps set "
            "--config.train.num_steps."
        )
        return
    batches = open_batches(config, first_step)
    open_workdir(config, workdir)
    with config_errors():  # a bucket needs packages that may be missing
        writer = reports.Writer(workdir, first_step, active=jax.process_index() == 0)
    with contextlib.closing(writer):
        reports.say(describe(experiment, mesh))
        train_step = compile_train_step(experiment, mesh)
        reports.say(describe_memory(train_step))
        processes.agree("compiled")  # the first collective would not wait long for the slowest
        with checkpoints.Checkpoints(workdir, config.checkpoint.keep) as saver:
            if resumed_step is None:
                state = create_state(experiment.rin, experiment.optimizer, mesh, config.seed)
            else:
                abstract = abstract_state(experiment.rin, experiment.optimizer, mesh)
                state = saver.restore(abstract, resumed_step)
                reports.say(f"resumed from checkpoint {resumed_step} in {workdir}")
            run_loop(experiment, mesh, train_step, state, batches, saver, writer)
    reports.say(f"trained to step {config.train.num_steps}; samples and curves in {workdir}")


def run_loop(experiment, mesh, train_step, state, batches, saver, writer) -> TrainState:
    """Steps, logs, samples and saves until `train.num_steps`; returns the last state.

    Raises:
      FloatingPointError: a loss or gradient was not finite; nothing of it was saved.
    """
    config = experiment.config
    num_steps = config.train.num_steps
    generate = make_generate(experiment, mesh, config.seed)
    labels = grid_labels(experiment.rin.num_classes)
    progress = reports.Progress(int(state.step), num_steps, config.train.batch_size)
    window: list[dict[str, Array]] = []  # metrics not yet read, one step each

    for step in range(int(state.step) + 1, num_steps + 1):
        with progress.spending("input_wait"):
            batch = next(batches)
        state, metrics = train_step(state, sharding.global_batch(batch, mesh))
        window.append(metrics)
        jax.block_until_ready(window[-2:][0])  # at most two steps in flight
        due = {
            name: step % every == 0 or step == num_steps
            for name, every in (
                ("log", config.train.log_every_steps),
                ("sample", config.train.sample_every_steps),
                ("save", config.checkpoint.every_steps),
            )
        }
        if not any(due.values()):
            continue
        means = read_metrics(window, step)
        window = []
        if due["log"]:
            means["learning_rate"] = float(experiment.learning_rate(step - 1))
            means |= progress.update(step)
            means |= utilisation(experiment, mesh, means["images_per_second"])
            reports.say(progress.line(means))
            writer.scalars(step, means)
        if due["sample"]:
            with progress.spending("samples"):
                images = generate(state.ema_params, np.arange(len(labels)), labels)
                writer.image(step, "progress", reports.grid(images, GRID_COLUMNS))
        if due["save"]:
            with progress.spending("checkpoint"):
                saver.save(state, config.to_dict())
    return state


def read_metrics(window: list[dict[str, Array]], last_step: int) -> dict[str, float]:
    """Means of the metrics of the steps up to `last_step`.

    Raises:
      FloatingPointError: a loss, gradient or parameter was not finite, with its step.
    """
    values = jax.device_get(window)
    for step, row in enumerate(values, start=last_step - len(values) + 1):
        for name, value in row.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at step {step}; training stops and keeps the last "
                    "checkpoint. Lower optimizer.learning_rate or set optimizer.clip_norm, then "
                    "run the same command again."
                )
    return {name: float(np.mean([row[name] for row in values])) for name in values[0]}
