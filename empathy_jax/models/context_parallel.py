"""Attention on a mesh: every device its own rows, heads and queries.

Where the length axis is cut, a device has some of the queries and, gathered, all keys and values: with
grouped heads these are the smaller part, and what they cost is linear in the length. (Llama 3,
https://arxiv.org/abs/2407.21783, section 3.3.2, does the same.)

Under a causal mask the last queries have the most to see. So the row is cut into 2n pieces for n devices,
and device d takes the pieces d and 2n - 1 - d, which come to the same for all:

```
pieces          0 1 2 3 4 5 6 7
where they lie  0 0 1 1 2 2 3 3
who takes them  0 1 2 3 3 2 1 0
```

B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from empathy_jax import sharding
from empathy_jax.models.masks import SegmentMask
from empathy_jax.types import Array, Int


@dataclasses.dataclass(frozen=True)
class Balanced:
    """How causal queries are dealt: to device d of `parts` the pieces d and 2 · parts - 1 - d of a row.

    Attributes:
        axis: the mesh axes over which they are dealt.
        parts: devices of these.
        before: keys that stand before the first query of the row.
    """

    axis: tuple[str, ...]
    parts: int
    before: int

    def order(self, length: int) -> np.ndarray:
        """Place of each query of each device among all keys, Int[parts, T / parts].

        Args:
            length: queries of one device.
        """
        device, piece = np.arange(self.parts)[:, None], np.arange(length // 2)
        first = self.before + device * (length // 2) + piece
        last = self.before + (2 * self.parts - 1 - device) * (length // 2) + piece
        return np.concatenate([first, last], axis=1).astype(np.int32)

    def index(self, length: int) -> Int[Array, "T"]:
        """The row of `order` that is this device's."""
        return jnp.asarray(self.order(length))[self.device()]

    def device(self) -> Int[Array, ""]:
        """Which of `parts` this device is."""
        return jax.lax.axis_index(self.axis)


Kernel = Callable[[Array, Array, Array, SegmentMask, Balanced | None], Array]


def on_mesh(kernel: Kernel, q: Array, k: Array, v: Array, mask: SegmentMask) -> Array:
    """`attention` by a kernel that works on one device.

    Args:
        kernel: takes q, k, v and the mask of a device; and how the queries were dealt, or None where
            they stand side by side, the last at the last key if the mask is causal.
        q, k, v, mask: see `attention`; a dimension that the mesh does not divide is not cut.
    """
    if not sharding.is_distributed():
        return kernel(q, k, v, mask, None)
    rows, length, heads, _ = sharding.activation_axes(("batch", "length", "heads", None), q.shape)
    k, v, heads = _heads_to_cut(k, v, heads)
    parts = sharding.parts(length)
    if mask.is_causal and q.shape[1] % (2 * parts):
        length, parts = (), 1
    balanced = None
    if mask.is_causal and parts > 1:
        balanced = Balanced(length, parts, k.shape[1] - q.shape[1])

    def of_device(q: Array, k: Array, v: Array, mask: SegmentMask) -> Array:
        if balanced is None:
            return kernel(q, k, v, mask, None)
        dealt = dataclasses.replace(mask, queries=_deal(mask.queries, balanced))
        return _collect(kernel(_deal(q, balanced), k, v, dealt, balanced), balanced)

    rows, places, heads = rows or None, length or None, heads or None
    of_queries = PartitionSpec(rows, places, heads, None)
    of_keys = PartitionSpec(rows, None, heads, None)
    of_mask = SegmentMask(PartitionSpec(rows, places), PartitionSpec(rows, None), mask.is_causal)
    in_specs = (of_queries, of_keys, of_keys, of_mask)
    return sharding.per_device(of_device, in_specs, of_queries)(q, k, v, mask)


def _heads_to_cut(
    k: Array, v: Array, heads: tuple[str, ...]
) -> tuple[Array, Array, tuple[str, ...]]:
    """Keys and values with as many heads as the mesh can cut: repeated where there are too few.

    Where neither number divides the other the heads stay whole.
    """
    parts, kv_heads = sharding.parts(heads), k.shape[2]
    if kv_heads % parts == 0:
        return k, v, heads
    if parts % kv_heads:
        return k, v, ()
    repeats = parts // kv_heads
    return jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2), heads


def _deal(x: Array, balanced: Balanced) -> Array:
    """A device's two neighbouring pieces of axis 1 for the two that it takes, the earlier first."""
    firsts, seconds = _routes(balanced.parts)
    first, second = jnp.split(x, 2, axis=1)
    first = jax.lax.ppermute(first, balanced.axis, firsts)
    second = jax.lax.ppermute(second, balanced.axis, seconds)
    return jnp.concatenate(_in_turn(first, second, balanced), axis=1)


def _collect(x: Array, balanced: Balanced) -> Array:
    """The inverse of `_deal`."""
    firsts, seconds = ([(to, of) for of, to in route] for route in _routes(balanced.parts))
    first, second = _in_turn(*jnp.split(x, 2, axis=1), balanced)
    first = jax.lax.ppermute(first, balanced.axis, firsts)
    second = jax.lax.ppermute(second, balanced.axis, seconds)
    return jnp.concatenate([first, second], axis=1)


def _routes(parts: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """From which device to which the first pieces go, numbers 0, 2, ..., and the second ones."""
    taker = [*range(parts), *reversed(range(parts))]
    return list(enumerate(taker[::2])), list(enumerate(taker[1::2]))


def _in_turn(first: Array, second: Array, balanced: Balanced) -> tuple[Array, Array]:
    """The two, exchanged on every other device: there a second piece comes before a first one."""
    is_even = balanced.device() % 2 == 0
    return jnp.where(is_even, first, second), jnp.where(is_even, second, first)
