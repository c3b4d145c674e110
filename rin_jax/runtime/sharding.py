"""The device mesh and what is sharded over it.

Three axes. `data` and `fsdp` split the batch; `fsdp` splits parameters, their averages and the
optimizer's moments as well; `tensor` splits heads and hidden units. On several TPU slices `data`
spans the slices, over their data-centre network, and the other two stay inside one.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rin_jax import ConfigError

AXES = ("data", "fsdp", "tensor")

# The one table: logical axis of an activation or parameter -> mesh axes. An axis without a row
# (tokens, width, head) is whole on every device.
LOGICAL_AXES = (("batch", ("data", "fsdp")), ("heads", "tensor"), ("hidden", "tensor"))

BATCH = PartitionSpec(dict(LOGICAL_AXES)["batch"])  # the leading axis of a batch
SMALLEST_SHARDED = 2**16  # parameters with fewer elements in a layer are replicated


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """The section `mesh` of a configuration: sizes of the axes; one may be -1, for the rest."""

    data: int  # parts of a batch, and copies of everything else
    fsdp: int  # parts of a batch, and of parameters, averages and moments
    tensor: int  # parts of heads and hidden units


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """A mesh over all devices, or those given; ConfigError if its axes do not fit them.

    The sizes are those of MeshSizes.
    """
    devices = jax.devices() if devices is None else devices
    sizes, num_devices = (data, fsdp, tensor), len(devices)
    free, fixed = sizes.count(-1), math.prod(size for size in sizes if size != -1)
    fits = fixed == num_devices or (free and fixed and num_devices % fixed == 0)
    if free > 1 or not all(size >= 1 or size == -1 for size in sizes) or not fits:
        raise ConfigError(
            f"mesh.data {data} x mesh.fsdp {fsdp} x mesh.tensor {tensor} does not cover "
            f"{num_devices} devices; set one of them to -1 to infer it, the others to numbers "
            "whose product divides the devices: --config.mesh.data=-1 --config.mesh.fsdp=1 "
            "--config.mesh.tensor=1 fits any."
        )
    sizes = tuple(num_devices // fixed if size == -1 else size for size in sizes)
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return Mesh(arrange(devices, sizes), AXES, axis_types=auto)


def arrange(devices: list, sizes: tuple[int, int, int]) -> np.ndarray:
    """Devices in an array of `sizes`: neighbours on the torus, slices along `data`."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = sizes
    if data % slices:
        raise ConfigError(
            f"mesh.data {data} is not a multiple of the {slices} slices; fsdp {fsdp} and tensor "
            f"{tensor} stay inside a slice, so set mesh.data to a multiple of {slices} (or -1)."
        )
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


@contextlib.contextmanager
def logical_axes(mesh: Mesh) -> Iterator[None]:
    """While a program is traced here, the network's activations are pinned to `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
        yield


def parameter_spec(
    axes: tuple[str | None, ...], stacked: int, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """The spec of a parameter, its average or its moment.

    `axes` are logical names of the axes of `shape`; the first `stacked` of them stack layers. Heads
    and hidden units go to `tensor`. `fsdp` splits the largest other axis that it divides (the last
    of equals), never a stack of layers, which a scan runs along. Biases and norm scales are
    replicated: gathering them layer by layer would cost more than the memory is worth.
    """
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape[stacked:]) < SMALLEST_SHARDED:
        return PartitionSpec()
    for axis, name in enumerate(axes):
        mesh_axis = dict(LOGICAL_AXES).get(name)
        if mesh_axis and mesh.shape[mesh_axis] > 1 and shape[axis] % mesh.shape[mesh_axis] == 0:
            spec[axis] = mesh_axis
    fsdp = mesh.shape["fsdp"]
    unsplit = [axis for axis in range(stacked, len(shape)) if spec[axis] is None]
    free = [(shape[axis], axis) for axis in unsplit if shape[axis] % fsdp == 0]
    if free and fsdp > 1:
        spec[max(free)[1]] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over `data` and `fsdp`; the same rows on all of `tensor`."""
    return NamedSharding(mesh, BATCH)


def batch_shards(mesh: Mesh) -> int:
    """Parts into which a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def batch_part(rows: NamedSharding, process_index: int) -> tuple[int, int]:
    """(i, n): the devices of a process hold the i-th of n equal parts of a batch.

    Processes whose devices hold the same rows, as those of one tensor axis do, have the same part.
    """
    size = rows.mesh.size
    parts: dict[int, set[int]] = {}
    for device, (part,) in rows.devices_indices_map((size,)).items():
        parts.setdefault(device.process_index, set()).update(range(size)[part])
    first = sorted({min(part) for part in parts.values()})
    own = parts[process_index]
    if len(own) * len(first) != size:
        raise ConfigError(
            "the mesh divides a batch unevenly among the processes; let the product of mesh.data "
            "and mesh.fsdp be a multiple or a divisor of their number."
        )
    return first.index(min(own)), len(first)
