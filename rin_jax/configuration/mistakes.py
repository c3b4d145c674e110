"""Errors of absl, ml_collections and configuration files as one sentence."""

import re
from pathlib import Path

from absl import flags

from rin_jax import ConfigError, nearest
from rin_jax.configuration import CONFIGS, command, words

# what Python says of a value that is no number
OF_PYTHON = {"invalid literal for int.*": "it must be a whole number.",
             "could not convert string to float.*": "it must be a number."}  # fmt: skip


def describe(error: Exception, argv: list[str]) -> str:
    """One sentence about an error of absl, ml_collections or a configuration file."""
    text, line = str(error), " ".join(str(error).split())
    for of_python, ours in OF_PYTHON.items():
        line = re.sub(of_python, ours, line)
    found = re.search(r"--?config[= ]([^\s:]+)", " ".join(argv))
    file = found[1] if found else ""
    if isinstance(error, OSError) and not Path(file).is_file():
        others = [str(path) for path in Path(file).parent.glob("*.py")]
        others += [path.stem for path in CONFIGS.glob("*.py")]
        return f"--config: there is no file {file}{nearest(file, others)}"
    if choice := re.fullmatch(r"flag (--\w+)=(.*): value should be one of <(.*)>", line):
        names = choice[3].split("|")
        listed = f"{choice[1]} is {choice[2]!r}, but must be one of {', '.join(names)}"
        return f"{listed}{nearest(choice[2], names)}"
    field = re.match(r"[\\'\"]*(\w+)[\\'\"]", text)
    if isinstance(error, KeyError | AttributeError) and field:
        given = (argument.partition("=")[0] for argument in argv)
        flag = next((name for name in given if field[1] in name.split(".")), "--config")
        near = re.search(r'mean "(\w+)"', text)
        end = f"; did you mean {near[1]}?" if near else "."
        return f"{flag}: the configuration has no field {field[1]!r}{end}"
    if inner := re.search(r"not a valid key .*\(in: ([\w.]+)\.(\w+)\)", line):
        text = f"--config.{inner[1]} given by a name has no field {inner[2]!r}; set it whole"
        return f"{text}: --config.{inner[1]}=\"{{'name': ..., '{inner[2]}': ...}}\""
    if inner := re.match(r'Override ((?:\w+\.)*\w+)\.\w+ can not be applied .* is None', line):
        return f"--config.{inner[1]} is not set; set it whole: --config.{inner[1]}=\"{{...}}\""
    if isinstance(error, flags.UnrecognizedFlagError):
        mode = command.value_of(argv, "mode") or "train"
        if ours := words.here(error.flagname, mode):
            return f"--{error.flagname} is not a flag; here it is {ours}."
    if "Traceback" in text:  # of the configuration file, in the middle of an error of a flag
        return text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, ConfigError | flags.Error):
        return line
    return f"{file} cannot be used: {type(error).__name__}: {line}"
