"""What compiled programs send and move, on programs where that is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rin_jax.runtime import sharding
from rin_jax.runtime.compiled_programs import Part, Program, Schedule
from rin_jax.sampling.weights import abstract_params
from rin_jax.training.step import make_loss
from tests import tiny

LAYERS, WIDTH = 5, 64


def scanned(mesh, rows, split, weights_spec):
    """What a scan over LAYERS matrices x @ W sends; x [32, WIDTH] lies as `rows`, then `split`."""

    def place(spec):
        return NamedSharding(mesh, spec)

    def layer(x, weight):
        x = jax.lax.with_sharding_constraint(x, place(split))
        return jax.lax.with_sharding_constraint(x @ weight, place(rows)), None

    x = jax.ShapeDtypeStruct((32, WIDTH), jnp.float32)
    weights = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    jitted = jax.jit(
        lambda x, weights: jax.lax.scan(layer, x, weights)[0],
        in_shardings=(place(rows), place(weights_spec)),
    )
    return Program(jitted.lower(x, weights).compile().as_text(), mesh.size).collectives()


def test_gathered_weights_count_once_for_each_layer():
    mesh = sharding.make_mesh(1, 8, 1)
    found = scanned(mesh, P("fsdp"), P("fsdp"), P(None, None, "fsdp"))
    assert {c.kind for c in found} == {"all-gather"}
    assert sum(c.bytes for c in found) == LAYERS * WIDTH * WIDTH * 4 * 7 / 8


def test_a_contracted_axis_is_summed_in_each_layer():
    mesh = sharding.make_mesh(1, 1, 8)
    (found,) = scanned(mesh, P(), P(None, "tensor"), P(None, "tensor"))
    assert (found.kind, found.runs, found.group) == ("all-reduce", LAYERS, 8)
    assert found.bytes == LAYERS * 2 * 32 * WIDTH * 4 * 7 / 8


def test_nothing_is_sent_where_all_is_local():
    assert scanned(sharding.make_mesh(8, 1, 1), P("data"), P("data"), P()) == []


def test_each_branch_of_a_conditional_counts():
    """One branch sends to the next device, the other sums; eight devices, ten rows each."""
    mesh = sharding.make_mesh(8, 1, 1)

    def choose(x):
        ring = [(i, (i + 1) % 8) for i in range(8)]
        return jax.lax.cond(
            x[0, 0] > 0,
            lambda x: jax.lax.ppermute(x, "data", ring),
            lambda x: jax.lax.psum(x, "data"),
            x,
        )

    mapped = jax.shard_map(choose, mesh=mesh, in_specs=P("data"), out_specs=P("data"),
                           check_vma=False)  # fmt: skip
    x = jax.ShapeDtypeStruct((80, WIDTH), jnp.float32)
    found = Program(jax.jit(mapped).lower(x).compile().as_text(), 8).collectives()
    sent = {c.kind: (c.runs, c.bytes) for c in found}
    shard = 10 * WIDTH * 4
    assert sent == {"collective-permute": (1, shard), "all-reduce": (1, 2 * 7 / 8 * shard)}


def test_memory_traffic_follows_the_loop():
    def run(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x).T, x)

    compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((256, 256), jnp.float32)).compile()
    traffic = Program(compiled.as_text(), 1).memory_traffic()
    once = 2 * 256 * 256 * 4
    assert 7 * once <= traffic <= 7 * 3 * once


def test_rows_that_a_loop_reads_and_writes_in_place():
    """64 steps, each of which reads one row of an array and writes one of another."""

    def run(x, rows):
        def step(x, row):
            index, row = row
            return jax.lax.dynamic_update_slice(x, jnp.sin(row)[None], (index, 0)), None

        return jax.lax.scan(step, x, (jnp.arange(64), rows))[0]

    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    rows = jax.ShapeDtypeStruct((64, 128), jnp.float32)
    compiled = jax.jit(run, donate_argnums=0).lower(x, rows).compile()
    moved = Program(compiled.as_text(), 1).memory_traffic()
    assert moved == pytest.approx(64 * 2 * 128 * 4, rel=0.05)


def text_of(*lines: str) -> str:
    """A program of these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\nENTRY %main (x: f32[64,128]) -> f32[64,128] {{\n{body}\n}}\n"


ROW, WHOLE = 128 * 4, 64 * 128 * 4


def test_slices_that_are_not_fused_move_no_more_than_themselves():
    text = text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        "%i = s32[] parameter(1)",
        "%row = f32[1,128]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,128}",
        "ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%x, %row, %i, %i)",
    )
    assert Program(text, 1).memory_traffic() == 2 * ROW + 2 * ROW


def test_what_a_fusion_takes_from_on_chip_memory_is_not_read():
    text = """HloModule m
%fused (x: f32[64,128], y: f32[64,128]) -> f32[64,128] {
  %x = f32[64,128]{1,0} parameter(0)
  %y = f32[64,128]{1,0:S(1)} parameter(1)
  ROOT %z = f32[64,128]{1,0} add(%x, %y)
}

""" + text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        '%y = f32[64,128]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"',
        "ROOT %f = f32[64,128]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused",
    ).removeprefix("HloModule m\n\n")
    assert Program(text, 1).memory_traffic() == 2 * WHOLE


@pytest.mark.parametrize(
    ("inside", "moved"),
    [
        # all of x is read where any other instruction uses it
        ("%n = f32[64,128]{1,0} negate(%x)\n  "
         "ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%n, %row, %i, %i)", 2 * WHOLE + ROW + 4),
        ("ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%x, %row, %i, %i)", 2 * ROW + 4),
        ("%b = f32[64,128]{1,0} bitcast(%x)\n  "
         "ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%b, %row, %i, %i)", 2 * ROW + 4),
        # x is what is written, into an array of its own size
        ("%z = f32[64,128]{1,0} broadcast(%i)\n  "
         "ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%z, %x, %i, %i)", 2 * WHOLE + ROW + 4),
        # what is updated is not what is returned
        ("%u = f32[64,128]{1,0} dynamic-update-slice(%x, %row, %i, %i)\n  "
         "ROOT %y = f32[64,128]{1,0} negate(%u)", 2 * WHOLE + ROW + 4),
        ("%u = f32[64,128]{1,0} dynamic-update-slice(%x, %row, %i, %i)\n  "
         "ROOT %y = f32[64,128]{1,0} bitcast(%u)", 2 * ROW + 4),
        ("%s = f32[1,128]{1,0} dynamic-slice(%x, %i, %i)\n  "
         "ROOT %y = f32[64,128]{1,0} broadcast(%s)", WHOLE + 2 * ROW + 4),
    ],
)  # fmt: skip
def test_what_a_fusion_reads_and_writes(inside, moved):
    text = f"""HloModule m
%fused (x: f32[64,128], row: f32[1,128], i: s32[]) -> f32[64,128] {{
  %x = f32[64,128]{{1,0}} parameter(0)
  %row = f32[1,128]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %r = f32[1,128]{{1,0}} negate(%row)
  {inside}
}}

""" + text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        "%row = f32[1,128]{1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %f = f32[64,128]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused",
    ).removeprefix("HloModule m\n\n")
    assert Program(text, 1).memory_traffic() == moved


def test_copies_to_and_from_on_chip_memory():
    """A prefetch of a slice reads what it takes; a copy inside main memory reads and writes."""
    text = text_of(
        "%x = bf16[64,128]{1,0} parameter(0)",
        "%s = ((bf16[64,128]{1,0}), bf16[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)",
        "%sd = bf16[16,128]{1,0:T(8,128)S(1)} slice-done(%s)",
        "%c = (bf16[64,128]{1,0}, bf16[64,128]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        "ROOT %cd = bf16[64,128]{1,0} copy-done(%c)",
    )
    assert Program(text, 1).memory_traffic() == (16 + 2 * 64) * 128 * 2


# A TPU's text: a loop without a noted bound, an asynchronous gather in three parts that share a
# channel, a fused reduce-scatter, a send to another slice, and arrays in on-chip memory.
TPU = """HloModule jit_step, is_scheduled=true

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(13)
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%started (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[64,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}
}

%awaited (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g.1 = bf16[64,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}
}

%all-reduce-scatter (b: bf16[64,128]) -> bf16[8,128] {
  %b = bf16[64,128]{1,0} parameter(0)
  %r = bf16[64,128]{1,0} all-reduce(%b), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  ROOT %d = bf16[8,128]{1,0} slice(%r), slice={[0:8], [0:128]}
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = bf16[8,128]{1,0} get-tuple-element(%p), index=1
  %start = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%started
  %done = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%awaited
  %y = bf16[8,128]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%next, %y)
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %t = (s32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%one, %x)
  %w = (s32[]{:T(128)}, bf16[8,128]{1,0}) while(%t), condition=%cond, body=%body
  %token = token[] after-all()
  %s = (bf16[8,128]{1,0}, u32[]{:S(2)}, token[]) send(%x, %token), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = bf16[8,128]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_a_tpu_program():
    program = Program(TPU, num_devices=16, num_slices=2)
    found = {c.kind: c for c in program.collectives()}
    assert len(found) == len(program.collectives())  # started and awaited is once
    shard = 8 * 128 * 2
    assert found["all-gather"].runs == 6  # 1, 3, .. 11
    assert found["all-gather"].bytes == 6 * 7 * shard
    assert found["reduce-scatter"].bytes == 6 * 7 / 8 * 8 * shard
    assert not found["all-gather"].crosses
    assert found["all-reduce"].crosses
    assert found["all-reduce"].bytes == shard  # two slices: what one has, to the other
    assert program.unknown_loops() == []


def test_a_loop_whose_bound_is_not_seen_is_named():
    program = Program(TPU.replace("constant(13)", "parameter(1)"), 16, 2)
    assert program.collectives()[0].runs == 1
    assert program.unknown_loops() == ["w"]


def test_an_asynchronous_collective_counts_once():
    """Started and awaited, it sends once; its operand is read and its result written."""
    text = text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        "%p = (f32[64,128]{1,0}, f32[64,128]{1,0}) collective-permute-start(%x), channel_id=1, "
        "source_target_pairs={{0,1},{1,0}}",
        "ROOT %d = f32[64,128]{1,0} collective-permute-done(%p)",
    )
    program = Program(text, 2)
    (found,) = program.collectives()
    assert (found.kind, found.runs, found.bytes) == ("collective-permute", 1, WHOLE)
    assert program.memory_traffic() == 2 * WHOLE


def test_each_loop_over_one_body_counts():
    """A body that two loops share, of which one runs three times and the other five."""
    text = """HloModule m
%body (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %r = f32[64,128]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
}

""" + text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        "%three = f32[64,128]{1,0} while(%x), condition=%c, body=%body, backend_config="
        '{"known_trip_count":{"n":"3"}}',
        "ROOT %five = f32[64,128]{1,0} while(%three), condition=%c, body=%body, backend_config="
        '{"known_trip_count":{"n":"5"}}',
    ).removeprefix("HloModule m\n\n")
    assert sorted(c.runs for c in Program(text, 2).collectives()) == [3, 5]


def test_cycles_and_kernels_of_a_loop_count_as_often_as_it_runs():
    text = """HloModule m
%body (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %n = f32[64,128]{1,0} negate(%p), backend_config={"estimated_cycles":"70"}
  ROOT %r = f32[64,128]{1,0} custom-call(%n), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000"}}}
}

""" + text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        '%y = f32[64,128]{1,0} copy(%x), backend_config={"estimated_cycles":"5"}',
        "ROOT %three = f32[64,128]{1,0} while(%y), condition=%c, body=%body, backend_config="
        '{"known_trip_count":{"n":"3"}}',
    ).removeprefix("HloModule m\n\n")
    assert Program(text, 1).schedule() == Schedule(cycles=215, kernels=3, kernel_flops=3000)


def test_a_collective_inside_an_asynchronous_computation_counts():
    text = """HloModule m
%wrapped (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %r = f32[64,128]{1,0} all-to-all(%p), replica_groups={{0,1,2,3}}
}

""" + text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        "%s = ((f32[64,128]{1,0}), f32[64,128]{1,0}) async-start(%x), calls=%wrapped",
        "ROOT %d = f32[64,128]{1,0} async-done(%s)",
    ).removeprefix("HloModule m\n\n")
    (found,) = Program(text, 4).collectives()
    assert (found.kind, found.bytes) == ("all-to-all", 3 / 4 * WHOLE)


@pytest.mark.parametrize(
    ("groups", "crosses"), [("{{0,1},{2,3}}", False), ("{{0,2},{1,3}}", True), ("{}", True)]
)
def test_a_group_over_two_slices_crosses(groups, crosses):
    text = text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        f"ROOT %r = f32[64,128]{{1,0}} all-reduce(%x), replica_groups={groups}",
    )
    (found,) = Program(text, num_devices=4, num_slices=2).collectives()
    assert found.crosses == crosses


@pytest.mark.slow
def lower_gradient(experiment, mesh, batch_size: int) -> jax.stages.Lowered:
    """The loss of a batch and its gradient, without the optimizer, to be compiled for `mesh`."""
    rin, rows = experiment.rin, sharding.batch_sharding(mesh)

    def split(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), tree)

    images = jax.ShapeDtypeStruct((batch_size, *rin.example_shape), jnp.float32)
    cond = rin.abstract_cond(batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    draws = jax.eval_shape(lambda key: experiment.objective.draw(key, images.shape), key)
    params = abstract_params(rin, mesh)
    places = sharding.replicated(mesh), jax.tree.map(lambda x: x.sharding, params)
    gradient = jax.jit(jax.value_and_grad(make_loss(experiment)), out_shardings=places)
    with sharding.logical_axes(mesh):
        return gradient.lower(params, *split((images, cond, draws)), key)


@pytest.mark.slow
def test_pinned_activations_stay_at_home(monkeypatch):
    """With fsdp alone only weights and gradients travel, so a larger batch sends no more bytes.

    The negative control of the logical axes: without them it does.
    """
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)
    mesh = sharding.make_mesh(1, 8, 1)

    experiment = tiny.experiment(
        model__latent_dim=64, model__interface_dim=64, model__num_blocks=1, model__dropout=0.0,
        model__drop_path=0.0,
    )  # fmt: skip

    def sent(batch_size: int) -> float:
        text = lower_gradient(experiment, mesh, batch_size).compile().as_text()
        return sum(c.bytes for c in Program(text, mesh.size).collectives())

    pinned = sent(64)
    assert pinned == sent(16)
    monkeypatch.setattr(sharding, "LOGICAL_AXES", ())
    assert sent(64) > 2 * pinned


def test_costs_by_the_names_of_the_traced_code():
    """Their sum is all that is moved, and cycles are counted with the name beside them."""
    text = text_of(
        "%x = f32[64,128]{1,0} parameter(0)",
        '%y = f32[64,128]{1,0} negate(%x), metadata={op_name="jit(f)/neg" stack_frame_id=7}, '
        'backend_config={"window_config":{"estimated_cycles":"500"}}',
        '%z = f32[64,128]{1,0} negate(%y), metadata={op_name="jit(f)/neg"}',
        'ROOT %w = f32[64,128]{1,0} copy(%z), backend_config={"estimated_cycles":"20"}',
    )
    program = Program(text, 1)
    assert program.parts() == {"jit(f)/neg": Part(4 * WHOLE, 500), "": Part(2 * WHOLE, 20)}
    assert program.memory_traffic() == 6 * WHOLE
    assert program.schedule().cycles == 520
