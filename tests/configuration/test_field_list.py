"""The list of all fields of a configuration."""

import re

from docs import configuration
from rin_jax.configuration import field_list, fields
from tests import test_configs


def test_the_page_is_what_the_code_says():
    assert configuration.PAGE.read_text() == configuration.text(), "python -m docs.configuration"


def test_the_page_has_every_field_and_its_value():
    text = configuration.PAGE.read_text()
    for name in fields.all_fields():
        assert re.search(rf"^\| `{re.escape(name)}` \| \S", text, re.MULTILINE), name
    row = next(x for x in text.splitlines() if x.startswith("| `train.batch_size`"))
    assert row.endswith("| `64` | `256` | `1024` |")
    assert "| `data.clip.frames` |" in text


def test_the_list_in_a_terminal():
    config = test_configs.load("kinetics600").get_config()
    lines = field_list.in_terminal(config).splitlines()
    assert "data.clip.frames = 16" in lines
    assert "sampler.guide = not set" in lines
    assert "seed" in field_list.in_terminal(None).splitlines()
    assert max(map(len, lines)) < 200
