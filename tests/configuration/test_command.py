"""The configuration that a command line means."""

import json
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from rin_jax import ConfigError, main
from rin_jax.configuration import command, stored
from rin_jax.runtime import console
from tests import tiny


@pytest.fixture
def run(tmp_path):
    """A workdir that has a configuration."""
    folder = tmp_path / "run"
    folder.mkdir()
    stored.store(tiny.experiment(sampler__num_steps=7), str(folder))
    return folder


def export(folder, **changes):
    """A folder that has an export's configuration."""
    folder.mkdir()
    config = tiny.experiment(**changes).config.to_dict()
    (folder / "config.json").write_text(json.dumps({"format": 2, "config": config}))
    return folder


def find(source: str) -> Path:
    if Path(source).exists():
        return Path(source)
    raise AssertionError(f"the hub was asked for {source}")


def parsed(monkeypatch, *arguments: str) -> flags.FlagValues:
    """The flags of a command with these arguments."""
    values = flags.FlagValues()
    for name in ("workdir", "export", "mode"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    assert values(command.with_config(command.joined(sys.argv), find)) == ["main"]
    return values


def config_of(monkeypatch, *arguments: str) -> ConfigDict:
    """What a command with these arguments reads."""
    return parsed(monkeypatch, *arguments).config


def test_a_stored_configuration_is_named_by_its_file(run, monkeypatch):
    values = parsed(monkeypatch, f"--workdir={run}", "--config.seed=3")
    monkeypatch.setattr(main.flags, "FLAGS", values)
    assert main.describe_config() == f"configuration: {run}/config.json, seed=3"


@pytest.mark.parametrize(
    "arguments",
    [("--workdir={0}",), ("--workdir", "{0}"), ("--config={0}", "--workdir=b"),
     ("--config", "{0}/config.json"), ("-config={0}/",)],
)  # fmt: skip
def test_a_run_knows_its_configuration(run, monkeypatch, arguments):
    config = config_of(monkeypatch, *(x.format(run) for x in arguments), "--config.seed=3",
                       "--config.optimizer.clip_norm=0.5", "--config.sampler.schedule=linear",
                       "--config.ema.decays=0.5")  # fmt: skip
    changes = {"optimizer__clip_norm": 0.5, "sampler__schedule": {"name": "linear"}}
    wanted = tiny.experiment(sampler__num_steps=7, seed=3, ema__decays=(0.5,), **changes).config
    assert config.to_dict() == wanted.to_dict()


def test_an_export_comes_before_the_workdir_and_names_no_folder(run, tmp_path, monkeypatch):
    given = export(tmp_path / "to", sampler__num_steps=9, data__data_dir="/theirs")
    config = config_of(monkeypatch, f"--export={given}", f"--workdir={run}")
    assert (config.sampler.num_steps, config.data.data_dir) == (9, None)
    config = config_of(monkeypatch, f"--config={run}", f"--export={given}")
    assert config.sampler.num_steps == 7
    with pytest.raises(AssertionError, match="asked for owner/name"):
        config_of(monkeypatch, "--export=owner/name", f"--workdir={run}")


def test_an_export_with_a_guide_is_refused(tmp_path):
    sampler = {"sampler__guide": "/theirs", "sampler__guidance_scale": 1.0}
    given = export(tmp_path / "to", **sampler)
    with pytest.raises(ConfigError, match="holds one network"):
        stored.read(given / "config.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"data": 3}', "[" * 100_000, "\0"])
def test_a_file_that_is_no_configuration(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="config.json"):
        stored.read(tmp_path / "config.json")


def test_a_file_is_left_as_it_is(run, monkeypatch):
    given = ["main", "--config=configs/digits.py:tiny", f"--workdir={run}"]
    assert command.with_config(given, find) == given
    assert command.with_config(["main", "--help"], find) == ["main", "--help"]


def test_nothing_is_stored(tmp_path):
    for arguments in ([], [f"--workdir={tmp_path}"]):
        with pytest.raises(ConfigError, match="--config=FILE is missing"):
            command.with_config(["main", *arguments], find)
    with pytest.raises(ConfigError, match=r"there is no .*config\.json"):
        command.with_config(["main", f"--config={tmp_path}"], find)


@pytest.mark.parametrize("flag", ["--workdir", "--config"])
def test_addresses_that_cannot_be_used(flag):
    with pytest.raises(ConfigError, match=f"{flag} is https://a/b, but"):
        command.with_config(["main", f"{flag}=https://a/b"], find)


def test_what_differs_is_said(run, monkeypatch):
    said = []
    monkeypatch.setattr(console, "say", said.append)
    stored.say_differences(tiny.experiment(sampler__num_steps=7), str(run))
    assert not said
    stored.say_differences(tiny.experiment(seed=3, ema__decays=(0.5,)), str(run))
    assert sorted(said[0].splitlines()[1:]) == [
        "  ema.decays: [0.9] there, [0.5] now", "  sampler.num_steps: 7 there, 3 now",
        "  seed: 0 there, 3 now",
    ]  # fmt: skip
    stored.say_differences(tiny.experiment(seed=3), str(run / "elsewhere"))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("logsnr", {"name": "logsnr"}), ("{'a': 1}", {"a": 1}), ("None", None)],
)
def test_dicts(text, value):
    found = command.DictParser().parse(text)
    assert (found and found.to_dict()) == value


@pytest.mark.parametrize("text", ["3", "a b", "{'a'}", "[1]"])
def test_what_is_no_dict(text):
    with pytest.raises(ValueError, match="a name, as logsnr, or a dict"):
        command.DictParser().parse(text)
