"""Meshes, and logical axes to mesh axes: the only file that knows a mesh axis by name.

Parameters and modules name logical axes ("embed", "heads", ...); ordered rules from the config say
over which mesh axes each is laid out. The mesh is an Auto mesh: XLA inserts the communication.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from empathy_jax import hosts, pytree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one of the sizes may be -1, "what is left".

    Args:
      sizes: `config.mesh` with the integers data, fsdp and tensor.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    given = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or min(shape) == 0 or len(devices) % max(given, 1):
        raise ValueError(_mesh_message(shape, len(devices)))
    shape = [len(devices) // given if size == -1 else size for size in shape]
    if int(np.prod(shape)) != len(devices):
        raise ValueError(_mesh_message(shape, len(devices)))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _mesh_message(shape: Sequence[int], devices: int) -> str:
    named = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    return f"{named} do not fit {devices} devices: their product must be {devices} (one may be -1)"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules by which arrays are laid out on it.

    Attributes:
      mesh: of `make_mesh`.
      rules: `config.mesh.rules`, ordered pairs of a logical axis and the mesh axes that cut it.
    """

    mesh: Mesh
    rules: tuple[tuple[str, Any], ...]


def make_layout(config: Any) -> Layout:
    """The layout that `config.mesh` describes, over all devices."""
    mesh = make_mesh(config)
    hosts.connect(mesh)
    return Layout(mesh, tuple(tuple(rule) for rule in config.rules))


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], layout: Layout
) -> PartitionSpec:
    """The first rule that names a logical axis decides; a mesh axis serves one dimension at most.

    A dimension that its mesh axes do not divide evenly is replicated over them.
    """
    targets = dict(reversed(layout.rules))
    used: set[str] = set()
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        target = targets.get(axis, ())
        chosen: list[str] = []
        for name in (target,) if isinstance(target, str) else target:
            parts = int(np.prod([layout.mesh.shape[n] for n in (*chosen, name)]))
            if name not in used and size % parts == 0:
                chosen.append(name)
        used.update(chosen)
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def param_shardings(params: Any, table: Sequence[Any], layout: Layout) -> Any:
    """A NamedSharding per parameter, from the parameter table's logical axes.

    Args:
      params: the (abstract) parameter tree.
      table: the architecture's parameter table (`models.decoder.param_table` or the encoder's).
      layout: mesh and rules.

    Leaves that the table does not list (adapters) are replicated.
    """
    axes = {spec.path: spec.axes for spec in table}
    return pytree.unflatten_paths(
        {
            path: NamedSharding(
                layout.mesh,
                partition_spec(axes[path], leaf.shape, layout) if path in axes else PartitionSpec(),
            )
            for path, leaf in pytree.flatten_paths(params).items()
        }
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Moments are laid out like their parameters; counters are replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: replicated,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices that hold different data."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` cuts the leading axis."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_rows(rows: int, mesh: Mesh, what: str) -> None:
    """Refuse a leading axis that `batch_sharding` cannot cut evenly.

    Args:
      rows: its length.
      mesh: the mesh.
      what: the fields that make it, for the message.
    """
    parts = batch_parts(mesh)
    if rows % parts:
        raise ValueError(
            f"{what} is {rows}; it must be a multiple of {parts}, the devices that hold different "
            "data (config.mesh.data x config.mesh.fsdp)"
        )
