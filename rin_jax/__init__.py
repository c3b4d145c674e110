"""Recurrent Interface Networks in JAX/Flax (arXiv 2212.11972)."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping


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
    if value not in choices:
        raise ConfigError(f"{field} is {value!r}; choose one of {', '.join(choices)}.")


def of_mapping(field: str, kind: type, given: object) -> object:
    """The dataclass `kind` of a field that may be given as a mapping; other values as they are.

    Raises:
      ConfigError: a mapping that has other fields.
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
    return kind(**given)


def load(source: str):
    """An exported model from a folder or hub id; see `rin_jax.interop.loading.load`."""
    from rin_jax.interop import loading  # here, so that `import rin_jax` alone imports nothing

    return loading.load(source)
