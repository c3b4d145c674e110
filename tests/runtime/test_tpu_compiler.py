"""What is read from a compiler (memory, its complaints, shapes it does not take); the roofline."""

import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from rin_jax import ConfigError
from rin_jax.runtime import chips, tpu_compiler
from rin_jax.runtime.chips import GIB, Chip
from rin_jax.runtime.compiled_programs import Collective, Program, Schedule
from rin_jax.runtime.tpu_compiler import Compiled

CHIP = Chip("slow", ("slow",), 100.0, 1000.0, 50.0, 10.0, 2.0, 20.0)


def test_a_donated_array_is_counted_once():
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)

    def used(*donated):
        jitted = jax.jit(lambda x: x + 1, donate_argnums=donated)
        return tpu_compiler.compiled(lambda: jitted.lower(x).compile(), 1, 1, CHIP).used

    size = 256 * 128 * 4
    assert used() >= 2 * size
    assert used() - used(0) == size


def test_what_is_larger_than_the_chip_does_not_fit_whatever_compiles():
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    result = tpu_compiler.compiled(lambda: jax.jit(jnp.sin).lower(x).compile(), 1, 1, CHIP)
    assert not result.fits
    assert (result.used >= 2 * 256 * 128 * 4, result.capacity) == (True, CHIP.hbm_bytes)


def test_what_is_read_of_a_program():
    """Of a chain of products, which needs a temporary, in a loop that ends when it ends."""
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def run(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: (x @ x) @ x, x)

    program = jax.jit(run).lower(x).compile()
    result = tpu_compiler.compiled(
        lambda: program, 1, 1, dataclasses.replace(CHIP, hbm_bytes=float(GIB))
    )
    memory, text = program.memory_analysis(), Program(program.as_text(), 1)
    assert result.temporary >= x.size * 4
    assert result.used == (result.temporary + 2 * x.size * 4 + memory.generated_code_size_in_bytes)
    assert result.traffic == text.memory_traffic() > 2 * x.size * 4
    assert list(result.unknown_loops) == text.unknown_loops()
    assert len(result.unknown_loops) == 1


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
    def too_large():
        raise jax.errors.JaxRuntimeError(message)

    result = tpu_compiler.compiled(too_large, 8, 1, CHIP)
    assert (result.fits, result.used, result.capacity) == (False, used * GIB, capacity * GIB)
    assert result.verdict() == f"does not fit: {used:.2f} of {capacity:.2f} GiB"


def test_another_error_of_the_compiler_is_not_swallowed():
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        tpu_compiler.compiled(broken, 8, 1, CHIP)


def test_libtpu_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ConfigError, match=r"pip install 'jax\[tpu\]'"):
        tpu_compiler.topology_devices("v5e:2x2", 1)


def test_a_shape_that_the_compiler_does_not_take():
    pytest.importorskip("libtpu")
    with pytest.raises(ConfigError, match=r"does not take --topology 'v5e:3x5x7'(?s:.*)16x16"):
        tpu_compiler.topology_devices("v5e:3x5x7", 1)
    with pytest.raises(ConfigError, match="--num_slices is 0; it must be at least 1"):
        tpu_compiler.topology_devices("v5e:2x2", 0)


@pytest.mark.parametrize("topology", ["v9z:4x4", "v5e", "", "h100:2x4"])
def test_an_unknown_chip_lists_the_known(topology):
    with pytest.raises(ConfigError, match=r"unknown --topology .*(?s:.*)v5e:.*16x16"):
        chips.by_topology(topology)


def test_chips_by_the_names_that_jax_gives():
    assert chips.by_kind("TPU v5 lite").name == "v5e"
    assert chips.by_kind("TPU v5").name == "v5p"
    assert chips.by_kind("cpu") is None
    kinds = [kind for chip in chips.CHIPS for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)


def collective(sent: float, runs: int, crosses: bool) -> Collective:
    return Collective("all-reduce", runs, sent, 8, crosses)


def test_the_roofline_is_what_it_says():
    moved = (collective(10.0, 3, False), collective(5.0, 2, True))
    result = Compiled(True, 500, 1000, collectives=moved, traffic=200.0)
    seconds = tpu_compiler.roofline(700.0, result, CHIP)
    assert seconds == {"compute": 7.0, "memory": 4.0, "links": 3.0, "between slices": 5.0}
    text = tpu_compiler.describe_times("step", seconds, images=38, flops=350.0, peak=100.0)
    assert "7000.0 if all overlap, 19000.0 if nothing does: 5 to 2 images/s, 50 to 18 %" in text


def test_cycles_and_kernels_follow_each_other():
    result = Compiled(True, 500, 1000, schedule=Schedule(40.0, 3, 200.0))
    text = tpu_compiler.describe_schedule(result, CHIP, images=38, flops=200.0)
    assert "2000.0 ms, and 3 runs of kernels, at least 2000.0 ms" in text
    assert text.endswith("4000.0 ms, 10 images/s, MFU 50 %")


def test_a_tpu_multiplies_at_its_peak():
    for chip in chips.CHIPS:
        if chip.topologies:  # a whole number of matrix units of side 128
            units = chip.peak_flops / chip.clock / (2 * 128**2)
            assert abs(units / round(units) - 1) < 0.01, chip.name


def test_an_unknown_network_is_not_a_fast_one():
    result = Compiled(True, 1, 2, collectives=(collective(1.0, 1, True),), traffic=1.0)
    chip = chips.by_topology("v4:2x2x2")
    assert chip.network is None
    assert math.isnan(tpu_compiler.roofline(1.0, result, chip)["between slices"])


def test_collectives_are_summed_by_kind_and_place():
    moved = (collective(1e6, 3, False), collective(2e6, 2, False), collective(5e6, 1, True))
    result = Compiled(True, 1, 2, collectives=moved, unknown_loops=("while.3",))
    rows = [line.split() for line in tpu_compiler.describe_collectives(result).splitlines()]
    assert rows[1] == ["all-reduce", "5", "times", "7.0", "MB"]
    assert rows[2] == ["all-reduce,", "between", "slices", "1", "times", "5.0", "MB"]
    assert rows[3][-2:] == ["once:", "while.3"]
    assert "nothing" in tpu_compiler.describe_collectives(Compiled(True, 1, 2))
