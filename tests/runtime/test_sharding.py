"""The mesh, the sharding rule and the logical axes, alone."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rin_jax.network import partitioning
from rin_jax.runtime import sharding
from rin_jax.training.state import abstract_state
from tests import tiny

QUERY = ("blocks_0", "compute", "attention", "query", "kernel")


@pytest.fixture(autouse=True)
def _small_arrays_count(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 64)


@pytest.mark.parametrize(
    ("path", "shape", "sizes", "spec"),
    [
        (("label", "kernel"), (64, 256), (8, 1, 1), P()),
        (("label", "kernel"), (64, 256), (1, 8, 1), P(None, "fsdp")),
        (("label", "kernel"), (256, 64), (1, 8, 1), P("fsdp")),
        (("label", "kernel"), (64, 64), (1, 8, 1), P(None, "fsdp")),  # the last of equals
        (("label", "kernel"), (1021, 8), (1, 8, 1), P(None, "fsdp")),  # 1021 does not divide
        (("label", "kernel"), (1021, 3), (1, 8, 1), P()),
        (("label", "bias"), (8,), (1, 8, 1), P()),  # too small
        (QUERY, (2, 64, 32, 4, 8), (1, 8, 1), P(None, None, "fsdp")),  # no stack of layers
        (QUERY, (2, 2, 32, 4, 8), (2, 2, 2), P(None, None, "fsdp", "tensor")),
        (QUERY, (2, 2, 32, 3, 8), (2, 2, 2), P(None, None, "fsdp")),  # 3 heads on 2
        (("read", "attention", "out", "kernel"), (4, 8, 64), (1, 2, 4), P("tensor", None, "fsdp")),
        (("mlp", "ffn", "hidden", "kernel"), (64, 256), (1, 2, 4), P("fsdp", "tensor")),
        (("mlp", "ffn", "out", "kernel"), (256, 64), (1, 2, 4), P("tensor", "fsdp")),
        (("readout", "out", "kernel"), (64, 48), (1, 2, 4), P("fsdp")),  # no heads, no hidden
    ],
)
def test_the_rule(path, shape, sizes, spec):
    mesh = SimpleNamespace(shape=dict(zip(sharding.AXES, sizes, strict=True)))
    axes = partitioning.logical_axes(path, len(shape))
    stacked = partitioning.stacked_axes(path)
    assert sharding.parameter_spec(axes, stacked, shape, mesh) == spec


def test_every_large_parameter_and_its_moments_are_split_alike():
    experiment = tiny.experiment(model__latent_dim=64, model__interface_dim=64)
    mesh = sharding.make_mesh(1, 4, 2)
    state = abstract_state(experiment, mesh)
    split = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        size, shard = np.prod(leaf.shape), np.prod(leaf.sharding.shard_shape(leaf.shape))
        parts = {key.key for key in path}
        if size >= sharding.SMALLEST_SHARDED and "kernel" in parts:
            heads_or_hidden = parts & {"attention", "ffn"}
            assert size / shard == (8 if heads_or_hidden else 4), (path, leaf.sharding)
            split += 1
    assert split > 20
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    adam = jax.tree.leaves(places.opt_state, is_leaf=lambda s: hasattr(s, "mu"))[0]
    assert places.params == places.emas["decay_0.9"] == adam.mu == adam.nu


def test_a_global_batch_keeps_its_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    rows = np.arange(16, dtype=np.int32)
    batch = sharding.global_batch({"label": rows}, mesh)["label"]
    np.testing.assert_array_equal(batch, rows)
    assert [shard.data.shape for shard in batch.addressable_shards] == [(4,)] * jax.device_count()


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([[0, 0], [1, 1], [2, 2], [3, 3]], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([[0, 1], [0, 1], [2, 3], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # tensor over two
        ([[0, 0], [1, 1], [1, 1], [0, 0]], [(0, 2), (1, 2)]),  # the devices' own order
        ([[0, 0], [0, 0], [0, 0], [0, 0]], [(0, 1)]),
    ],
)
def test_each_process_reads_what_its_devices_hold(owners, expected):
    """Meshes of four rows, each split over nothing by the second axis."""

    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    class Rows:
        mesh = sharding.make_mesh(8, 1, 1)

        def devices_indices_map(self, shape):
            return {
                Device(owner): (slice(2 * row, 2 * row + 2),)
                for row, line in enumerate(owners)
                for owner in line
            }

    assert [sharding.batch_part(Rows(), p) for p in range(len(expected))] == expected


def tpus(slices: int, side: int = 2) -> list:
    """Stand-ins for the chips of v5e slices of side x side."""
    return [
        SimpleNamespace(
            platform="tpu", device_kind="TPU v5 lite", slice_index=s, coords=(x, y, 0),
            core_on_chip=0, process_index=s, id=s * side * side + y * side + x,
        )
        for s in range(slices)
        for y in range(side)
        for x in range(side)
    ]  # fmt: skip


def test_slices_lie_along_data():
    grid = sharding.arrange(tpus(2), (2, 4, 1))
    assert [{device.slice_index for device in row.flat} for row in grid] == [{0}, {1}]
    grid = sharding.arrange(tpus(2), (4, 1, 2))
    assert [{device.slice_index for device in row.flat} for row in grid] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match=r"mesh.data 1 is not a multiple of the 2 slices"):
        sharding.arrange(tpus(2), (1, 8, 1))


def test_a_slice_is_cut_where_its_torus_has_no_such_axis():
    grid = sharding.arrange(tpus(1, side=4), (2, 8, 1))
    assert len({device.id for device in grid.flat}) == 16
