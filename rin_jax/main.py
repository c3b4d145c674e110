"""The command line: python -m rin_jax.main --config=configs/digits.py --workdir=DIR.

Flags, start-up and dispatch; what a job does is in its own file.
"""

import contextlib
import gc
import re
import signal
import sys
import traceback

from rin_jax.runtime import huge_pages

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `preemption` listens: no traceback
    huge_pages.use()

from absl import app, flags
from ml_collections import config_flags

from rin_jax import ConfigError
from rin_jax.configuration import CONFIGS, command, mistakes, words
from rin_jax.interop import hub

# what all processes of a run do together
TOGETHER = ("train", "sample", "evaluate", "reference", "reconstruct")
MODES = (*TOGETHER, "prepare", "plan", "export", "import_pix2seq")
sys.path.append(str(CONFIGS.parent))

# fmt: off
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, or the name of one in configs/, optionally with a "
    "variant: configs/digits.py:tiny; or the folder of a run or of an export, for what is stored "
    "there; that of --export or of --workdir if not given. Any field can be overridden, "
    "--config.model.depth=2, and a field that is a dict by a name with its defaults, "
    "--config.sampler.schedule=logsnr.")
HELP_CONFIG = flags.DEFINE_bool(
    "help-config", False, "List all fields of a configuration, with the values of --config.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run (checkpoints, curves, samples); the same one resumes it.")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do with the run.")
NUM = flags.DEFINE_integer("num", None, "--mode=sample: how many images; a hundred if not given.")
CLASSES = flags.DEFINE_list(
    "classes", [], "--mode=sample: numbers or names of classes, taken in turn (3,7 or Town,River); "
    "or all, in turn; or balanced, all in a random order in each round; or random. At most ten, "
    "evenly spaced, if not given.")
CHECKPOINT = flags.DEFINE_integer(
    "checkpoint", None, "--mode=sample, evaluate, export: step of the checkpoint; the newest if "
    "not given.")
EXPORT = flags.DEFINE_string(
    "export", None, "--mode=sample, evaluate, export: take the weights from this export (a folder, "
    "or owner/name on the hub) instead of a run; --workdir is then any folder that gets the "
    "result, the current one if not given.")
SAMPLES = flags.DEFINE_string(
    "samples", None, "--mode=evaluate: measure all images of this folder, whatever made them.")
PICTURES = flags.DEFINE_bool(
    "pictures", False, "--mode=sample: also draw the way of the first images and what was read.")
ROLLOUT = flags.DEFINE_integer(
    "rollout", None, "--mode=sample: continue each clip to so many windows of the network, each of "
    "which is given the last frames of the one before; one window if not given.")
ROLLOUT_LATENTS = flags.DEFINE_enum(
    "rollout_latents", "reset", ("carry", "reset"), "--mode=sample: whether the first step of a "
    "window of --rollout starts from the last latents of the window before, or from zeros.")
EMA = flags.DEFINE_string(
    "ema", None, "--mode=sample, evaluate, export: the average whose weights are used, "
    "decay_0.9999 or power_0.05, or best (see evaluation.keep_best); the first that the run keeps "
    "if not given.")
LENGTH = flags.DEFINE_float(
    "length", None, "--mode=reconstruct: length of the power average to make from the run's "
    "snapshots, a share of the training so far in (0, 0.288].")
SOURCE = flags.DEFINE_string(
    "source", None, "--mode=prepare: a folder of your own images that becomes the data set "
    "data.name: a folder a class, or labels.csv (columns file, label), or dataset.json, or no "
    "classes. --mode=import_pix2seq: a TensorFlow checkpoint of the authors' released code, or its "
    "folder.")
DOWNLOADED = flags.DEFINE_string(
    "downloaded", None, "--mode=prepare: a folder with files, under their original names, that "
    "TFDS would fetch or that have to be fetched by hand.")
FORMAT = flags.DEFINE_enum(
    "format", None, ("png", "jpeg"), "--mode=prepare: store images as PNG, without loss, which is "
    "the default, or as JPEG of quality 95.")
FIT = flags.DEFINE_enum(
    "fit", None, ("crop", "pad"), "--mode=prepare: what becomes of an image that is not square: "
    "its largest central square, which is the default, or all of it on a white square.")
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds to wait at the start until all processes of the run are there.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "--mode=plan: the TPU slice to compile for, v5e:16x16; needs no TPU.")
NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "--mode=plan: slices of that topology.")
TO = flags.DEFINE_string("to", None, "--mode=export: the folder that is written.")
GRID = flags.DEFINE_bool("grid", True, "--mode=export: draw a grid of samples, samples.png.")
ONNX = flags.DEFINE_bool("onnx", False, "--mode=export: write the denoiser as ONNX too.")
PAGE = flags.DEFINE_bool(
    "page", False, "--mode=export: write a page too, index.html, that samples in a browser.")
PUSH = flags.DEFINE_string(
    "push", None,
    "--mode=export: then upload the folder to this repository of the hub, owner/name.")
# what each job reads beside --config, in the order of its arguments
READS = {
    "train": (WORKDIR,),
    "sample": (WORKDIR, NUM, CLASSES, EMA, CHECKPOINT, EXPORT, PICTURES, ROLLOUT, ROLLOUT_LATENTS),
    "evaluate": (WORKDIR, EMA, CHECKPOINT, EXPORT, SAMPLES),
    "reference": (WORKDIR,),
    "reconstruct": (WORKDIR, LENGTH),
    "prepare": (WORKDIR, SOURCE, DOWNLOADED, FORMAT, FIT),
    "plan": (TOPOLOGY, NUM_SLICES),
    "export": (WORKDIR, TO, EMA, GRID, ONNX, PUSH, CHECKPOINT, EXPORT, PAGE),
    "import_pix2seq": (WORKDIR, SOURCE),
}
# fmt: on


def parse(argv: list[str]) -> list[str]:
    """Reads flags and configuration; a mistake ends with one sentence and exit code 2.

    --help ends with exit code 0.
    """
    try:
        left = flags.FLAGS(command.with_config(list(map(packaged, command.joined(argv))), hub.find))
        if HELP_CONFIG.value:
            from rin_jax.configuration import field_list

            with contextlib.suppress(BrokenPipeError):  # of a reader who has seen enough
                print(field_list.in_terminal(CONFIG.value), flush=True)
            sys.exit(0)
        CONFIG.value.lock()  # the error of a file that could not be read comes with the first use
        if len(left) > 1:
            raise ConfigError(f"{left[1]!r} is not a flag; every flag is --NAME or --NAME=VALUE.")
        if EXPORT.value is not None and WORKDIR.value is None:
            flags.FLAGS.workdir = "."
    except SystemExit as end:
        if end.code:  # of --help, for which absl has 1
            print(words.table())
        sys.exit(0)
    except Exception as error:  # also what the configuration file itself raises
        sys.stderr.write(f"error: {mistakes.describe(error, argv)}\n")
        sys.exit(2)
    return left


def packaged(argument: str) -> str:
    """--config=imagenet256:tiny, the name of an experiment, as its file; others as they are."""
    found = re.fullmatch(r"--?config=([\w-]+)(:.*)?", argument)
    if found and (file := CONFIGS / f"{found[1]}.py").exists():
        return f"--config={file}{found[2] or ''}"
    return argument


def main(argv: list[str]) -> None:
    """Dispatches to the job; a mistake of the user ends with one message and exit code 2."""
    from rin_jax.runtime import (
        cluster,
        compile_cache,
        console,
        exits,
        preemption,
        processes,
        retries,
    )
    from rin_jax.training.metrics import NotFiniteError

    if not flags.FLAGS["verbosity"].present:
        console.silence_libraries()
    console.silence_failed_loads()
    codes = {ConfigError: 2, NotFiniteError: 3, cluster.ProcessError: 1, retries.ReadError: 1}
    try:
        check_flags(MODE.value)
        check_addresses(MODE.value, CONFIG.value.to_dict())
        compile_cache.use(CONFIG.value.get("runtime", {}).get("compile_cache"))
        with preemption.watching() as watch, contextlib.ExitStack() as stack:
            if MODE.value in TOGETHER:
                same = {flag.name: flag.value for flag in (MODE, *READS[MODE.value])}
                facts = cluster.started_with(CONFIG.value, **same)
                together = processes.together(facts, JOIN_TIMEOUT.value, codes, watch.told)
                stack.enter_context(together)
            run(MODE.value, watch)
    except tuple(codes) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(exits.exit_code(error, codes))


def check_flags(mode: str) -> None:
    """Raises ConfigError at a flag that the mode needs and lacks, or has and does not read."""
    for flag, *needing in ((WORKDIR, *TOGETHER, "export", "import_pix2seq"),
                           (TO, "export"), (SOURCE, "import_pix2seq")):  # fmt: skip
        if flag.value is None and mode in needing:
            raise ConfigError(f"--mode={mode} needs --{flag.name}=DIR.")
    for flag in (flag for read in READS.values() for flag in read if flag is not WORKDIR):
        readers = [job for job, read in READS.items() if any(flag is other for other in read)]
        if flag.present and mode not in readers:
            raise ConfigError(
                f"--{flag.name} is for --mode={' and --mode='.join(readers)}; the mode is {mode}."
            )
    for flag in (EMA, CHECKPOINT):
        if EXPORT.present and flag.present:
            raise ConfigError(
                f"--{flag.name} is of a run, but --export={EXPORT.value} has one average of one "
                "step; leave one of the two out."
            )
    for flag in (EMA, CHECKPOINT, EXPORT):
        if SAMPLES.present and flag.present:
            raise ConfigError(
                f"--{flag.name} names weights, but --samples={SAMPLES.value} are images already; "
                "leave one of the two out."
            )
    if ROLLOUT_LATENTS.present and ROLLOUT.value is None:
        raise ConfigError("--rollout_latents is of the windows of --rollout=NUM; give both.")
    if mode == "reconstruct" and LENGTH.value is None:
        raise ConfigError("--mode=reconstruct needs --length, as 0.08: see docs/checkpoints.md.")


def check_addresses(mode: str, config: dict) -> None:
    """Raises ConfigError at a flag or field that names a bucket which cannot be used."""
    from rin_jax.runtime import files

    values = {f"--{flag.name}": flag.value for flag in READS[mode]}
    for section, fields in config.items():
        if isinstance(fields, dict):
            values |= {f"{section}.{field}": value for field, value in fields.items()}
    for name, value in values.items():
        if isinstance(value, str):
            files.check_address(name, value)


def describe_config() -> str:
    """The configuration's file and what the command line changes in it."""
    flag = flags.FLAGS["config"]
    changed = config_flags.get_override_values(flag)
    fields = ", ".join(f"{name}={value}" for name, value in changed.items())
    file = config_flags.get_config_filename(flag).removeprefix(f"{command.READER}:")
    return f"configuration: {file}{fields and f', {fields}'}"


def run(mode: str, watch) -> None:
    """Imports and runs one job; `watch` is for a job that saves before it is ended."""
    if mode == "train":
        from rin_jax.jobs.train import train as job
        from rin_jax.runtime import console

        console.say(describe_config())
    elif mode == "sample":
        from rin_jax.jobs.sample import sample as job
    elif mode == "evaluate":
        from rin_jax.jobs.evaluate import evaluate as job
    elif mode == "reference":
        from rin_jax.jobs.reference import reference as job
    elif mode == "reconstruct":
        from rin_jax.jobs.reconstruct import reconstruct as job
    elif mode == "prepare":
        from rin_jax.jobs.prepare import prepare as job
    elif mode == "plan":
        from rin_jax.jobs.plan import plan as job
    elif mode == "export":
        from rin_jax.jobs.export import export as job
    else:
        from rin_jax.jobs.import_pix2seq import import_pix2seq as job
    heard = (watch,) if mode == "train" else ()
    job(CONFIG.value, *(flag.value for flag in READS[mode]), *heard)


def start() -> None:
    """Runs the command. One that failed ends at once, whatever threads libraries have left."""
    from rin_jax.runtime import exits

    # Tracing makes many objects that stay. At Python's threshold of 700 the search for garbage goes
    # over them again and again, for one second in eight of a tiny run
    gc.set_threshold(10_000)
    try:
        app.run(main, flags_parser=parse)
    except SystemExit as end:
        if not end.code:
            raise
        exits.exit_now(end.code, "")
    except Exception:
        exits.exit_now(1, traceback.format_exc())


if __name__ == "__main__":
    start()
