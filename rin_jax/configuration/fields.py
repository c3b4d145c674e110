"""All fields of a configuration: their types and what the dataclasses say of them."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from rin_jax.experiment import SECTIONS, Experiment, fields_of

PLAIN = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Field:
    """What is known of a field."""

    kind: Any  # its annotation
    meaning: str  # the comment beside or above it


def all_fields() -> dict[str, Field]:
    """Each field by its name in a configuration, "seed" or "model.depth", in their order."""
    found = {"seed": Field(int, comments(Experiment)["seed"])}
    for section, parts in SECTIONS.items():
        for kind, prefix in parts:
            meanings, declared = comments(kind), inspect.signature(kind).parameters
            for name in fields_of(kind):
                field = Field(declared[name].annotation, meanings[name])
                found[f"{section}.{prefix}{name}"] = field
    return found


def comments(kind: type) -> dict[str, str]:
    """What is written beside each field of a dataclass and in the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            told = [lines[node.end_lineno - 1][node.end_col_offset :]]
            above = node.lineno - 2
            while lines[above].lstrip().startswith("#"):
                told.insert(0, lines[above])
                above -= 1
            found[node.target.id] = " ".join(text.strip(" #") for text in told).strip()
    return found


def typed(sections: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A configuration from a JSON file as a configuration file would give it.

    Lists are tuples, and a field without a value has the type that it may be set to. Fields that
    are not known, or not there, stay so.
    """
    config = ml_collections.ConfigDict(dict(sections))
    for path, field in all_fields().items():
        section, _, name = path.rpartition(".")
        values = config.get(section) if section else config
        if isinstance(values, ml_collections.ConfigDict) and name in values:
            value = values[name]
            if value is None:
                del values[name]  # its type is that of None
                values[name] = config_dict.placeholder(_held(field.kind))
            elif isinstance(value, list):
                del values[name]
                values[name] = tuple(value)
    return config


def _held(kind: Any) -> type:
    """The type of a field in a configuration whose annotation is `kind`, or None."""
    choices = [x for x in typing.get_args(kind) if x is not types.NoneType]
    kind = choices[0] if isinstance(kind, types.UnionType) else kind
    if kind in PLAIN:
        return kind
    return tuple if typing.get_origin(kind) is tuple else ml_collections.ConfigDict
