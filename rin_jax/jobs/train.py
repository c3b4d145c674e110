"""The job that trains: builds everything from a configuration, runs the loop, reports.

A step's randomness follows from the seed and the step alone, its data from the images read before,
so a run that stops and goes on under the same command is the run that never stopped.
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

from rin_jax import ConfigError
from rin_jax.checkpointing import restore
from rin_jax.checkpointing.checkpoints import Checkpoints, folder, state_parts
from rin_jax.checkpointing.checksums import tree_digests
from rin_jax.data import pipeline
from rin_jax.data.source import ImageSource, open_source
from rin_jax.experiment import (
    Experiment,
    check_devices,
    check_labels,
    config_errors,
    device_mesh,
    make_experiment,
)
from rin_jax.network import cost
from rin_jax.runtime import chips, processes, reports, sharding, workdir_lock
from rin_jax.runtime.chips import GIB
from rin_jax.runtime.preemption import Watch
from rin_jax.training.loop import Saver, run_loop
from rin_jax.training.metrics import Window
from rin_jax.training.state import abstract_params
from rin_jax.training.step import compile_train_step

SHARING_SECONDS = 60.0  # network file systems show a new file late
NO_FACTS = {"images_read": 0, "window": {}}  # of a run that begins


def describe(experiment: Experiment, mesh: Mesh) -> str:
    """The configuration, the parameters and the costs of a run, for a person."""
    rin, config = experiment.rin, experiment.config
    params = abstract_params(rin, mesh)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    forward = cost.forward_flops(rin)
    step = cost.training_flops(rin, bool(config.diffusion.self_cond_rate))
    kind = mesh.devices.flat[0].device_kind
    chip = chips.by_kind(kind)
    peak = f"{chip.peak_flops / 1e12:g} TFLOP/s bfloat16 a chip" if chip else "not known"
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    return (
        f"{config}\n{table}\n"
        f"tokens: {rin.num_tokens} interface, {rin.num_latents} latents\n"
        f"parameters: {count:,}\n"
        f"FLOPs per image: {forward / 1e9:,.3f} G forward, {step / 1e9:,.3f} G training step\n"
        f"mesh: {dict(mesh.shape)} of {kind}; peak that mfu_percent assumes: {peak}"
    )


def describe_memory(compiled) -> str:
    """Bytes per device of a compiled step, as far as the backend tells."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "memory per device: the backend does not tell"
    return (
        f"memory per device: {memory.argument_size_in_bytes / GIB:.3f} GiB state and batch, "
        f"{memory.temp_size_in_bytes / GIB:.3f} GiB temporary"
    )


def open_data(config) -> ImageSource:
    """The data set of a run.

    Raises:
      ConfigError: it does not fit the configuration, or not that of other processes.
    """
    data = config.data
    with config_errors():
        source = open_source(
            data.name, data.split, data.data_dir, data.image_size, data.channels
        )
        check_labels(data, source.info.num_classes)
    processes.agree(
        f"reading {data.name}", records=len(source), fingerprint=source.fingerprint[:12]
    )
    return source


def open_batches(
    config, mesh: Mesh, source: ImageSource, images_read: int
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches that follow after `images_read` images.

    Raises:
      ConfigError: the batch does not fit the data set or the processes; while reading, if a record
        is damaged.
    """
    data = config.data
    with config_errors():
        part, parts = sharding.batch_part(sharding.batch_sharding(mesh), jax.process_index())
        batches = pipeline.train_batches(
            source,
            image_size=data.image_size,
            channels=data.channels,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start=images_read,
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


@contextlib.contextmanager
def open_workdir(config, workdir: str) -> Iterator[None]:
    """Makes the folder, which all processes must see, holds its lock and leaves the configuration.

    Raises:
      ConfigError: nothing can be written there, or another run writes there.
    """
    path = epath.Path(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(workdir_lock.hold(workdir))
                (path / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
            except OSError as error:
                raise ConfigError(
                    f"cannot write to --workdir {workdir}: {error}. Name a folder that can be "
                    "written."
                ) from error
        processes.agree("writing to --workdir")
        deadline = time.monotonic() + SHARING_SECONDS
        while not (path / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(1.0)
        processes.agree("sharing --workdir", sees_config_json=(path / "config.json").exists())
        yield


def train(config, workdir: str, watch: Watch | None = None) -> None:
    """Trains to `train.num_steps`, from the newest checkpoint in `workdir` if there is one.

    `watch` hears when the run is to end before that.
    """
    watch = watch or Watch()
    experiment = make_experiment(config)
    config = experiment.config
    mesh = device_mesh(config)
    check_devices(config, mesh)
    found, unreadable = restore.find_run(experiment, workdir)
    newest = found[0].step if found else 0
    drawn = reports.image_path(epath.Path(workdir), "progress", newest).exists()
    processes.agree("resuming", checkpoints=[saved.step for saved in found], drawn=drawn)
    if newest >= config.train.num_steps and drawn:
        reports.say(
            f"{workdir} is trained to step {newest}; for more steps set --config.train.num_steps."
        )
        return
    source = open_data(config)
    beginning = None if found else restore.find_beginning(experiment)
    open_batches(config, mesh, source, 0)  # its mistakes, before anything is written
    with open_workdir(config, workdir), contextlib.ExitStack() as stack:
        reports.say(describe(experiment, mesh))
        train_step = compile_train_step(experiment, mesh)
        reports.say(describe_memory(train_step))
        processes.agree("compiled")  # the first collective would not wait long for the slowest
        if found:
            state, facts = restore.restore_state(experiment, mesh, workdir, found, unreadable)
        else:
            state, facts = restore.begin(experiment, mesh, beginning), NO_FACTS
        step = int(state.step)
        tree_digests(state_parts(state))  # compiled here, not in the first save
        with config_errors():  # a bucket needs packages that may be missing
            writer = reports.Writer(workdir, step, active=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(writer))
        run_loop(
            experiment,
            mesh,
            train_step,
            state,
            open_batches(config, mesh, source, facts["images_read"]),
            facts["images_read"],
            Window(config.train.max_skipped_steps, **facts["window"]),
            open_saver(stack, config, workdir, step),
            writer,
            watch,
        )
    reports.say(f"trained to step {config.train.num_steps}; samples and curves in {workdir}")


def open_saver(stack: contextlib.ExitStack, config, workdir: str, step: int) -> Saver:
    """What saves the checkpoints of a run that is at `step`; complete when the stack unwinds."""
    keep = config.checkpoint
    checkpoints = Checkpoints(
        folder(workdir), keep.keep, keep.keep_every_steps, keep.keep_best
    )
    snapshots = None
    if config.ema.snapshot_every_steps:
        snapshots = stack.enter_context(Checkpoints(folder(workdir, "snapshots")))
    return Saver(config, stack.enter_context(checkpoints), snapshots, step)
