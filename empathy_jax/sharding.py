"""Meshes, and logical axes to mesh axes: the only file that knows a mesh axis by name.

Parameters and activations name logical axes ("embed", "heads", ...). Ordered rules say over which mesh
axes each is laid out: those of parameters come from the config, those of activations stand here,
because attention and the output head are written for them. The mesh is an Auto mesh: XLA inserts the
communication, except in these two, which run per device (`per_device`) and spell it out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from empathy_jax import hosts, pytree

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")
# "residual" is the length axis of what layers hand on: norms and sums need no other token and no weight
# that is cut over `tensor`, so that they are cut over it as well (https://arxiv.org/abs/2205.05198).
ACTIVATION_RULES = (
    ("batch", BATCH_AXES),
    ("length", ("sequence",)),
    ("residual", ("sequence", "tensor")),
    ("heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor", "fsdp")),
    ("decoded_vocab", ("tensor",)),
)


def make_mesh(sizes: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one of the sizes may be -1, "what is left".

    Args:
      sizes: `config.mesh` with the integers data, fsdp, sequence and tensor.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_shape(sizes: Any, devices: int) -> tuple[int, ...]:
    """The size of each of AXES over so many devices; see `make_mesh`."""
    shape = [sizes[axis] for axis in AXES]
    given = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or min(shape) == 0 or devices % max(given, 1):
        raise ValueError(_mesh_message(shape, devices))
    found = tuple(devices // given if size == -1 else size for size in shape)
    if int(np.prod(found)) != devices:
        raise ValueError(_mesh_message(shape, devices))
    return found


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

    mesh: Mesh | AbstractMesh
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
    return PartitionSpec(*(names or None for names in _mesh_axes(axes, shape, layout)))


def _mesh_axes(
    axes: Sequence[str | None], shape: Sequence[int], layout: Layout
) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension."""
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
        entries.append(tuple(chosen))
    return entries


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


# --- activations ---


def activation_axes(axes: Sequence[str | None], shape: Sequence[int]) -> list[tuple[str, ...]]:
    """The mesh axes that cut each dimension of an activation, by ACTIVATION_RULES.

    They are those of the mesh in use (`jax.set_mesh`) that have several devices.

    Args:
      axes: the logical name of each dimension; None is whole on every device.
      shape: of the activation.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = [name for name, size in mesh.shape.items() if size > 1]
    known = ((axis, tuple(n for n in names if n in cut)) for axis, names in ACTIVATION_RULES)
    return _mesh_axes(axes, shape, Layout(mesh, tuple(known)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, laid out by ACTIVATION_RULES; on one device, or without a mesh, as it is."""
    if not is_distributed():
        return x
    spec = PartitionSpec(*(names or None for names in activation_axes(axes, x.shape)))
    return jax.lax.with_sharding_constraint(x, spec)


def is_distributed() -> bool:
    """Whether the mesh in use has several devices."""
    return jax.sharding.get_abstract_mesh().size > 1


def is_length_cut(rows: int, length: int) -> bool:
    """Whether the mesh in use cuts the length axis of the layers' inputs [rows, length, ...]."""
    return parts(activation_axes(("batch", "residual"), (rows, length))[1]) > 1


def parts(names: Sequence[str]) -> int:
    """Into how many parts axes of the mesh in use cut a dimension."""
    shape = jax.sharding.get_abstract_mesh().shape
    return int(np.prod([shape[name] for name in names], dtype=int))


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's part of its arguments, on the mesh in use.

    What it returns where `out_specs` name no mesh axis must be the same on all devices.
    """
    # The check for that does not know of kernels.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def row_parts() -> int:
    """Devices that hold different rows of a batch, on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return parts([axis for axis in BATCH_AXES if axis in mesh.shape])


# --- batches ---


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


def check_length(length: int, mesh: Mesh, what: str) -> None:
    """Refuse rows of tokens that attention cannot deal evenly over the sequence axis.

    Args:
      length: tokens of a row.
      mesh: the mesh.
      what: the field that says so, for the message.
    """
    pieces = 2 * mesh.shape["sequence"]
    if pieces > 2 and length % pieces:
        raise ValueError(
            f"{what} is {length}; it must be a multiple of {pieces}, two pieces for each device of "
            "config.mesh.sequence"
        )
