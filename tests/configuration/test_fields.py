"""Fields of configurations: what is said of them, and their types after a way through JSON."""

import json

import pytest
from ml_collections import config_dict

from rin_jax.configuration import fields
from rin_jax.experiment import make_experiment
from tests import test_configs


def paths(config: config_dict.ConfigDict) -> set[str]:
    """"section.field" of each field, "seed" for one without a section."""
    inner = {f"{name}.{field}" for name, section in config.items() if name != "seed"
             for field in section}  # fmt: skip
    return inner | {"seed"}


def test_every_field_has_a_type_and_a_meaning():
    known = fields.all_fields()
    assert set(known) == paths(test_configs.load("digits").get_config())
    for name, field in known.items():
        assert field.meaning, name
    assert known["sampler.guidance_scale"].meaning.startswith("w >= 0 of (1 + w) first")
    assert known["data.data_dir"].meaning.startswith("the folder of prepared data sets, perhaps in")


@pytest.mark.parametrize("name", ["digits", "kinetics600", "moving_digits"])
def test_what_is_stored_is_the_same_configuration(name):
    """The same values and, for the flags that override fields, the same types."""
    config = test_configs.load(name).get_config()
    resolved = make_experiment(config).config
    again = fields.typed(json.loads(json.dumps(resolved.to_dict())))
    assert make_experiment(again).config == resolved
    for path in paths(config) - {"seed"}:
        section, field = path.split(".")
        wanted, found = config[section].get_type(field), again[section].get_type(field)
        assert found is wanted, path


def test_a_field_that_is_not_set_keeps_its_type():
    stored = json.loads(json.dumps(test_configs.load("digits").get_config().to_dict()))
    config = fields.typed(stored)
    with pytest.raises(TypeError):
        config.optimizer.clip_norm = "much"
    config.optimizer.clip_norm = 1.0
    config.evaluation.networks = ("classifier",)
