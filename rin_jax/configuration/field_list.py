"""The list of all fields of a configuration, for a terminal and for docs/configuration.md."""

import dataclasses
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from rin_jax import described
from rin_jax.configuration import fields
from rin_jax.experiment import DEFAULTS

WIDTH = 96
NOT_SET = "not set"


@dataclasses.dataclass(frozen=True)
class Row:
    """A field as a reader sees it."""

    name: str  # "model.depth"; of a field of a dict "data.clip.frames"
    kind: str  # "a whole number or None"
    meaning: str


def rows() -> list[Row]:
    """All fields, those of a field that is a dict after it."""
    found = []
    for name, field in fields.all_fields().items():
        found.append(Row(name, _kind(name, field.kind), field.meaning))
        for kind in filter(dataclasses.is_dataclass, (field.kind, *typing.get_args(field.kind))):
            meanings, declared = fields.comments(kind), dataclasses.fields(kind)
            found += [
                Row(f"{name}.{x.name}", described(x.type), meanings[x.name]) for x in declared
            ]
    return found


def _kind(name: str, kind: Any) -> str:
    return "a name with parameters" if tuple(name.split(".")) in DEFAULTS else described(kind)


def in_terminal(config: ml_collections.ConfigDict | None) -> str:
    """Each field with its type and meaning and, if a configuration is given, its value there."""
    lines = []
    for row in rows():
        value = "" if config is None else f" = {shown(config, row.name)}"
        lines.append(f"{row.name}{value}")
        told = f"{row.meaning} ({row.kind})"
        lines.append(textwrap.indent(textwrap.fill(told, WIDTH - 4), "    "))
    lines.append("A name with parameters, and what they are where the name alone is given:")
    lines += [f"    --config.{field}={name}  {values or ''}" for field, name, values in named()]
    return "\n".join(lines)


def named() -> list[tuple[str, str, dict[str, Any]]]:
    """(field, name, the parameters of the name alone) of all fields that are a name with such."""
    return [
        (".".join(path), name, dict(values))
        for path, defaults in DEFAULTS.items() for name, values in defaults.items()
    ]  # fmt: skip


def shown(config: Mapping[str, Any], name: str) -> str:
    """The value of a field in a configuration as text; empty where its dict is not set."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else value[part]
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        value = {key: value[key] for key in sorted(value, key=lambda key: (key != "name", key))}
    return NOT_SET if value is None else repr(value)


def page(configs: Mapping[str, ml_collections.ConfigDict]) -> str:
    """Markdown: a table for each section, with the values in some configurations."""
    names = [f"`{name}`" for name in configs]
    text = []
    for section in dict.fromkeys(row.name.partition(".")[0] for row in rows()):
        text += [f"## {section}", "", _line("field", "meaning", "type", *names)]
        text.append(_line(*["---"] * (3 + len(names))))
        for row in rows():
            if row.name.partition(".")[0] == section:
                values = [_code(shown(config, row.name)) for config in configs.values()]
                text.append(_line(f"`{row.name}`", row.meaning, row.kind, *values))
        text.append("")
    return "\n".join(text)


def _code(value: str) -> str:
    return value if value == NOT_SET else f"`{value}`"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
