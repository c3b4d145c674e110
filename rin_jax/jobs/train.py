"""The job that trains: builds everything from a configuration, then runs the loop.

A step's randomness follows from the seed and the step alone, its data from the images read before,
so a run that stops and goes on under the same command is the run that never stopped.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rin_jax import ConfigError
from rin_jax.checkpointing.checkpoints import Checkpoints, folder
from rin_jax.checkpointing.checksums import tree_checksums
from rin_jax.configuration import stored
from rin_jax.data import pipeline
from rin_jax.data.source import Source, open_source
from rin_jax.experiment import Experiment, check_devices, device_mesh, make_experiment
from rin_jax.network import cost, partitioning
from rin_jax.runtime import chips, console, processes, retries, sharding, workdir_lock
from rin_jax.runtime.chips import GIB
from rin_jax.runtime.preemption import Watch
from rin_jax.runtime.profiler import Profiler
from rin_jax.sampling.weights import abstract_params
from rin_jax.training import curves, resume, wandb_run
from rin_jax.training.held_out import HeldOut
from rin_jax.training.loop import Saver, run_loop
from rin_jax.training.state import items_of
from rin_jax.training.step import abstract_batch, compile_train_step
from rin_jax.training.trend import PREFIX as TREND
from rin_jax.training.trend import Trend

SHARING_SECONDS = 60.0  # network file systems show a new file late


def describe(experiment: Experiment, mesh: Mesh) -> str:
    """The data, the parameters and the costs of a run, for a person."""
    rin, params = experiment.rin, abstract_params(experiment.rin, mesh)
    forward = cost.forward_flops(rin)
    step = cost.training_flops(rin, bool(experiment.objective.self_cond_rate))
    kind = mesh.devices.flat[0].device_kind
    chip = chips.by_kind(kind)
    peak = f"{chip.peak_flops / 1e12:g} TFLOP/s bfloat16 a chip" if chip else "not known"
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    data = experiment.data
    return (
        f"data: {data.name} ({data.split}) of {' x '.join(map(str, data.example_shape))}, "
        f"{data.num_classes} classes\n"
        f"{describe_parameters(params)}\n"
        f"tokens: {rin.num_tokens} interface, {rin.num_latents} latents\n"
        f"FLOPs per image: {forward / 1e9:,.3f} G forward, {step / 1e9:,.3f} G training step\n"
        f"mesh: {shape} of {kind}; peak that mfu assumes: {peak}"
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """Of the table of parameters."""

    module: str
    parameters: str
    share: str


def describe_parameters(params: dict) -> str:
    """A table of the parameters of each module, and their sum."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        module = partitioning.module_of(partitioning.names(path))
        sizes[module] = sizes.get(module, 0) + leaf.size
    total = sum(sizes.values())
    rows = [
        Row(name, f"{size:,}", f"{size / total:.1%}")
        for name, size in {"all": total, **sizes}.items()
    ]
    return parameter_overview.make_table(rows)


def describe_memory(compiled) -> str:
    """Bytes per device of a compiled step, as far as the backend tells."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "memory per device: the backend does not tell"
    return (
        f"memory per device: {memory.argument_size_in_bytes / GIB:.3f} GiB state and batch, "
        f"{memory.temp_size_in_bytes / GIB:.3f} GiB temporary"
    )


def open_data(experiment: Experiment) -> Source:
    """The data set of a run; ConfigError if it does not fit. All processes end if theirs differ."""
    source = open_source(experiment.data)
    known, wanted = source.info.num_classes, experiment.data.num_classes
    experiment.data.check_labels(known)
    if known < wanted:
        console.say(
            f"data.num_classes is {wanted}, but {experiment.data.name!r} has {known} classes: the "
            "network never sees the others; if that is not meant, start another run with "
            f"--config.data.num_classes={known}."
        )
    facts = {"records": len(source), "fingerprint": source.fingerprint[:12]}
    processes.agree(f"reading {experiment.data.name}", **facts)
    return source


def open_batches(
    experiment: Experiment, mesh: Mesh, source: Source, images_read: int
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches that follow after `images_read` images.

    ConfigError: the batch does not fit the data set or the processes; while reading, if a label is
    none of the classes. ReadError: while reading, if a record cannot be read.
    """
    part, parts = sharding.batch_part(sharding.batch_sharding(mesh), jax.process_index())
    batches = pipeline.train_batches(
        source, experiment.train.batch_size, seed=experiment.seed, start=images_read,
        process_index=part, process_count=parts,
    )  # fmt: skip
    wanted = abstract_batch(experiment)  # an unconditional model reads no labels
    return ({name: batch[name] for name in wanted} for batch in batches)


@contextlib.contextmanager
def open_workdir(experiment: Experiment, workdir: str) -> Iterator[None]:
    """Makes the folder, which all processes must see, locks it and leaves the configuration.

    ConfigError: nothing can be written there, or another run writes there.
    """
    path = epath.Path(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(workdir_lock.hold(workdir))
                stored.store(experiment, workdir)
            except OSError as error:
                if retries.may_pass(error):
                    raise
                text = f"cannot write to --workdir {workdir}: {error}."
                raise ConfigError(f"{text} Name a folder that can be written.") from error
        processes.agree("writing to --workdir")
        deadline = time.monotonic() + SHARING_SECONDS
        while not (path / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(1.0)
        processes.agree("sharing --workdir", sees_config_json=(path / "config.json").exists())
        yield


def train(config: ml_collections.ConfigDict, workdir: str, watch: Watch | None = None) -> None:
    """Trains to `train.num_steps`, from the newest checkpoint in `workdir` if there is one.

    `watch` hears when the run is to end before that.
    """
    watch = watch or Watch()
    experiment = make_experiment(config)
    mesh, num_steps = device_mesh(experiment), experiment.train.num_steps
    check_devices(experiment, mesh)
    stored.say_differences(experiment, workdir)
    found, unreadable = resume.find_run(experiment, workdir)
    newest = found[0].step if found else 0
    path, measures = epath.Path(workdir), bool(experiment.evaluation.every_steps)
    done = newest >= num_steps and curves.is_drawn(path, "progress", newest)
    # without a figure nothing is there that could be measured, or measure
    cadences = {TREND: measures, curves.HELD_OUT: experiment.evaluation.held_out_every_steps}
    done = done and all(
        curves.last_step(path, name) in (None, newest) for name, due in cadences.items() if due
    )
    processes.agree("resuming", checkpoints=[saved.step for saved in found], done=done)
    if done:
        remedy = "for more steps set --config.train.num_steps."
        console.say(f"{workdir} is trained to step {newest}; {remedy}")
        return
    wandb_run.check(experiment.train.wandb)
    source = open_data(experiment)
    beginning = None if found else resume.find_beginning(experiment)
    open_batches(experiment, mesh, source, 0)  # its mistakes, before anything is written
    with open_workdir(experiment, workdir), contextlib.ExitStack() as stack:
        unsaved = resume.mark_of_unsaved(workdir)
        if jax.process_index() == 0:
            unsaved.unlink(missing_ok=True) if found else unsaved.write_text("")
        console.say(describe(experiment, mesh))
        with console.doing("compiling the training step"):
            train_step = compile_train_step(experiment, mesh)
        console.say(describe_memory(train_step))
        processes.agree("compiled")  # the first collective would not wait long for the slowest
        if found:
            state, saved = resume.restore_state(experiment, mesh, workdir, found, unreadable)
        else:
            state, saved = resume.begin(experiment, mesh, beginning), {"images_read": 0}
        images_read = saved["images_read"]
        step = int(state.step)
        tree_checksums(items_of(state))  # compiled here, not in the first save
        if jax.process_index() == 0:  # before the event files that it reads
            fields = experiment.config.to_dict()
            stack.enter_context(wandb_run.following(experiment.train.wandb, workdir, fields))
        writer = curves.Writer(workdir, step, active=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(writer))
        writer.describe(step, experiment.config.to_dict())
        batches = open_batches(experiment, mesh, source, images_read)
        checkpoints = stack.enter_context(Checkpoints(folder(workdir), experiment.checkpoint))
        snapshots = None
        if experiment.ema.snapshot_every_steps:
            snapshots = stack.enter_context(Checkpoints(folder(workdir, "snapshots")))
        saver, trend = Saver(experiment, checkpoints, snapshots, step, unsaved), None
        if measures:
            trend = stack.enter_context(Trend(experiment, source, workdir, mesh))
        held_out = None
        if experiment.evaluation.held_out_every_steps:
            held_out = HeldOut(experiment, source, workdir, mesh)
        profiler = stack.enter_context(contextlib.closing(Profiler(experiment.runtime, workdir)))
        run_loop(
            experiment, mesh, train_step, state, batches, source, images_read, saver, writer, trend,
            held_out, profiler, watch,
        )  # fmt: skip
    console.say(f"trained to step {num_steps}; samples and curves in {workdir}")
