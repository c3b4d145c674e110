"""Export and load: the same model comes back, fine-tunes, and whatever is damaged is named."""

import dataclasses
import hashlib
import json
import re

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

import rin_jax
from rin_jax import ConfigError
from rin_jax.configuration.stored import SINCE_FORMAT_2
from rin_jax.diffusion import schedules
from rin_jax.experiment import make_experiment
from rin_jax.interop import card, onnx, page, rin_torch, stablehlo
from rin_jax.interop.loading import load
from rin_jax.jobs import export
from rin_jax.runtime import sharding
from rin_jax.sampling.generate import make_generate
from rin_jax.training.state import abstract_state
from tests import test_configs, tiny
from tests.interop import exports
from tests.network.small import distance

ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}
RECORD = {
    "step": 0, "figures": {"classifier/agreement": 0.987, "classifier/frechet": 1.5},
    "num_samples": 20, "ema": "decay_0.9", "seed": 3, "sampler": tiny.TINY["sampler"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, average) of a run that was trained on two devices under another num_steps."""
    workdir = tmp_path_factory.mktemp("run")
    mesh = {"data": 1, "fsdp": 2, "tensor": 1}
    config = tiny.config(train__num_steps=12, data__data_dir="/nowhere/here", mesh=mesh)
    experiment = make_experiment(config)
    state = tiny.state(experiment, sharding.make_mesh(**mesh, devices=jax.devices()[:2]))
    tiny.save(workdir, experiment, {0: state})
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "00000000.json").write_text(json.dumps(RECORD))
    other = RECORD | {"step": 5, "figures": {"classifier/agreement": 0.123}}
    (workdir / "evaluation" / "00000005.json").write_text(json.dumps(other))
    return str(workdir), jax.device_get(state.emas["decay_0.9"])


def job(workdir, to, ema=None, push=None, **changes):
    """The job as the command starts it, with a grid; `changes`: of the configuration."""
    return export.export(
        tiny.config(**changes), workdir, str(to), ema, with_grid=True, with_onnx=False, push=push
    )


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """An export of that run with another sampler than it was trained with."""
    return job(run[0], tmp_path_factory.mktemp("to") / "digits8", sampler__num_steps=2)


def test_a_loaded_export_is_the_run(run, exported):
    model = rin_jax.load(str(exported))
    assert distance(model.params, run[1]) == 0
    assert (model.step, model.ema) == (0, "decay_0.9")
    assert model.class_names == tuple(str(i) for i in range(10))
    assert model.config.train.num_steps == 12  # the run's own
    assert model.config.sampler.num_steps == 2  # the command's
    assert "/nowhere" not in (exported / "config.json").read_text()  # nothing of that machine
    assert dict(model.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_it_draws_what_the_run_draws(run, exported):
    model = rin_jax.load(str(exported))
    experiment = tiny.experiment(sampler__num_steps=2)
    generate = make_generate(experiment, sharding.make_mesh(8, 1, 1), 5)
    expected = generate(run[1], np.arange(3), {"label": np.int32([4, 1, 9])})
    np.testing.assert_array_equal(model.sample(3, [4, 1, 9], seed=5), expected)
    np.testing.assert_array_equal(model.sample(2, [4, 1], seed=5), expected[:2])
    assert np.abs(model.sample(3, [4, 1, 9], seed=6).astype(int) - expected).max() > 50
    in_turn = model.sample(2, seed=5)
    np.testing.assert_array_equal(in_turn, model.sample(2, [0, 1], seed=5))


def test_another_sampler(run, exported):
    model = rin_jax.load(str(exported))
    other = model.with_sampler(num_steps=3, name="heun", guidance_scale=1)
    generate = make_generate(other.experiment, sharding.make_mesh(8, 1, 1), 5)
    changes = {"num_steps": 3, "name": "heun", "guidance_scale": 1.0}
    wanted = tiny.experiment(**{f"sampler__{name}": value for name, value in changes.items()})
    assert other.config.sampler.to_dict() == wanted.config.sampler.to_dict()
    expected = generate(run[1], np.arange(3), {"label": np.int32([4, 1, 9])})
    np.testing.assert_array_equal(other.sample(3, [4, 1, 9], seed=5), expected)
    assert (model.sample(3, [4, 1, 9], seed=5) != expected).any()  # and that one is as it was
    with pytest.raises(ConfigError, match=r"num_step.*num_steps"):
        model.with_sampler(num_step=3)
    with pytest.raises(ConfigError, match=r"sampler.eta is 1.0, .* 'heun'"):
        other.with_sampler(eta=1.0)


def test_an_export_replaces_the_one_before_it(exported, tmp_path):
    for name in ("model.safetensors", "samples.png", "evaluation.json", *onnx.FILES, *page.FILES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of another step")
    model = rin_jax.load(str(exported))
    path = exports.write(tmp_path, model)
    assert {file.name for file in path.iterdir() if file.is_file()} == {
        "config.json", "model.safetensors", "README.md", "rin_torch.py", "denoiser.stablehlo",
        "sampler.stablehlo",
    }  # fmt: skip
    assert distance(rin_jax.load(str(path)).params, model.params) == 0


def test_an_export_of_an_export(exported, tmp_path):
    """The weights and figures are those of the first one, the sampler is the command's."""
    first = rin_jax.load(str(exported))
    config = first.with_sampler(num_steps=7).config

    def again(to):
        return export.export(config, None, str(to), None, with_grid=False, with_onnx=False,
                             push=None, source=str(exported))  # fmt: skip

    path = again(tmp_path / "again")
    second = rin_jax.load(str(path))
    assert distance(first.params, second.params) == 0
    assert (second.step, second.ema, second.class_names) == (0, "decay_0.9", first.class_names)
    assert second.config.sampler.num_steps == 7
    assert (path / "evaluation.json").read_text() == (exported / "evaluation.json").read_text()
    (record,) = json.loads((path / "evaluation.json").read_text())
    assert record["figures"] == RECORD["figures"]
    assert "| classifier/agreement | 0.9870 |" in (path / "README.md").read_text()
    with pytest.raises(ConfigError, match="is the folder of --export; name another one"):
        again(exported)


def test_labels_are_checked(exported):
    model = rin_jax.load(str(exported))
    with pytest.raises(ValueError, match=r"labels has 10; the model's classes are 0\.\.9"):
        model.sample(2, [3, 10])
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); give one number or 2"):
        model.sample(2, [1, 2, 3])


def test_denoise_carries_latents(exported):
    model = rin_jax.load(str(exported))
    xt, gamma = exports.noise(model, 2), np.float32([0.3, 0.7])
    first, latents = model.denoise(xt, gamma, 3)
    again, _ = model.denoise(xt, gamma, 3, latents)
    zeros, _ = model.denoise(xt, gamma, [3, 3], np.zeros_like(latents))
    assert distance(first, zeros) == 0
    assert distance(first, again) > 1e-3
    assert distance(first, model.denoise(xt, gamma)[0]) > 1e-3


def test_each_device_computes_its_part_of_a_batch(exported, monkeypatch):
    """And a batch that the devices do not divide has as many rows as it was given."""
    rows, made = [], stablehlo.make_denoiser

    def spy(experiment):
        def denoiser(params, xt, *rest):
            rows.append(len(xt))
            return made(experiment)(params, xt, *rest)

        return denoiser

    monkeypatch.setattr(stablehlo, "make_denoiser", spy)
    model = rin_jax.load(str(exported))
    xt, gamma = exports.noise(model, 21), np.linspace(0.1, 0.9, 21, dtype=np.float32)
    labels = np.arange(21) % 10
    many = model.denoise(xt, gamma, labels)
    assert set(rows) == {3}  # of 24, on each of eight devices
    few = model.denoise(xt[18:], gamma[18:], labels[18:])
    assert distance([part[18:] for part in many], few) < 1e-5


def test_the_card_says_what_is_known(exported):
    text = (exported / "README.md").read_text()
    for line in ("# digits8", "| training steps | 0 of 12 |", "| batch | 16 images |",
                 "| weights | running average decay_0.9 |", "| data | digits, split train[:64] |",
                 "| classes | 10 (0, 1, 2,",
                 "| classifier/agreement | 0.9870 | num_samples 20; ema decay_0.9; seed 3; ddim, ",
                 "| all else | not measured |", "license: unknown", "## Intended use"):  # fmt: skip
        assert line in text, line
    assert "0.123" not in text  # another step's record
    picture = (exported / "samples.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    description = json.loads((exported / "config.json").read_text())
    bare = card.card("x", description, [], picture=False, onnx=False, clips=False)
    assert "not measured for these weights" in bare
    assert "No sample grid" in bare


def damage(path, **changes):
    """Rewrites config.json with fields changed."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(path, change):
    """Rewrites model.safetensors with its tensors changed, and its SHA-256 in config.json."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    content = (path / "model.safetensors").read_bytes()
    damage(path, sha256=hashlib.sha256(content).hexdigest())


def flip(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-10] ^= 4
    (path / "model.safetensors").write_bytes(data)


def cut(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-10])


DAMAGE = {
    "nothing": (lambda path: None, None),
    "a byte": (flip, "model.safetensors was cut off or changed since its export"),
    "the end": (cut, "model.safetensors was cut off or changed since its export"),
    "version": (lambda path: damage(path, format=99), "config.json has format 99"),
    "missing": (lambda path: rewrite(path, lambda t: t.pop("time.out.bias")), "time.out.bias"),
    "extra": (lambda path: rewrite(path, lambda t: t.update(z=np.ones(1, "f"))), r"\bz\b"),
    "shape": (
        lambda path: rewrite(path, lambda t: t.update({"label.bias": np.ones(7, "f")})),
        r"label\.bias.*shape .?7",
    ),
    "type": (
        lambda path: rewrite(path, lambda t: t.update({"label.bias": np.ones(16, np.float16)})),
        r"label\.bias[:,] F16",
    ),
}


@pytest.fixture
def copy(exported, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    return epath.Path(tmp_path)


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(copy, change, words):
    """By rin_jax and by the PyTorch file; an export that is whole loads in both."""
    change(copy)
    if words is None:
        load(str(copy))
        rin_torch.load(str(copy))
        return
    with pytest.raises(ConfigError, match=words):
        load(str(copy))
    with pytest.raises(ValueError, match=words):
        rin_torch.load(str(copy))


def test_a_description_that_does_not_fit_is_named(copy):
    content = json.loads((copy / "config.json").read_text())
    damage(copy, network=content["network"] | {"time_scale": 7.0})
    with pytest.raises(ConfigError, match=r"time_scale: network 7\.0, config 1000\.0"):
        load(str(copy))
    damage(copy, network=content["network"], class_names=["x"] * 11)
    with pytest.raises(ConfigError, match="names 11 classes; the network has 10"):
        load(str(copy))
    del content["ema"]
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"missing \['ema'\]"):
        load(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        load(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"is not an export: it has no config\.json"):
        load(str(copy))


def test_an_export_from_before_there_were_videos_loads(copy):
    known = SINCE_FORMAT_2 | {"cond_frames": 0}
    assert rin_torch.OLDER.items() <= known.items()
    content = json.loads((copy / "config.json").read_text())
    for name in ("attention_dropout", "conv_dropout", *rin_torch.OLDER):
        del content["network"][name]
        content["config"]["model"].pop(name, None)
    del content["config"]["data"]["clip"]
    damage(copy, network=content["network"], config=content["config"])
    assert load(str(copy)).experiment.rin.cond_frames == 0
    rin_torch.load(str(copy))


def test_mistakes_cost_nothing(run, tmp_path, monkeypatch):
    to = tmp_path / "to"
    monkeypatch.setitem(schedules.SCHEDULES, "new", schedules.Family(schedules.linear, None))
    new = {"sampler__schedule": {"name": "new"}}
    with pytest.raises(ConfigError, match=r"sampler.schedule is 'new', which has no formula"):
        job(run[0], to, **new)
    with pytest.raises(ConfigError, match=r"sampler.schedule is 'new', which has no formula"):
        exports.write(to, exports.model(**new))
    with pytest.raises(ConfigError, match="no checkpoint in"):
        job(str(tmp_path / "empty"), to)
    with pytest.raises(ConfigError, match=r"--ema is decay_0.5, but .* has decay_0.9, power_0.1"):
        job(run[0], to, ema="decay_0.5")
    with pytest.raises(ConfigError, match="depth: checkpoint 1, now 2"):
        job(run[0], to, model__depth=2)
    sequence = {"tokens": 1, "width": 2, "projected": True, "on_latents": False}
    with pytest.raises(ConfigError, match=r"model.sequence is set, but .* take no sequence"):
        export.check_exportable(tiny.experiment(model__sequence=sequence))
    with pytest.raises(ConfigError, match="named owner/name"):
        job(run[0], to, push="somewhere")
    assert not to.exists()
    to.mkdir()
    (to / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="has files that are not an export"):
        job(run[0], to)
    assert [path.name for path in to.iterdir()] == ["thesis.tex"]


def test_training_can_go_on_from_an_export_and_be_exported(exported, tmp_path):
    """The parameters are those of a state of training; others in their place are others."""
    model = rin_jax.load(str(exported))
    wanted = abstract_state(model.experiment, model.mesh).params
    assert jax.tree.map(lambda x: (x.shape, x.dtype), model.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    params = jax.tree.map(lambda x: x + 1, model.params)
    tuned = dataclasses.replace(model, params=params, step=3, ema="none")
    again = rin_jax.load(str(exports.write(tmp_path / "again", tuned)))
    assert distance(again.params, params) == 0
    assert (again.step, again.ema, again.class_names) == (3, "none", model.class_names)


@pytest.mark.parametrize("name", test_configs.EVERY)
def test_every_published_experiment_exports_and_loads(name, tmp_path):
    """Without its StableHLO, which knows no experiment but through the two programs."""
    model = exports.model_of(make_experiment(test_configs.tiny(name)))
    rin, config = model.experiment.rin, model.config.to_dict()
    again = rin_jax.load(str(exports.write_weights(tmp_path, rin, model.params, config)))
    assert distance(again.params, model.params) == 0
    assert again.experiment.rin == rin
    assert again.experiment.sampler.process == model.experiment.sampler.process
    assert again.config.sampler.to_dict() == model.config.sampler.to_dict()
    theirs = rin_torch.load(str(tmp_path))
    assert sum(p.numel() for p in theirs.parameters()) == test_configs.count_parameters(rin)
    description = json.loads((tmp_path / "config.json").read_text())
    assert name in card.card(name, description, [], picture=False, onnx=True, clips=False)


def test_the_package_itself_stays_light(tmp_path):
    """`import rin_jax` alone imports neither JAX nor Flax."""
    code = "import sys, rin_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    path = f"sys.path.insert(0, {str(test_configs.CONFIGS.parent)!r})\n"
    out = exports.run_without(("torch",), path + code, tmp_path)
    assert out.strip() == "[]"


def test_the_names_are_documented(exported):
    """Every tensor of an export fits a line of the document's table of names."""
    text = (test_configs.CONFIGS.parent / "docs" / "export.md").read_text()
    patterns = re.findall(r"^\| `([\w.*]+)`", text, re.M)
    patterns = [re.escape(p).replace(r"\*", r"\w+") for p in patterns]
    for name in load_file(exported / "model.safetensors"):
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name
