"""Recurrent Interface Networks in JAX/Flax (arXiv 2212.11972)."""

import dataclasses
import difflib
import glob
import importlib.util
import inspect
import os
import reprlib
import runpy
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping

__version__ = "0.1.0"

# what a value of a configuration is called in a message
KINDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text",
    types.NoneType: "None",
}  # fmt: skip

# JAX would load the TPU's library where it is installed, which prints errors without a TPU. The
# files are those of TPUs and GPUs.
ACCELERATORS = "/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg"
if importlib.util.find_spec("libtpu") and not any(map(glob.glob, ACCELERATORS)):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# etils, which asks this once, would read buckets with TensorFlow where that is installed
os.environ.setdefault("EPATH_USE_TF", "0")


class ConfigError(ValueError):
    """A mistake in the configuration, the command or the files that they name, with the remedy.

    It is raised on purpose where the mistake is found. A job that ends with it has exit code 2:
    the same command would end in the same way.
    """


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown name: the most similar known one, if there is one."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "."


def at_least_one(section: str, options: object, *fields: str) -> None:
    """Raises ConfigError unless the fields of a section, where they are set, are 1 or more."""
    for field in fields:
        value = getattr(options, field)
        if value is not None and not value >= 1:
            raise ConfigError(f"{section}.{field} is {value}; it must be at least 1.")


def one_of(field: str, value: object, choices: Collection[str]) -> None:
    """Raises ConfigError unless the value of a field is one of its choices."""
    if value not in tuple(choices):  # a value that has no hash is none of a mapping's keys
        raise ConfigError(f"{field} is {value!r}; choose one of {', '.join(choices)}.")


def check_types(prefix: str, kind: Callable, given: Mapping[str, object]) -> None:
    """Raises ConfigError at a value that is not what `kind` declares.

    `kind` is a dataclass or an annotated function, `given` has values for some of its parameters,
    and `prefix` comes before their names in a message, "model.". Lists count as tuples, whole
    numbers of 32 bits as numbers, and mappings as dataclasses. Numbers are finite, and whole ones
    have 64 bits.
    """
    declared = inspect.signature(kind).parameters
    for field, value in given.items():
        wanted = declared[field].annotation
        if not _fits(value, wanted):
            shown = reprlib.repr(value)
            raise ConfigError(f"{prefix}{field} is {shown}; it must be {described(wanted)}.")


def _fits(value: object, wanted: typing.Any) -> bool:
    parts, number = typing.get_args(wanted), not isinstance(value, bool)
    if isinstance(wanted, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if wanted is float and isinstance(value, float):
        return abs(value) <= sys.float_info.max
    if wanted in (int, float):
        return number and isinstance(value, int) and abs(value) < 2 ** (63 if wanted is int else 31)
    if dataclasses.is_dataclass(wanted):
        return isinstance(value, Mapping | wanted)
    return isinstance(value, typing.get_origin(wanted) or wanted)


def described(wanted: typing.Any) -> str:
    parts = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return " or ".join(map(described, parts))
    if typing.get_origin(wanted) is tuple:
        entries = "any number of entries" if parts[-1] is ... else f"{len(parts)} entries"
        return f"a tuple of {entries}, each {described(parts[0])}"
    return KINDS.get(wanted, "a mapping")


def of_mapping(field: str, kind: type, given: object) -> object:
    """The dataclass `kind` of a field that may be given as a mapping; other values as they are.

    Raises:
      ConfigError: a mapping that has other fields, or values of other types.
    """
    if not isinstance(given, Mapping):
        return given
    wanted = [each.name for each in dataclasses.fields(kind)]
    faults = {"it is missing": set(wanted) - set(given), "it has unknown": set(given) - set(wanted)}
    told = [f"{what} {', '.join(sorted(names))}" for what, names in faults.items() if names]
    if told:
        found = ", ".join(sorted(given)) or "no fields"
        remedy = f"give it {', '.join(wanted)}: {' and '.join(told)}"
        raise ConfigError(f"{field} has {found}; {remedy}.")
    check_types(f"{field}.", kind, given)
    return kind(**given)


def command() -> None:
    """The console command rin-jax: the same as `python -m rin_jax.main`."""
    runpy.run_module("rin_jax.main", run_name="__main__", alter_sys=True)


def load(source: str):
    """An exported model from a folder or hub id; see `rin_jax.interop.loading.load`."""
    from rin_jax.interop import loading  # here, so that `import rin_jax` alone imports nothing

    return loading.load(source)
