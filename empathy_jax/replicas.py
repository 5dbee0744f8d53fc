"""A copy of a model on each process's own devices, for work that processes do apart.

Generation goes token by token: over a network every token would wait for weights or for activations.
So each process gathers the weights once, in the layout that the rules give its own devices, and makes
its share of the completions with no word to the others. Weights that lie whole within each process
already are used where they are.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from empathy_jax import hosts, sharding
from empathy_jax.sharding import Layout


def own_copy(
    variables: dict[str, Any], table: Sequence[Any], layout: Layout
) -> tuple[dict[str, Any], Mesh]:
    """Variables on this process's devices alone, and the mesh of these; collective.

    Args:
      variables: collections of arrays over all devices.
      table: the architecture's parameter table.
      layout: that they have.
    """
    everyone, own = _meshes(layout.mesh)
    wanted = {
        name: sharding.param_shardings(tree, table, Layout(own, layout.rules))
        for name, tree in variables.items()
    }

    def copy(leaf: jax.Array, place: NamedSharding) -> jax.Array:
        target = NamedSharding(everyone, place.spec)
        if leaf.sharding.devices_indices_map(leaf.shape) != target.devices_indices_map(leaf.shape):
            leaf = jax.device_put(leaf, target)
        shards = {shard.device: shard.data for shard in leaf.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            leaf.shape, place, [shards[device] for device in own.devices.flat]
        )

    return jax.tree.map(copy, variables, wanted), own


def _meshes(mesh: Mesh) -> tuple[Mesh, Mesh]:
    """All devices as process x axes of the mesh, and those of this process as axes of the mesh."""
    by_process = [
        [device for device in mesh.devices.flat if device.process_index == process]
        for process in range(hosts.count())
    ]
    left, shape = len(by_process[0]), []
    # The innermost axes, whose devices speak most, stay together.
    for size in reversed(mesh.devices.shape[1:]):
        shape.insert(0, math.gcd(size, left))
        left //= shape[0]
    shape = (left, *shape)
    devices = np.array(by_process).reshape(hosts.count(), *shape)
    everyone = Mesh(
        devices, ("process", *mesh.axis_names), axis_types=(AxisType.Auto,) * devices.ndim
    )
    own = Mesh(
        devices[hosts.index()], mesh.axis_names, axis_types=(AxisType.Auto,) * (devices.ndim - 1)
    )
    return everyone, own
