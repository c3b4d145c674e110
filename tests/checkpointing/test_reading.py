"""Who reads what of a checkpoint: each part once, and every process the whole state afterwards."""

import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rin_jax.checkpointing import reading
from rin_jax.experiment import make_experiment
from rin_jax.runtime import sharding
from rin_jax.sampling.weights import abstract_params
from tests import xla
from tests.jobs.test_pod import started
from tests.test_configs import load

SPECS = [
    PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "tensor", "fsdp"),
    PartitionSpec(None, None, "tensor"),
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_parts_are_gathered_to_what_was_wanted(sizes):
    mesh = sharding.make_mesh(*sizes)
    x = np.arange(8 * 16 * 24, dtype=np.float32).reshape(8, 16, 24)
    for spec in SPECS:
        place = NamedSharding(mesh, spec)
        wanted = {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)}
        parts = reading.in_parts(wanted)
        assert math.prod(parts["w"].sharding.shard_shape(x.shape)) == x.size // 8
        whole = reading.gather({"w": jax.device_put(x, parts["w"].sharding)}, wanted)["w"]
        assert whole.sharding.is_equivalent_to(place, x.ndim)
        for shard in whole.addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])


def test_what_cannot_be_split_is_read_whole():
    place = NamedSharding(sharding.make_mesh(8, 1, 1), PartitionSpec())
    for shape in ((), (3,), (6, 20)):
        leaf = jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
        assert reading.in_parts(leaf) == leaf


def test_there_are_not_more_parts_than_divide_an_axis(monkeypatch):
    monkeypatch.setattr(reading, "PARTS", 4)
    x, mesh = np.arange(12.0).reshape(4, 3), sharding.make_mesh(8, 1, 1)
    wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh))
    part = reading.in_parts(wanted).sharding
    assert part.shard_shape(x.shape) == (1, 3)
    whole = reading.gather(jax.device_put(x, part), wanted)
    np.testing.assert_array_equal(whole.addressable_data(5), x)


@pytest.mark.parametrize("sizes", [(256, 1, 1), (32, 8, 1), (8, 8, 4)])
def test_64_hosts_of_four_chips_read_little_of_imagenet256(sizes):
    mesh = AbstractMesh(sizes, sharding.AXES)
    wanted = abstract_params(make_experiment(load("imagenet256").get_config()).rin, mesh)
    read = whole = 0
    for leaf in jax.tree.leaves(reading.in_parts(wanted)):
        read += 4 * math.prod(leaf.sharding.shard_shape(leaf.shape))
        whole += math.prod(leaf.shape)
    assert read <= 2 / 64 * whole


READS = """
import json, sys, jax, numpy as np, tensorstore
from pathlib import Path
from rin_jax.checkpointing import checkpoints
from rin_jax.runtime import cluster, processes, sharding

def bytes_read():
    name = "/tensorstore/kvstore/file/bytes_read"
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for metric in found for value in metric["values"])

def tried(folder, sizes):
    mesh, folder = sharding.make_mesh(*sizes), checkpoints.folder(folder)
    put = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda at: x[at])
    places = dict.fromkeys(arrays, sharding.replicated(mesh))
    places["w"] = jax.NamedSharding(mesh, jax.P(None, None, "fsdp"))
    with checkpoints.Checkpoints(folder) as saver:
        saver.save(1, {"params": jax.tree.map(put, arrays, places)}, {})
    (saved,), _ = checkpoints.find(folder)
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays, places
    )
    before = bytes_read()
    loaded = checkpoints.load(saved, {"params": abstract})["params"]
    share = (bytes_read() - before) / sum(x.nbytes for x in arrays.values())
    for name, x in arrays.items():
        for shard in loaded[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])
    processes.agree("read")
    # a process whose part is damaged ends the reading of all
    if jax.process_index() == 0:
        for path in (Path(saved.path) / "params").glob("ocdbt.process_2/d/*"):
            path.write_bytes(path.read_bytes()[:-40000])
    processes.agree("damaged")
    try:
        checkpoints.load(saved, {"params": abstract})
    except checkpoints.DamagedError as error:
        return share, str(error)

rng = np.random.default_rng(0)
arrays = {"w": rng.normal(size=(3, 64, 512)), "v": rng.normal(size=(512, 96)), "b": np.ones(7)}
arrays |= {f"k{i}": rng.normal(size=(8 * i, 64)) for i in range(1, 40)}  # many collectives
arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
with processes.together({}, 60.0, {}, print):
    told = [tried(f"{sys.argv[1]}/{sizes[1]}", sizes) for sizes in ((8, 1, 1), (2, 4, 1))]
    Path(sys.argv[1], f"{jax.process_index()}.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_four_processes_read_a_quarter_each_and_hear_of_damage(tmp_path):
    flags = f"--xla_force_host_platform_device_count=2 {xla.FAST}"
    ends = started(*[["-c", READS, str(tmp_path)]] * 4, XLA_FLAGS=flags)
    assert [code for code, _ in ends] == [0] * 4, ends[0][1]
    told = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(4)]
    for of_mesh in zip(*told, strict=True):
        assert 0.2 < max(share for share, _ in of_mesh) < 2 / 4  # as they are compressed on disk
        assert len({reason for _, reason in of_mesh}) == 1
        assert "it cannot be read" in of_mesh[0][1]
