"""The sharding rule, alone."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rin_jax import sharding


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((64, 256), 1, PartitionSpec()),
        ((64, 256), 8, PartitionSpec(None, "fsdp")),
        ((256, 64), 8, PartitionSpec("fsdp")),
        ((64, 64), 8, PartitionSpec(None, "fsdp")),  # the last of equals
        ((1021, 8), 8, PartitionSpec(None, "fsdp")),  # 1021 does not divide
        ((1021, 3), 8, PartitionSpec()),
        ((8,), 8, PartitionSpec()),  # too small
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, fsdp, spec):
    assert sharding.parameter_spec(shape, fsdp) == spec


def test_a_global_batch_keeps_its_rows():
    mesh = sharding.make_mesh(2, 4)
    rows = np.arange(16, dtype=np.int32)
    batch = sharding.global_batch({"label": rows}, mesh)["label"]
    np.testing.assert_array_equal(batch, rows)
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2,)] * jax.device_count()


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
        mesh = sharding.make_mesh(8, 1)

        def devices_indices_map(self, shape):
            return {
                Device(owner): (slice(2 * row, 2 * row + 2),)
                for row, line in enumerate(owners)
                for owner in line
            }

    assert [sharding.batch_part(Rows(), p) for p in range(len(expected))] == expected
