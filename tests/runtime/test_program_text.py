"""Lines of compiled programs: types, groups of devices, loops, kernels with odd attributes."""

import numpy as np
import pytest

from rin_jax.runtime.program_text import (
    bytes_of,
    device_groups,
    main_memory,
    parse,
    parse_line,
    trip_count,
)


def test_sizes_of_types():
    assert bytes_of("bf16[4,8]{1,0:T(8,128)(2,1)}") == 64
    assert bytes_of("(f32[2]{0}, pred[3]{0}, s4[4]{0}, token[])") == 8 + 3 + 2
    assert bytes_of("f32[]") == 4
    assert bytes_of("f8e4m3fn[3,<=5]") == 15
    assert main_memory("(f32[2]{0:T(128)S(1)}, f32[4]{0:T(128)})") == 16


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'data'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['data'=4] {'data':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['data'=4] {'data':(2)2}, x", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups(attributes, groups):
    np.testing.assert_array_equal(device_groups(attributes, 4), groups)


def test_an_instruction():
    line = (
        "  ROOT %w.1 = (s32[], f32[2]{0}) while(%t, %u.2), condition=%c-1, body=%b.2, metadata={"
        'op_name="jit(f)/while"}'
    )
    found = parse_line(line)
    assert (found.name, found.type, found.opcode) == ("w.1", "(s32[], f32[2]{0})", "while")
    assert (found.operands, found.is_root) == (("t", "u.2"), True)
    assert (found.attribute("body"), found.attribute("condition")) == ("b.2", "c-1")
    assert found.attribute("calls") is None
    assert parse_line("  // a comment") is None


# A loop of `body` over a tuple whose first entry counts from 1 to the bound in `condition`.
LOOP = """HloModule m
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  {root} (s32[], f32[4]) tuple(%next, %x)
}}

%compared (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(1)
  %b = s32[] parameter(0)
  ROOT %lt = pred[] compare(%a, %b), direction={direction}
}}

%other (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(1)
  %b = s32[] parameter(0)
  {compared} pred[] custom-call(%a, %b), custom_call_target="is_finished"
}}

%condition (p: (s32[], f32[4])) -> pred[] {{
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(8)
  %copied = s32[] copy(%bound)
  {condition}
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  %one = s32[] constant(1)
  %t = (s32[], f32[4]) tuple(%one, %x)
  %w = (s32[], f32[4]) while(%t), condition=%condition, body=%body{note}
  ROOT %y = f32[4]{{0}} get-tuple-element(%w), index=1
}}
"""
COMPARE = "ROOT %lt = pred[] compare(%i, %copied), direction=LT"
PLAIN = {"step": 1, "root": "ROOT %t =", "direction": "LT", "compared": "ROOT %c =",
         "condition": COMPARE, "note": ""}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({}, 7),
        ({"step": 3}, 3),  # 1, 4, 7
        ({"condition": COMPARE.replace("LT", "LE")}, 8),
        ({"condition": COMPARE.replace("LT", "GT")}, None),
        ({"condition": COMPARE.replace("%copied", "%i")}, None),
        ({"condition": "ROOT %f = pred[] fusion(%copied, %i), calls=%compared"}, 7),
        ({"condition": "ROOT %f = pred[] fusion(%copied, %i), calls=%compared",
          "direction": "LE"}, 8),
        ({"condition": "ROOT %f = pred[] fusion(%copied, %i), calls=%other"}, None),
        ({"condition": "ROOT %f = pred[] fusion(%copied, %i), calls=%other",
          "compared": "%c ="}, None),  # a computation whose text has no root
        ({"condition": "%lt = pred[] compare(%i, %copied), direction=LT"}, None),
        ({"root": "%t ="}, 7),  # a step that is not seen is one
        ({"note": ', backend_config={"known_trip_count":{"n":"5"}}'}, 5),
    ],
)  # fmt: skip
def test_how_often_a_loop_runs(changes, runs):
    computations, entry = parse(LOOP.format(**(PLAIN | changes)))
    assert trip_count(computations, entry, computations[entry]["w"]) == runs


def test_a_kernel_whose_attributes_have_line_ends():
    """The text of a Mosaic kernel with metadata, as the TPU compiler prints it."""
    text = """HloModule m
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"a":"b",
"c":"d e"
}}, metadata={op_name="jit(f)/k"}, backend_config={"custom_call_config":{"body":"TUzv"}}
  ROOT %g = f32[8]{0} negate(%k)
}, execution_thread="other"

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} call(%x), to_apply=%body
}
"""  # noqa: E501
    computations, entry = parse(text)
    assert entry == "main"
    assert {name: list(one) for name, one in computations.items()} == {
        "body": ["p", "k", "g"], "main": ["x", "c"],
    }  # fmt: skip
    assert computations["body"]["g"].is_root
