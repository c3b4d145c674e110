"""How several processes read the arrays of a checkpoint: each byte about once in all of them.

An array of which several devices hold the same is saved in parts: Orbax splits it along the first
axis that the number of copies divides, and each device writes one of the parts. Reading goes the
same way back: each device reads its part, and the devices give each other the others. An array that
cannot be split so is written by one process and read by every one.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PARTS = 512  # of an array at most: more would divide fewer axes


def in_parts(abstract: Any) -> Any:
    """Shapes as they are read: of an array that devices share with others each has a part.

    `abstract` has the shardings of parameters, averages and moments, which never use the axis
    `data`.
    """
    return jax.tree.map(_part, abstract)


def gather(loaded: Any, abstract: Any) -> Any:
    """Arrays that were read in parts, laid out as the shapes in `abstract` say.

    One program for all of them: the collectives of several could wait for each other for ever.
    """
    arrays, tree = jax.tree.flatten(loaded)
    places = [leaf.sharding for leaf in jax.tree.leaves(abstract)]
    split = {
        i: x for i, x in enumerate(arrays) if not x.sharding.is_equivalent_to(places[i], x.ndim)
    }
    if not split:
        return loaded
    whole = jax.jit(lambda x: x, out_shardings={i: places[i] for i in split})(split)
    return tree.unflatten([whole.get(i, x) for i, x in enumerate(arrays)])


def _part(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape, spec = leaf.sharding.shard_shape(leaf.shape), list(leaf.sharding.spec)
    mesh, used = _reading_mesh(leaf.sharding.mesh), jax.tree.leaves(spec)
    shared = tuple(name for name in mesh.axis_names if name not in (*used, "copies"))
    copies = math.prod(mesh.shape[name] for name in shared)
    axis = next((axis for axis, size in enumerate(shape) if size % copies == 0), None)
    if axis is None:
        return leaf
    spec += [None] * (len(shape) - len(spec))
    spec[axis] = (*jax.tree.leaves(spec[axis]), *shared)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _reading_mesh(mesh: Mesh) -> Mesh:
    """The mesh; with more than PARTS along `data` their multiples are the axis `copies`."""
    data = mesh.shape["data"]
    if data <= PARTS or data % PARTS:
        return mesh
    devices = mesh.devices.reshape(data // PARTS, PARTS, *mesh.devices.shape[1:])
    return Mesh(devices, ("copies", *mesh.axis_names))
