"""The published experiments: what their files promise is what they build."""

import importlib.util
import json
import math
import re
from pathlib import Path

import jax
import ml_collections
import pytest

from rin_jax.configuration.stored import SINCE_FORMAT_2
from rin_jax.experiment import make_experiment
from rin_jax.network.cost import forward_flops
from rin_jax.network.partitioning import param_shapes
from rin_jax.network.rin import RIN

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = CONFIGS.parent / "docs" / "experiments.md"
# Parameters and GFLOPs of the authors' code, counted apart from this project and rounded.
PARAMETERS = {
    "imagenet64": "267M",
    "imagenet128": "396M",
    "imagenet256": "396M",
    "imagenet512": "320.6M",
    "imagenet1024": "412.0M",
    "cifar10": "31.0M",
    "kinetics600": "395M",
}
GFLOPS = {
    "imagenet64": "72",
    "imagenet128": "139",
    "imagenet256": "243",
    "imagenet512": "342",
    "imagenet1024": "933",
    "cifar10": "8.6",
    "kinetics600": "288",
}
PUBLISHED = sorted(PARAMETERS)
SHARED = ("__init__", "modern", "released")  # no experiments
EVERY = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in SHARED)
RESOLVED = Path(__file__).with_name("resolved_configs.json")  # of every file, field by field


def load(name: str):
    """The module of a configuration file, loaded by its path as the command line does."""
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(name: str) -> ml_collections.ConfigDict:
    """The tiny form; skips the demo if it has none."""
    module = load(name)
    config = module.get_config("tiny")
    if name == "digits" and config.to_json() == module.get_config().to_json():
        pytest.skip("the demo has no tiny form")
    return config


def fields(tree, path: str = "") -> set[str]:
    """Paths of all fields; what a schedule or a video has is left out."""
    inside = (".schedule", ".clip", ".video")
    if not isinstance(tree, ml_collections.ConfigDict) or path.endswith(inside):
        return {path}
    return {leaf for key in tree for leaf in fields(tree.get_ref(key).get(), f"{path}.{key}")}


def count_parameters(rin: RIN) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(rin)))


def rounded_like(value: float, text: str) -> str:
    """`value` with as many decimals as `text` has."""
    return f"{value:.{len(text.partition('.')[2])}f}"


def test_every_published_experiment_has_a_file():
    assert set(PUBLISHED) | {"digits"} <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_has_the_fields_of_the_demo(name):
    assert fields(load(name).get_config()) == fields(load("digits").get_config())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_resolves_to_what_is_written_down(name, variant):
    """An experiment changes only on purpose: its line in the table changes with it."""
    table = json.loads(RESOLVED.read_text())
    column = table["configurations"].index(f"{name}:{variant}".rstrip(":"))
    expected = {f"model.{field}": value for field, value in SINCE_FORMAT_2.items()}
    expected |= {field: row[column % len(row)] for field, row in table["fields"].items()}
    config = make_experiment(load(name).get_config(variant)).config.to_dict()
    assert flat(json.loads(json.dumps(config))) == expected


def flat(tree, path: str = "") -> dict:
    """{path: value}; schedules, decays and what a video has are values."""
    if not isinstance(tree, dict) or path.endswith((".schedule", ".decay", ".clip", ".video")):
        return {path: tree}
    parts = (flat(value, f"{path}.{key}".lstrip(".")) for key, value in tree.items())
    return {field: value for part in parts for field, value in part.items()}


@pytest.mark.parametrize("name", EVERY)
def test_builds(name):
    config = load(name).get_config()
    experiment = make_experiment(config)
    diffusion = experiment.config.diffusion
    assert diffusion.normalize_input == (diffusion.input_scale != 1)


@pytest.mark.parametrize("dials", ["64", "few", "gpu", "gpu-few-64"])
def test_dials_of_own_data_build(dials):
    config = load("own_data").get_config(dials)
    experiment = make_experiment(config)
    assert experiment.data.image_size == (64 if "64" in dials else 32)
    assert (experiment.rin.dropout > 0) == ("few" in dials)
    assert experiment.rin.num_tokens == 256


@pytest.mark.parametrize("name", EVERY)
def test_tiny_builds_and_keeps_the_method(name):
    small, full = tiny(name), load(name).get_config()
    assert fields(small) == fields(full)
    assert small.diffusion == full.diffusion
    assert small.optimizer.name == full.optimizer.name
    assert small.optimizer.decay == full.optimizer.decay
    assert small.sampler.name == full.sampler.name
    assert small.sampler.schedule == full.sampler.schedule
    assert small.data.name in ("digits", "moving_digits")  # nothing to download
    assert count_parameters(make_experiment(small).rin) < 1e6


@pytest.mark.parametrize("name", EVERY)
def test_refuses_an_unknown_variant(name):
    tiny(name)  # a file without variants need not refuse one
    with pytest.raises(ValueError, match="tiny"):
        load(name).get_config("huge")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_released_code(name):
    module = load(name)
    count = count_parameters(make_experiment(module.get_config()).rin)
    expected = PARAMETERS[name].removesuffix("M")
    assert rounded_like(count / 1e6, expected) == expected
    assert f"{count:,} [D]" in module.__doc__


@pytest.mark.parametrize("name", PUBLISHED)
def test_forward_flops_are_those_of_the_released_code(name):
    """Within the rounding of the table, and 0.3 % for what was counted otherwise there.

    Whether the table holds embeddings, stem and readout is not known; they are less than that.
    """
    module = load(name)
    config = module.get_config()
    if config.data.clip:  # counted there for frames that are all denoised
        config.data.clip.cond_frames = 0
    gflops = forward_flops(make_experiment(config).rin) / 1e9
    expected = GFLOPS[name]
    rounding = 0.5 * 10.0 ** -len(expected.partition(".")[2])
    assert gflops == pytest.approx(float(expected), abs=rounding + 0.003 * float(expected))
    assert f" {gflops:.1f} [D]" in module.__doc__


@pytest.mark.parametrize("name", ["digits", "digits_modern", "fashion_mnist", "moving_digits"])
def test_parameters_and_flops_of_our_own_are_told(name):
    rin = make_experiment(load(name).get_config()).rin
    parameters, gflops = f"{count_parameters(rin):,}", f"{forward_flops(rin) / 1e9:.3f}"
    assert f"    parameters  {parameters}\n" in load(name).__doc__
    assert f"({gflops})\n" in load(name).__doc__
    row = f"| `{name}.py` |.*| {parameters} | {gflops} |\n"
    assert re.search(row.replace("|", r"\|"), EXPERIMENTS.read_text())


@pytest.mark.parametrize(("patch_size", "depth", "expected"), [(8, 4, "157.8"), (4, 6, "214.4")])
def test_parameters_of_the_released_imagenet64_file(patch_size, depth, expected):
    """That file's network, as it is and with the values in its comments."""
    module = load("imagenet64")
    config = module.get_config()
    config.model.update(patch_size=patch_size, num_blocks=4, depth=depth, latent_dim=768)
    count = count_parameters(make_experiment(config).rin)
    assert rounded_like(count / 1e6, expected) == expected
    assert f"{expected}M" in module.__doc__


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rate_warms_up_and_ends_part_way_down_the_cosine(name):
    config = load(name).get_config()
    schedule = make_experiment(config).learning_rate
    peak = config.optimizer.learning_rate
    assert schedule(0) == 0
    assert float(schedule(5_000)) == pytest.approx(0.5 * peak, rel=1e-6)
    assert float(schedule(10_000)) == pytest.approx(peak, rel=1e-6)
    last = float(schedule(config.train.num_steps - 1)) / peak
    assert last == pytest.approx({0.7: 0.206, 0.8: 0.095}[config.optimizer.decay.rate], abs=5e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_card_is_complete(name):
    card = load(name).__doc__
    for part in (f"--config=configs/{name}.py", "hardware", "time", "[V]", "[M]"):
        assert part in card
    assert "FID, IS" in card or "FVD" in card
    assert card.count("not measured") in (3, 4)
