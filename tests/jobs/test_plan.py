"""--mode=plan: its arithmetic, its search, its errors, and the real compiler on a small run."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rin_jax import ConfigError
from rin_jax.experiment import make_experiment
from rin_jax.jobs import plan
from rin_jax.network import cost
from rin_jax.runtime import chips
from rin_jax.runtime.chips import GIB, Chip
from rin_jax.runtime.compiled_programs import Collective
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
SLOW_CHIP = Chip("slow", ("slow",), 100.0, 1000.0, 50.0, 10.0, 2.0)


def command(*arguments: str) -> subprocess.CompletedProcess:
    """python -m rin_jax.main --mode=plan, without a workdir."""
    return subprocess.run(
        [sys.executable, "-m", "rin_jax.main", "--mode=plan", *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def collective(sent: float, runs: int, crosses: bool) -> Collective:
    return Collective("all-reduce", runs, sent, 8, crosses, "")


def test_the_roofline_is_what_it_says():
    moved = (collective(10.0, 3, False), collective(5.0, 2, True))
    result = plan.Compiled(True, 500, 1000, collectives=moved, traffic=200.0)
    seconds = plan.roofline(700.0, result, SLOW_CHIP)
    assert seconds == {"compute": 7.0, "memory": 4.0, "links": 3.0, "between slices": 5.0}
    text = plan.describe_times("step", seconds, images=38, flops=350.0, peak=100.0)
    assert "7000.0 if all overlap, 19000.0 if nothing does: 5 to 2 images/s, 50 to 18 %" in text


def test_an_unknown_network_is_not_a_fast_one():
    result = plan.Compiled(True, 1, 2, collectives=(collective(1.0, 1, True),), traffic=1.0)
    chip = chips.by_topology("v4:2x2x2")
    assert chip.network is None
    assert math.isnan(plan.roofline(1.0, result, chip)["between slices"])


@pytest.mark.parametrize(
    ("message", "used", "capacity"),
    [
        ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
         "required for HLO temporaries (22.31G) exceeds available HBM (15.75G). HLO module", 22.31,
         15.75),
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 138.5G of "
         "15.75G hbm. Exceeded hbm capacity by 122.75G.", 138.5, 15.75),
    ],
)  # fmt: skip
def test_what_the_compiler_says_of_memory(message, used, capacity):
    assert plan.needed_memory(message) == (used * GIB, capacity * GIB)


def test_another_error_of_the_compiler_is_not_swallowed():
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    assert plan.needed_memory("INTERNAL: something else") == (None, None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan.compiled(broken, 8, 1, SLOW_CHIP)


def search(needs: dict[str, float], **changes) -> str:
    """The search where a step needs, by the words of its changes, so much of 16."""
    config = make_experiment(tiny.config(model__remat="none", **changes)).config

    def step(**changed):
        words = " ".join(str(value) for value in changed.values())
        used = needs[words]
        return plan.Compiled(used <= 16, used * GIB, 16 * GIB)

    first = plan.Compiled(needs["none"] <= 16, needs["none"] * GIB, 16 * GIB)
    return plan.describe_search(config, first, step, fsdp=8)


def test_the_cheapest_policy_that_fits():
    assert search({"none": 12}) == "remat none: 12.00 of 16.00 GiB, fits: the cheapest that does"
    text = search({"none": 40, "dots": 15})
    assert "remat none: does not fit: 40.00 of 16.00 GiB\nremat dots: 15.00" in text


def test_what_makes_it_fit():
    needs = {"none": 90, "dots": 60, "full": 30, "full -1 8": 20, "full -1 8 2": 12}
    text = search(needs, train__batch_size=32)
    assert "--config.mesh.data=-1 --config.mesh.fsdp=8: does not fit: 20.00" in text
    assert (
        "--config.mesh.fsdp=8 --config.train.accumulation_steps=2: 12.00 of 16.00 GiB, fits" in text
    )
    assert "--config.train.batch_size=16, or 2 times the chips" in text


def test_when_nothing_makes_it_fit():
    needs = {"none": 90, "dots": 60, "full": 30, "full 2": 30, "full 4": 30}
    mesh = {"data": -1, "fsdp": 8, "tensor": 1}
    text = search(needs, train__batch_size=4, mesh=mesh)
    assert text.endswith("a chip with more memory, or a smaller model, is needed")


def test_the_compilers_count_agrees_with_ours():
    """At a size where matrix products dominate, elementwise work adds few per cent."""
    experiment = tiny.experiment(
        model__latent_dim=256, model__interface_dim=256, model__num_latents=64,
        model__latent_mlp_ratio=4, model__interface_mlp_ratio=4, data__image_size=32,
        data__name="fashion_mnist", model__dropout=0.0, model__drop_path=0.0,
    )  # fmt: skip
    assert 1.0 < plan.compiler_flops_ratio(experiment) < 1.1


def test_recomputed_work_grows_with_the_policy():
    none, dots, full = (
        cost.recomputed_flops(tiny.experiment(model__remat=remat).rin)
        for remat in ("none", "dots", "full")
    )
    forward = cost.forward_flops(tiny.experiment().rin)
    assert none == 0 < dots < full < forward


@pytest.mark.parametrize("topology", ["v9z:4x4", "v5e", "", "h100:2x4"])
def test_an_unknown_chip_lists_the_known(topology):
    with pytest.raises(ConfigError, match=r"unknown --topology .*(?s:.*)v5e:.*16x16"):
        plan.plan(tiny.config(), topology, 1)


def test_libtpu_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ConfigError, match=r"pip install 'jax\[tpu\]'"):
        plan.plan(tiny.config(), "v5e:2x2", 1)


def test_chips_by_the_names_that_jax_gives():
    assert chips.by_kind("TPU v5 lite").name == "v5e"
    assert chips.by_kind("TPU v5").name == "v5p"
    assert chips.by_kind("cpu") is None
    kinds = [kind for chip in chips.CHIPS for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)


def test_other_modes_need_a_workdir():
    result = command("--config=configs/digits.py", "--mode=train", "--topology=v5e:2x2")
    assert result.returncode != 0
    assert "--mode=train needs --workdir=DIR" in result.stderr


@pytest.mark.slow
def test_a_shape_that_the_compiler_does_not_take():
    pytest.importorskip("libtpu")
    result = command("--config=configs/digits.py:tiny", "--topology=v5e:3x5x7")
    assert result.returncode == 2
    assert "does not take --topology 'v5e:3x5x7'" in result.stderr
    assert "16x16" in result.stderr


@pytest.mark.slow
def test_the_real_compiler():
    pytest.importorskip("libtpu")
    result = command(
        "--config=configs/imagenet64.py:tiny", "--topology=v5e:2x2",
        "--config.train.batch_size=16", "--config.sampler.images_per_device=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = result.stdout
    for words in ("v5e:2x2: 4 devices, data 4 x fsdp 1 x tensor 1", "GiB, fits",
                  "assumed for v5e", "the cheapest that does", "sampler, 8 images"):  # fmt: skip
        assert words in text, text
    parameters = int(re.search(r"parameters: ([\d,]+)", text).group(1).replace(",", ""))
    sent = float(re.search(r"all-reduce +\d+ times +([\d.]+) MB", text).group(1))
    # gradients in bfloat16, summed over four chips
    assert sent == pytest.approx(2 * 3 / 4 * 2 * parameters / 1e6, rel=0.1)
