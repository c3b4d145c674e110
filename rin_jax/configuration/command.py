"""What the command line understands beside ml_collections: stored configurations, dicts by name."""

import ast
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from rin_jax import ConfigError
from rin_jax.configuration import STORED
from rin_jax.runtime import files

READER = Path(__file__).with_name("from_run.py")


def with_config(argv: Sequence[str], find: Callable[[str], epath.Path]) -> list[str]:
    """Arguments whose --config is a configuration file; what --config may be is in the README.

    The arguments are `joined`. A folder and its config.json are given to `from_run.py`. Without
    --config the configuration is that of --export, whose folder `find` tells, or of --workdir.

    Raises ConfigError if --config is missing and nothing is stored there, or at addresses that
    cannot be used.
    """
    given, export, workdir = (value_of(argv, name) for name in ("config", "export", "workdir"))
    for name, value in (("config", given), ("workdir", workdir)):
        files.check_address(f"--{name}", value or "")
    if given is None:
        source = str(find(export)) if export else workdir
        if source is None or not (epath.Path(source) / STORED).exists():
            if any(argument.lstrip("-").startswith("help") for argument in argv[1:]):
                return list(argv)
            nothing = f"; {source} has no {STORED} of a run or an export" if source else ""
            names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
            if near := difflib.get_close_matches("config", names, n=1):
                nothing += f"; --{near[0]} is not a flag"
            raise ConfigError(
                f"--config=FILE is missing, for instance --config=configs/digits.py{nothing}."
            )
        return [argv[0], f"--config={READER}:{os.path.join(source, STORED)}", *argv[1:]]
    path = epath.Path(given)
    if path.suffix != ".json" and not path.is_dir():
        return list(argv)
    path = path / STORED if path.is_dir() else path
    if not path.exists():
        raise ConfigError(f"--config is {given}, but there is no {path}.")
    return [
        f"--config={READER}:{path}" if argument.lstrip("-") == f"config={given}" else argument
        for argument in argv
    ]


def joined(argv: Sequence[str]) -> list[str]:
    """The arguments with `--config FILE` as `--config=FILE`."""
    left, found = iter(argv), []
    for argument in left:
        found.append(f"--config={next(left, '')}" if argument.lstrip("-") == "config" else argument)
    return found


def value_of(argv: Sequence[str], name: str) -> str | None:
    """The value that the arguments give a flag, as `--NAME=VALUE` or `--NAME VALUE`."""
    found = None
    for argument, following in zip(argv[1:], [*argv, None][2:], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else following
    return found


class DictParser(flags.ArgumentParser):
    """A field that is a dict: a name alone, `logsnr`, or a literal, `"{'name': 'logsnr'}"`."""

    def parse(self, argument: str | ml_collections.ConfigDict) -> ml_collections.ConfigDict | None:
        """The dict; {"name": NAME} of a name, None of `None`. ValueError: neither is meant."""
        if isinstance(argument, ml_collections.ConfigDict):
            return argument
        if argument.isidentifier() and argument != "None":
            return ml_collections.ConfigDict({"name": argument})
        try:
            value = ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            value = argument
        if value is not None and not isinstance(value, dict):
            wanted = "it must be a name, as logsnr, or a dict, as \"{'name': 'logsnr'}\""
            raise ValueError(f"{wanted}; of a section give a field, as --config.model.depth=2")
        return value and ml_collections.ConfigDict(value)

    def flag_type(self) -> str:
        """What help texts call it."""
        return "name or dict"


config_flags.register_flag_parser_for_type(ml_collections.ConfigDict, DictParser())
