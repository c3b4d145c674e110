"""--mode=plan: its counts, its search, its errors, and the real compiler on the smallest run."""

import contextlib
import io
import math

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rin_jax import ConfigError
from rin_jax.experiment import make_experiment
from rin_jax.jobs import plan
from rin_jax.network import cost
from rin_jax.runtime import sharding
from rin_jax.runtime.chips import GIB, Chip
from rin_jax.runtime.compiled_programs import Schedule
from rin_jax.runtime.tpu_compiler import Compiled
from rin_jax.sampling.weights import abstract_params
from tests import tiny

SLOW_CHIP = Chip("slow", ("slow",), 100.0, 1000.0, 50.0, 10.0, 2.0, 20.0)


def search(needs: dict[str, float], **changes) -> str:
    """The search where a step needs, by the words of its changes, so much of 16."""
    experiment = tiny.experiment(model__remat="none", **changes)

    def step(**changed):
        words = " ".join(str(value) for value in changed.values())
        used = needs[words]
        return Compiled(used <= 16, used * GIB, 16 * GIB)

    first = Compiled(needs["none"] <= 16, needs["none"] * GIB, 16 * GIB)
    return plan.describe_search(experiment, first, step, 8, SLOW_CHIP)


@pytest.mark.parametrize(
    ("needs", "cycles", "fastest"),
    [
        ({"none": 12, "dots": 10, "full": 8}, {"none": 3, "dots": 5, "full": 4}, "none"),
        ({"none": 40, "dots": 10, "full": 8}, {"none": 3, "dots": 5, "full": 4}, "full"),
        ({"none": 40, "dots": 10, "full": 8}, {"none": 3, "dots": 4, "full": 5}, "dots"),
    ],
)
def test_the_fastest_policy_that_fits(needs, cycles, fastest):
    """By the cycles: what is computed again may cost less than the copies of what is kept."""

    def step(model__remat):
        used = needs[model__remat] * GIB
        return Compiled(used <= 16 * GIB, used, 16 * GIB, schedule=Schedule(cycles[model__remat]))

    experiment = tiny.experiment(model__remat="none")
    text = plan.describe_search(experiment, step("none"), step, 8, SLOW_CHIP)
    assert text.endswith(f"\nthe fastest that fits: {fastest}")
    assert f"remat full: 8.00 of 16.00 GiB, fits, {1e3 * cycles['full'] / 20:.1f} ms" in text
    assert ("remat none: does not fit: 40.00 of 16.00 GiB\n" in text) == (needs["none"] == 40)


def test_a_sampler_between_the_steps_of_a_training():
    """Its weights are an average that the state has already, unless that is split over devices."""
    experiment = tiny.experiment(optimizer__name="adamw")
    whole, split = sharding.make_mesh(8, 1, 1), sharding.make_mesh(1, 8, 1)
    for mesh, shared in ((whole, True), (split, False)):
        kinds = plan.state_bytes(experiment, mesh)
        state = sum(kinds.values()) - shared * kinds["parameters"]
        for room, words in ((1, "fits"), (-1, "lower --config.sampler.images_per_device")):
            result = Compiled(True, 2 * GIB, 2 * GIB + state + room)
            text = plan.describe_sampling_in_training(experiment, mesh, result)
            assert text.endswith(words)


def test_what_makes_it_fit():
    needs = {"none": 90, "dots": 60, "full": 30, "full -1 8": 20, "full -1 8 2": 12}
    text = search(needs, train__batch_size=32)
    assert "--config.mesh.data=-1 --config.mesh.fsdp=8: does not fit: 20.00" in text
    assert (
        "--config.mesh.fsdp=8 --config.train.accumulation_steps=2: 12.00 of 16.00 GiB, fits" in text
    )
    assert "--config.train.batch_size=16, or 2 times the chips" in text


def test_what_makes_it_fit_without_fewer_images_at_once():
    needs = {"none": 90, "dots": 60, "full": 30, "full -1 8": 12}
    text = search(needs, train__batch_size=32, train__accumulation_steps=2)
    assert text.endswith("--config.model.remat=full --config.mesh.data=-1 --config.mesh.fsdp=8: "
                         "12.00 of 16.00 GiB, fits")  # fmt: skip


def test_a_run_that_accumulates_already_is_told_what_is_more():
    needs = {"none": 90, "dots": 60, "full": 30, "full -1 8": 20, "full -1 8 4": 12}
    text = search(needs, train__batch_size=32, train__accumulation_steps=2)
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
        data__name="fashion_mnist", model__dropout=0.0, model__drop_path=0.0, model__remat="full",
    )  # fmt: skip
    assert 1.0 < plan.compiler_flops_ratio(experiment) < 1.1


def test_recomputed_work_grows_with_the_policy():
    none, dots, full = (
        cost.recomputed_flops(tiny.experiment(model__remat=remat).rin)
        for remat in ("none", "dots", "full")
    )
    forward = cost.forward_flops(tiny.experiment().rin)
    assert none == 0 < dots < full < forward


def test_guidance_takes_a_second_pass():
    plain, guided = (
        tiny.experiment(sampler__guidance_scale=scale, sampler__num_steps=7) for scale in (0.0, 1.0)
    )
    forward = cost.forward_flops(plain.rin)
    assert plan.sampling_flops(plain) == 7 * forward
    assert plan.sampling_flops(guided) == 2 * 7 * forward
    compiled = Compiled(True, 1, 2, traffic=1.0, schedule=Schedule(100.0))
    mesh = sharding.make_mesh(4, 1, 1, jax.devices()[:4])
    text = plan.describe_sampler(guided, mesh, compiled, SLOW_CHIP, images=8)
    seconds = 2 * 2 * 7 * forward / SLOW_CHIP.peak_flops  # two images a device
    assert f"compute {1e3 * seconds:.1f}" in text


def test_a_steps_time_is_that_of_its_share_of_the_batch():
    """On four devices four images each; work that is done twice takes time but is not useful."""
    experiment = tiny.experiment(model__remat="full", diffusion__self_cond_rate=0.9)
    mesh = sharding.make_mesh(4, 1, 1, jax.devices()[:4])
    compiled = Compiled(True, 1, 2, schedule=Schedule(100.0))
    text = plan.describe_step(experiment, mesh, compiled, SLOW_CHIP)
    useful = 4 * 4 * cost.forward_flops(experiment.rin)
    done = useful + 4 * cost.recomputed_flops(experiment.rin)
    assert f"compute {1e3 * done / SLOW_CHIP.peak_flops:.1f}" in text
    assert f"{100 * useful / done:.0f} to {100 * useful / done:.0f} % of peak" in text


def test_temporaries_are_told_of_what_fits():
    experiment, mesh = tiny.experiment(), sharding.make_mesh(8, 1, 1)
    for fits, words in ((True, "temporaries 3.00"), (False, "EMA 0.00")):
        result = Compiled(fits, 5 * GIB, 6 * GIB, temporary=3 * GIB)
        assert plan.describe_memory(experiment, mesh, result).endswith(words)


def test_a_devices_state_is_its_shards(monkeypatch):
    """Sharded over eight devices, each has an eighth of what is not replicated on all."""
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    experiment = tiny.experiment(optimizer__name="adamw")
    whole, part = (
        plan.state_bytes(experiment, sharding.make_mesh(*sizes)) for sizes in ((8, 1, 1), (1, 8, 1))
    )
    params = abstract_params(experiment.rin, sharding.make_mesh(1, 8, 1))
    replicated = sum(4 * x.size for x in jax.tree.leaves(params) if x.sharding.is_fully_replicated)
    total = sum(4 * x.size for x in jax.tree.leaves(params))
    assert whole["parameters"] == total
    assert part["parameters"] == replicated + (total - replicated) / 8 < total / 2
    assert whole["EMA"] == 2 * whole["parameters"]  # two averages
    assert whole["optimizer"] == pytest.approx(2 * whole["parameters"], abs=64)  # two moments
    assert part["optimizer"] == pytest.approx(2 * part["parameters"], abs=64)


def test_an_unknown_chip_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"unknown --topology 'v9z:4x4'; known are"):
        plan.plan(tiny.config(), "v9z:4x4", 1)


@pytest.fixture(scope="module")
def planned():
    """The plan of the smallest run on two by two chips: what was said and what was compiled."""
    pytest.importorskip("libtpu")
    cached, results, said = jax.config.jax_enable_compilation_cache, [], io.StringIO()

    def recorded(*arguments):
        results.append(compiled(*arguments))
        return results[-1]

    config = tiny.config(
        train__batch_size=8, sampler__images_per_device=2, sampler__num_steps=1,
        model__num_blocks=1, model__dropout=0.0, model__drop_path=0.0, optimizer__name="adamw",
        diffusion__self_cond_rate=0.0,
        ema={"decays": (0.9,), "power_lengths": (), "snapshot_every_steps": None},
    )  # fmt: skip
    compiled = plan.tpu.compiled
    compilation_cache.reset_cache()  # whether there is one is asked once a process
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(plan.tpu, "compiled", recorded)
        patch.setattr(plan, "POLICIES", ("none",))  # the others take long
        plan.plan(config, "v5e:2x2", 1)
    jax.config.update("jax_enable_compilation_cache", cached)
    compilation_cache.reset_cache()
    return said.getvalue(), results, make_experiment(config)


@pytest.mark.slow
def test_the_real_compiler(planned):
    text, (step, sampler), experiment = planned
    for words in ("v5e:2x2: 4 devices, data 4 x fsdp 1 x tensor 1", "GiB, fits",
                  "assumed for v5e", "the fastest that fits", "sampler, 8 images",
                  "sampler between the steps of a training"):  # fmt: skip
        assert words in text, text
    params = jax.tree.leaves(abstract_params(experiment.rin, sharding.make_mesh(8, 1, 1)))
    count = sum(math.prod(leaf.shape) for leaf in params)
    assert f"parameters: {count:,};" in text
    # gradients in float32, summed over four chips, with the loss
    sent = sum(c.bytes for c in step.collectives)
    assert sent == pytest.approx(2 * 3 / 4 * 4 * count, rel=0.01)
    assert sampler.collectives == ()
    assert step.unknown_loops == sampler.unknown_loops == ()
    assert 0 < sampler.used < step.used < step.capacity
