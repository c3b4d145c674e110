"""The README and the documents: their commands run at :tiny, and what they point to is there.

The commands of a document run in its order, in one process, one device and one folder, in which
`make demo` has left its run. A command is run, or it is checked and has a reason in NOT_RUN. What
stands in two documents to the letter is run for the first of them.
"""

import argparse
import functools
import importlib
import itertools
import json
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from absl import flags

from docs import rin_picture
from rin_jax import main
from rin_jax.data import moving_digits
from rin_jax.evaluation import classifier
from rin_jax.experiment import make_experiment
from rin_jax.runtime import chips, preemption, sharding
from tests.data import video_files

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "launch" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "models" / "README.md",
]
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS]
)

VARIABLES = {"PROJECT": "project", "ZONE": "zone-a", "BUCKET": "BUCKET", "IMAGE": "image"}
# Words of commands that are not run, and why.
NOT_RUN = {
    "--downloaded=DIR": "reads ImageNet's archives",
    "--downloaded=/usr/share/datasets/fashion-mnist": "tests/jobs/test_prepare.py runs it where "
    "Debian's package is installed",
    "--config.data.name=cifar10": "downloads CIFAR-10",
    "--config.data.name=cifar10_jpeg": "reads its images; docs/own-data.md has such commands",
    "--workdir=runs/cifar10_jpeg": "reads its images; docs/own-data.md has such commands",
    "--config=configs/fashion_mnist.py": "takes long; the commands of the digits are the same",
    "--workdir=runs/digits_lamb": "the commands of the demo are the same",
    "--workdir=runs/guide": "trains as the digits do, with another average",
    "--source=KINETICS": "reads the videos of Kinetics; tests/data/test_folder_classes.py",
    "--source=MODEL_DIR": "reads a checkpoint of the authors; tests/interop/test_pix2seq.py",
    "--mode=plan": "the TPU compiler takes long; tests/jobs/test_plan.py runs it at :tiny",
    "--config.evaluation.inception_weights=FILE": "reads Inception's weights",
    "--page": "asks npm for a package; tests/interop/test_page.py",
    "benchmarks.ablations": "takes hours; tests/benchmarks/test_ablations.py",
    "benchmarks.step": "tests/benchmarks/test_step.py",
    "benchmarks.sampling": "tests/benchmarks/test_sampling.py",
    "benchmarks.sampling_quality": "takes hours; tests/benchmarks/test_sampling.py",
    "benchmarks.sampling_memory": "takes minutes; tests/jobs/test_sample.py and test_pod.py",
    "benchmarks.features": "tests/benchmarks/test_features.py",
    "benchmarks.compile": "tests/benchmarks/test_compile.py",
    "benchmarks.data": "takes minutes",
    "benchmarks.clips": "takes minutes",
    "benchmarks.weak_scaling": "the TPU compiler takes hours",
    "pip": "installs packages",
    "tensorboard": "serves until it is ended; tests/training/test_curves.py reads what it shows",
    "make": "starts commands that are here, and this suite",
    "gcloud": "needs an account",
    "docker": "needs a registry",
    "export": "sets variables of the shell",
}
# Of workdirs of another name
CONFIG_OF = {"digits": "digits_modern", "digits_lamb": "digits", "cifar10_jpeg": "own_data"}
FOLDERS = ("rin_jax", "tests", "configs", "docs", "launch", "notebooks", "benchmarks", "models")
SOURCES = (".py", ".sh", ".md", ".ipynb", ".yaml")
STEPS = 11  # of a training; one more than the :tiny forms' cadences
# At the end of each job's arguments: what would make a tiny run long, and where its data are.
SHORT = (
    f"--config.train.num_steps={STEPS}", "--config.sampler.num_steps=4",
    "--config.data.data_dir=tfds",
)  # fmt: skip

DONE: set[str] = set()  # commands that were run


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, code) of each block of code that names its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a block of bash."""
    code = string.Template(code.replace("\\\n", " ")).safe_substitute(VARIABLES)
    text = ""
    for line in code.splitlines():
        text = f"{text}\n{line}" if text else line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        text = ""
        for is_operator, command in itertools.groupby(words, lambda word: word in ("&&", "||")):
            if not is_operator:
                yield list(command)


def all_commands(document: Path) -> list[list[str]]:
    return [words for kind, code in blocks(document) if kind == "bash" for words in commands(code)]


def why_not_run(words: list[str]) -> str | None:
    return next((NOT_RUN[word] for word in words if word in NOT_RUN), None)


def arguments_of(words: list[str]) -> list[str] | None:
    """What a command gives to rin_jax.main; None if it does not start it."""
    if words[:3] == ["python", "-m", "rin_jax.main"]:
        return words[3:]
    return words[words.index("--") + 1 :] if "--" in words else None


def parse(arguments: list[str], monkeypatch) -> None:
    """Sets the flags of rin_jax.main as a command line would."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # overrides of the configuration before
    flags.FLAGS.unparse_flags()
    argv = ["main", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # in which config_flags looks for overrides
    assert main.parse(argv) == ["main"]


@pytest.fixture(scope="module", autouse=True)
def flags_as_before():
    yield
    flags.FLAGS.unparse_flags()


@each_document
def test_commands_are_right(document, monkeypatch):
    """Those of rin_jax at full size, flag by flag and field by field; others by their parsers."""
    bash = "".join(code for kind, code in blocks(document) if kind == "bash")
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    for words in all_commands(document):
        print(shlex.join(words))  # pytest shows the last one
        arguments = arguments_of(words)
        if arguments is not None:
            own = re.search(r"--workdir=runs/(\w+)", " ".join(words))
            if own and "--config=" not in " ".join(words):  # it is what the run has stored
                name = CONFIG_OF.get(own[1], own[1])
                arguments = [f"--config={ROOT}/configs/{name}.py", *arguments]
            names = "--config.data.name=animals", "--config.data.name=cifar10_jpeg"
            if any(name in arguments for name in names):  # what a set that is prepared tells
                known = {"image_size": 32, "channels": 3, "num_classes": 3}
                told = [f"--config.data.{field}={value}" for field, value in known.items()]
                arguments = [*arguments, *told]
            parse(arguments, monkeypatch)
            main.check_flags(main.MODE.value)
            make_experiment(main.CONFIG.value)
            if main.MODE.value == "plan":
                chips.by_topology(main.TOPOLOGY.value)
        if words[0].startswith("launch/"):
            split = words.index("--") if "--" in words else len(words)
            dry = [*words[:split], "--dry-run", *words[split:]]
            subprocess.run(dry, cwd=ROOT, check=True, timeout=60)
        elif words[1:2] == ["-m"] and words[2].startswith("benchmarks."):
            parse_only(words[2:], monkeypatch)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[:2] == ["pip", "install"]:
            extras = re.search(r"\[(.*)\]", words[-1])
            for extra in extras[1].split(",") if extras else ():
                assert f'"{extra}": ' in (ROOT / "setup.py").read_text()
        else:
            assert arguments is not None or words[0] in NOT_RUN, "say how to check this command"


class ParsedError(Exception):
    """The arguments are right."""


def parse_only(words: list[str], monkeypatch) -> None:
    """Lets a module read its arguments, and does not go on."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, *arguments):
        original(parser, *arguments)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", words)
        with pytest.raises(ParsedError):
            importlib.import_module(words[0]).main()


def test_reasons_are_of_commands():
    words = {word for document in DOCUMENTS for words in all_commands(document) for word in words}
    assert set(NOT_RUN) <= words


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder in which `make demo` has run at :tiny, with images and clips of three classes."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "models").symlink_to(ROOT / "models")
    for name in ("cat", "dog", "fox"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "pictures" / name / f"{i}.png"), pixels)
        (folder / "CLIPS" / name).mkdir(parents=True)
        video_files.save_video(folder / "CLIPS" / name / "a.mp4", video_files.numbered())
    make_mesh = sharding.make_mesh
    one = functools.partial(lambda *sizes, devices=None, **axes: make_mesh(
        *sizes, devices=devices or jax.devices()[:1], **axes))  # fmt: skip
    makefile = (ROOT / "Makefile").read_text().replace("$(WORKDIR)", "runs/digits")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sharding, "make_mesh", one)
        patch.setattr(preemption.Watch, "listen", lambda self: None)  # signals are the tests'
        for name, value in {"EPOCHS": 1, "FEWEST_STEPS": 20, "WARMUP": 5}.items():
            patch.setattr(classifier, name, value)  # it need not be good
        patch.setattr(moving_digits, "CLIPS", {"train": 100, "test": 50})  # rendered at first use
        for words in commands(recipe.replace("$(BIN)/", "")):
            run(words, patch)
        yield folder


def run(words: list[str], monkeypatch) -> None:
    """Runs a command of rin_jax.main with the :tiny form of its configuration, in this folder.

    It is run once, however many documents have it, but for what prepares data: others have the
    same name.
    """
    if (command := shlex.join(words)) in DONE and "--mode=prepare" not in words:
        return
    print(command)
    sampled = next(Path("runs/digits/samples").glob(f"{STEPS:08d}-*-seed_0-*/"), None)
    arguments = [
        re.sub(r"^--config=(\w+/\w+\.py)(:tiny)?$", rf"--config={ROOT}/\1:tiny", word)
        .replace("gs://BUCKET", "bucket")
        .replace("--source=DIR", "--source=pictures")
        .replace("samples/NAME", f"samples/{sampled.name if sampled else 'NAME'}")
        for word in arguments_of(words)
    ]
    if any(word.startswith("--num=") for word in arguments):
        arguments.append("--num=20")
    if any(word.startswith("--config.evaluation.num_samples=") for word in arguments):
        arguments.append("--config.evaluation.num_samples=20")
    if any(word.startswith("--config.sampler.guide_checkpoint=") for word in arguments):
        arguments.append("--config.sampler.guide_checkpoint=10")  # the :tiny forms' cadence
    if "--mode=prepare" in arguments:
        for prepared in Path("tfds").glob("animals_*"):
            shutil.rmtree(prepared)
    trained = any(word.startswith("--export=models/") for word in arguments)  # at full size
    parse([*arguments, *SHORT[trained:]], monkeypatch)
    main.main(["main"])
    DONE.add(command)


@pytest.mark.slow
@each_document
def test_commands_run(document, demo, monkeypatch):
    for kind, code in blocks(document):
        if kind == "python":
            print(code)
            exec(code, {})
        for words in commands(code) if kind == "bash" else ():
            if words[0].startswith("launch/"):
                continue  # their dry run is checked above; tests/launch
            if why_not_run(words) is None:
                run(words, monkeypatch)


@pytest.mark.slow
def test_a_run_writes_what_the_table_says(demo):
    table = (ROOT / "docs" / "training.md").read_text().partition("## What a run writes")[2]
    names = re.findall(r"^\| `(.*?)` \|", table.partition("##")[0], re.MULTILINE)
    assert len(names) == 7
    for name in names:
        assert list((demo / "runs" / "digits").glob(name.replace("STEP", "*"))), name
    assert json.loads((demo / "runs" / "digits" / "config.json").read_text())


def test_the_picture_is_the_one_that_its_script_draws():
    assert (ROOT / "docs" / "rin.svg").read_text() == rin_picture.picture()


@each_document
def test_what_a_document_points_to_is_there(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in link:
            assert (document.parent / link).exists(), link
    for path in re.findall(r"`(\w[\w./]*)`", text):
        if "/" in path and (path.split("/")[0] in FOLDERS or Path(path).suffix in SOURCES):
            places = (ROOT, ROOT / "rin_jax", document.parent)
            assert any((place / path).exists() for place in places), path
