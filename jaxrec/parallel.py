"""The device mesh, and the one table that says how named axes lie on it.

This is the only file that builds a mesh. Networks name the axes of their parameters (`embed`,
`heads`, ...) and never the mesh; the table below maps those names to mesh axes, so a change of
parallelism is a change of the table. One device is a mesh of one: there is no second code path.

The idea of a rules table is that of `jax-ml/jax-llm-examples` (`ShardingRules`) and t5x.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec.types import PyTree

MESH_AXES = ("data", "fsdp", "tensor", "expert")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # rows of a batch
    "embed": ("fsdp",),  # model width of a parameter
    "mlp": ("tensor",),  # feed-forward width
    "heads": ("tensor",),  # query heads
    "kv_heads": ("tensor",),  # key and value heads
    "vocab": ("tensor",),  # rows of an embedding table, codes of an output layer
    "experts": ("expert",),  # experts of a mixture
}
"""Logical axis -> mesh axes. An axis that is not named here is replicated."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices each axis of parallelism gets. At most one axis may be -1: "the rest".

    Raises:
        ValueError: two axes are -1, or an axis is 0 or less than -1.
    """

    data: int = -1
    """Replicas of the model, each with its own rows."""
    fsdp: int = 1
    """Shards of parameters and optimizer state; rows are split over them too."""
    tensor: int = 1
    """Shards of heads and feed-forward width."""
    expert: int = 1
    """Shards of experts."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise ValueError(
                f"mesh {dict(zip(MESH_AXES, sizes))} is impossible: every axis is a positive "
                "number, and at most one may be -1 (the devices that are left). Change the mesh."
            )

    def resolve(self, devices: int) -> tuple[int, ...]:
        """Sizes in the order of `MESH_AXES` for this many devices.

        Raises:
            ValueError: the sizes do not multiply to the number of devices.
        """
        sizes = list(dataclasses.astuple(self))
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
        if math.prod(sizes) != devices:
            raise ValueError(
                f"mesh {dict(zip(MESH_AXES, dataclasses.astuple(self)))} does not fit "
                f"{devices} device(s): the sizes must multiply to {devices}. Change the mesh or "
                "leave one axis at -1."
            )
        return tuple(sizes)


def make_mesh(shape: MeshShape | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh, Auto-typed, over all devices unless told which.

    Args:
        shape: devices per axis; all of them on `data` by default.
        devices: devices to use, of this or of a described topology.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = (shape or MeshShape()).resolve(len(devices))
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Mapping = RULES,
) -> PartitionSpec:
    """Translates logical axes into a partition spec.

    An axis whose length the mesh axes do not divide is replicated (a single key-value head cannot
    be split); `doctor` prints the resulting table.

    Args:
        axes: logical name of each axis of the array, or None.
        shape: its lengths.

    Raises:
        ValueError: two axes of one array claim the same mesh axis, or the ranks differ.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {tuple(axes)} name {len(axes)} axes of an array of {tuple(shape)}.")
    spec, taken = [], set()
    for axis, length in zip(axes, shape):
        mesh_axes = tuple(name for name in rules.get(axis or "", ()) if mesh.shape[name] > 1)
        if math.prod(mesh.shape[name] for name in mesh_axes) > 1 and length % math.prod(
            mesh.shape[name] for name in mesh_axes
        ):
            mesh_axes = ()
        if taken & set(mesh_axes):
            raise ValueError(
                f"axes {tuple(axes)} put two axes of one array on mesh axis "
                f"{sorted(taken & set(mesh_axes))}; give one of them another logical name."
            )
        taken |= set(mesh_axes)
        spec.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
    return PartitionSpec(*spec)


def shardings(axes: PyTree, shapes: PyTree, mesh: Mesh) -> PyTree:
    """Named shardings of a tree of arrays.

    Args:
        axes: the same tree with a tuple of logical axis names at each leaf.
        shapes: the tree of arrays or `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)),
        shapes,
        axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def rows_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch: its rows (axis 0 unless told) split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, RULES["batch"]))


def shard_rows(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Makes global arrays from this host's rows of a batch.

    Args:
        batch: numpy arrays of which one axis holds this host's rows.
        axis: that axis; 1 for batches that are stacked for several steps.

    Raises:
        ValueError: the rows do not divide over the devices.
    """
    sharding = rows_sharding(mesh, axis)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    hosts = jax.process_count()
    for array in jax.tree.leaves(batch):
        rows = array.shape[axis] * hosts
        if rows % parts:
            raise ValueError(
                f"a batch of {rows} rows does not divide over data x fsdp = {parts} devices; "
                f"use a multiple of {parts} rows."
            )
    if hosts == 1:
        # One call for the whole batch: the cost of placing small arrays is the cost of the calls.
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
    )


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an intermediate array by logical axis names.

    Does nothing outside a mesh, so research code may call the networks bare.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes, array.shape, mesh))
