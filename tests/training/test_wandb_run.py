"""Weights & Biases, which gets the curves where a configuration says so; the package is faked."""

import importlib.machinery
import sys
import types

import pytest

from rin_jax import ConfigError
from rin_jax.training import wandb_run


@pytest.fixture
def wandb(monkeypatch):
    """A module that writes down its calls."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb/__init__.py")
    module.calls, module.Error = [], type("Error", (Exception,), {})
    run = types.SimpleNamespace(finish=lambda: module.calls.append("finish"))
    module.init = lambda **given: module.calls.append(given) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_of_a_workdir_goes_on_in_its_own(wandb, tmp_path):
    wandb_run.check("rin")
    ids = set()
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        with wandb_run.following("rin", str(workdir), {"seed": 3}):
            given = wandb.calls[-1]
        ids.add((given["name"], given["id"]))
        assert given["project"] == "rin"
        assert given["config"] == {"seed": 3}
        assert given["sync_tensorboard"]
        assert given["resume"] == "allow"
        assert wandb.calls[-1] == "finish"
    assert len(ids) == 2


def test_it_ends_with_a_run_that_fails(wandb):
    with pytest.raises(KeyError), wandb_run.following("rin", "gs://bucket/a", {}):
        raise KeyError("a")
    assert wandb.calls[-1] == "finish"


def test_nothing_is_started_unless_it_is_asked_for(wandb):
    wandb_run.check(None)
    with wandb_run.following(None, "a", {}):
        assert not wandb.calls


def test_what_is_missing_is_said(wandb, monkeypatch):
    def refuses(**given):
        raise wandb.Error("api_key not configured")

    wandb.init = refuses
    words = "train.wandb is 'rin', but .*: api_key not configured; run wandb login"
    with pytest.raises(ConfigError, match=words), wandb_run.following("rin", "a", {}):
        pass
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"train.wandb is 'rin', .* install -e '\.\[wandb\]'"):
        wandb_run.check("rin")
