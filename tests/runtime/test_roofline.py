"""The roofline's arithmetic."""

import math

from rin_jax.runtime import chips, roofline
from rin_jax.runtime.chips import Chip
from rin_jax.runtime.compiled_programs import Collective
from rin_jax.runtime.tpu_compiler import Compiled

SLOW_CHIP = Chip("slow", ("slow",), 100.0, 1000.0, 50.0, 10.0, 2.0)


def collective(sent: float, runs: int, crosses: bool) -> Collective:
    return Collective("all-reduce", runs, sent, 8, crosses, "")


def test_the_roofline_is_what_it_says():
    moved = (collective(10.0, 3, False), collective(5.0, 2, True))
    result = Compiled(True, 500, 1000, collectives=moved, traffic=200.0)
    seconds = roofline.roofline(700.0, result, SLOW_CHIP)
    assert seconds == {"compute": 7.0, "memory": 4.0, "links": 3.0, "between slices": 5.0}
    text = roofline.describe_times("step", seconds, images=38, flops=350.0, peak=100.0)
    assert "7000.0 if all overlap, 19000.0 if nothing does: 5 to 2 images/s, 50 to 18 %" in text


def test_an_unknown_network_is_not_a_fast_one():
    result = Compiled(True, 1, 2, collectives=(collective(1.0, 1, True),), traffic=1.0)
    chip = chips.by_topology("v4:2x2x2")
    assert chip.network is None
    assert math.isnan(roofline.roofline(1.0, result, chip)["between slices"])


def test_collectives_are_summed_by_kind_and_place():
    moved = (collective(1e6, 3, False), collective(2e6, 2, False), collective(5e6, 1, True))
    result = Compiled(True, 1, 2, collectives=moved, unknown_loops=("while.3",))
    rows = [line.split() for line in roofline.describe_collectives(result).splitlines()]
    assert rows[1] == ["all-reduce", "5", "times", "7.0", "MB"]
    assert rows[2] == ["all-reduce,", "between", "slices", "1", "times", "5.0", "MB"]
    assert rows[3][-2:] == ["once:", "while.3"]
    assert "nothing" in roofline.describe_collectives(Compiled(True, 1, 2))
