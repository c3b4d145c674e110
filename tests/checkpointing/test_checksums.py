"""Checksums: any changed bit is seen, and how an array is sharded is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rin_jax.checkpointing import checksums
from rin_jax.runtime import sharding


def exact(x: np.ndarray) -> int:
    """The definition, in Python's integers."""
    bits = x.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
    terms = ((2 * i + 1) * checksums.ODD * int(b) for i, b in enumerate(bits))
    return sum(terms) % 2**32


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2)])
def test_the_definition(dtype, shape):
    x = np.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    assert int(checksums.checksum(jnp.asarray(x))) == exact(x)


def test_any_flipped_bit_is_seen():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 11)).astype(np.float32)
    before = int(checksums.checksum(jnp.asarray(x)))
    for place in rng.choice(x.size * 32, 200, replace=False):
        bits = x.copy().reshape(-1).view(np.uint32)
        bits[place // 32] ^= np.uint32(1 << int(place % 32))
        changed = bits.view(np.float32).reshape(x.shape)
        assert int(checksums.checksum(jnp.asarray(changed))) != before


def test_exchanged_elements_are_seen():
    x = np.arange(12, dtype=np.float32)
    y = x.copy()
    y[[2, 7]] = y[[7, 2]]
    assert int(checksums.checksum(jnp.asarray(x))) != int(checksums.checksum(jnp.asarray(y)))


def test_the_same_on_any_mesh():
    x = np.random.default_rng(2).normal(size=(8, 16)).astype(np.float32)
    for mesh in (sharding.make_mesh(1, 1, 1, jax.devices()[:1]), sharding.make_mesh(2, 2, 2)):
        for spec in (PartitionSpec(), PartitionSpec("fsdp", "tensor"), PartitionSpec("data")):
            array = jax.device_put(x, NamedSharding(mesh, spec))
            assert int(checksums.checksum(array)) == exact(x)


def test_leaves_are_named_by_their_path():
    tree = {"params": {"stem": {"kernel": jnp.ones(3)}}, "opt_state": (jnp.zeros(2),)}
    found = checksums.tree_checksums(tree)
    assert set(found) == {"params/stem/kernel", "opt_state/0"}
    assert found["opt_state/0"] == 0 != found["params/stem/kernel"]


def test_one_program_for_all_leaves_of_a_part_and_parts_of_its_shapes():
    parts = [{f"w{i}": jnp.full((i + 1,), i + k, jnp.float32) for i in range(20)} for k in range(3)]
    before = checksums._checksums._cache_size()
    found = checksums.tree_checksums(dict(zip("abc", parts, strict=True)))
    assert checksums._checksums._cache_size() == before + 1
    assert found == {
        f"{part}/{name}": exact(np.asarray(leaf))
        for part, leaves in zip("abc", parts, strict=True)
        for name, leaf in leaves.items()
    }


def test_the_arrays_of_a_tree_are_taken_in_groups(monkeypatch):
    """On a CPU a program holds as much memory as its arrays; so no program has all of them."""
    tree = {"a": jnp.arange(64.0), "b": {"c": jnp.ones(3), "d": jnp.arange(8.0)}, "e": jnp.ones(1)}
    whole = checksums.tree_checksums(tree)
    assert whole == {
        path: exact(np.asarray(leaf))
        for path, leaf in (("a", tree["a"]), ("b/c", tree["b"]["c"]), ("b/d", tree["b"]["d"]),
                           ("e", tree["e"]))
    }  # fmt: skip
    monkeypatch.setattr(checksums, "GROUP_BYTES", 46)
    leaves = jax.tree.leaves(tree)
    assert [len(group) for group in checksums._groups(leaves)] == [1, 2, 1]
    assert checksums.tree_checksums(tree) == whole
    assert checksums.tree_checksums({}) == {}
