"""The device mesh and what is sharded over it.

Two axes: `data` splits the batch; `fsdp` splits the batch and also parameters, their averages
and the optimizer's moments, each along its largest axis that divides.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)  # the leading axis of a batch, over all devices
SMALLEST_SHARDED = 2**10  # arrays with fewer elements are replicated


def mesh_shape(data: int, fsdp: int, num_devices: int) -> tuple[int, int]:
    """Sizes of (data, fsdp); one of them may be -1 for "the rest".

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or fixed < 1 or num_devices % fixed or (not free and fixed != num_devices):
        raise ValueError(
            f"mesh.data {data} x mesh.fsdp {fsdp} does not cover {num_devices} devices; set one "
            "of them to -1 to infer it."
        )
    sizes |= dict.fromkeys(free, num_devices // fixed)
    return sizes["data"], sizes["fsdp"]


def make_mesh(data: int, fsdp: int, devices: list | None = None) -> Mesh:
    """A mesh over all devices, or over those given."""
    devices = jax.devices() if devices is None else devices
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(
        mesh_shape(data, fsdp, len(devices)), AXES, axis_types=auto, devices=devices
    )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The largest axis that `fsdp` divides is split (the last of equals); small arrays are not."""
    if fsdp == 1 or np.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    candidates = [(size, axis) for axis, size in enumerate(shape) if size % fsdp == 0]
    if not candidates:
        return PartitionSpec()
    axis = max(candidates)[1]
    return PartitionSpec(*(None,) * axis, "fsdp")


def state_sharding(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of a pytree of shaped leaves: one rule for parameters, averages and moments."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), abstract
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays from this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
    )


def from_every_process(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """A global array sharded like a batch, from the whole of it in each process."""
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda part: rows[part])


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
        raise ValueError(
            "the mesh divides a batch unevenly among the processes; let the product of mesh.data "
            "and mesh.fsdp be a multiple or a divisor of their number."
        )
    return first.index(min(own)), len(first)
