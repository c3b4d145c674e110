"""Writes docs/configuration.md from what the code says of each field.

    python -m docs.configuration
"""

from pathlib import Path

from configs import cifar10, digits, imagenet64
from rin_jax.configuration import field_list

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """\
# The fields of a configuration

A configuration is one of the files in `configs/`, or what a run or an export has stored.
`--config.SECTION.FIELD=VALUE` overrides a field on the command line. There are no defaults but the
values in the files: each file sets every field, and a field that is missing, or unknown, is an
error. The tables show the values of some files; `python -m rin_jax.main --help-config
--config=FILE` prints the same list with those of another file, or of a run with
`--config=WORKDIR`. "Not set" is None.

This page is written by `python -m docs.configuration` from the comments in the code.

"""
DICTS = """\
## Fields that are a dict

`sampler.schedule`, `diffusion.schedule` and `optimizer.decay` are a name with its parameters. On
the command line the name alone, `--config.sampler.schedule=logsnr`, has the parameters in this
table. A dict has others, `--config.sampler.schedule="{'name': 'logsnr', 'start': 9, 'end': -9}"`.
Fields that are another dict, `data.clip` for instance, are set by a dict alone.

| field | name | parameters of the name alone |
|---|---|---|
"""


def text() -> str:
    """The page."""
    shown = {x.__name__.rpartition(".")[2]: x.get_config() for x in (digits, cifar10, imagenet64)}
    names = [
        f"| `{field}` | `{name}` | {f'`{values}`' if values else 'none'} |"
        for field, name, values in field_list.named()
    ]
    return INTRODUCTION + field_list.page(shown) + "\n" + DICTS + "\n".join(names) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
