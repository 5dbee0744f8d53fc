"""How the output head's table and the positions that it scores are cut over devices, and what these
exchange.

V vocabulary, D width, B rows, T places; M positions of a device's chunk, C those of all devices that
share a chunk.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from empathy_jax import sharding
from empathy_jax.types import Array

LEAST_POSITIONS = 128


@dataclasses.dataclass(frozen=True)
class Cut:
    """How table and positions lie on the mesh in use; on one device nothing is cut.

    Attributes:
        table, hidden, positions: specs of [V, D], [B, T, D] and [B, T].
        of_vocabulary: mesh axes that cut the vocabulary.
        of_positions: mesh axes that cut rows or places.
    """

    table: PartitionSpec
    hidden: PartitionSpec
    positions: PartitionSpec
    of_vocabulary: tuple[str, ...]
    of_positions: tuple[str, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        """Mesh axes that cut both: over them the positions of a chunk are brought together."""
        return tuple(name for name in self.of_vocabulary if name in self.of_positions)

    def own_positions(self, chunk_size: int) -> int:
        """M, where `chunk_size` positions are to be scored at a time by all that share a chunk.

        There is a least number: every chunk has its exchanges, and each of these its delay.
        """
        return max(chunk_size // sharding.parts(self.shared), min(chunk_size, LEAST_POSITIONS))

    def per_device(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`function` on each device's part."""
        if not sharding.is_distributed():
            return function
        return sharding.per_device(function, in_specs, out_specs)

    def first_entry(self, table: Array) -> Array | int:
        """Which token the first row of a device's part of the table scores."""
        if not self.of_vocabulary:
            return 0
        return jax.lax.axis_index(self.of_vocabulary) * table.shape[0]

    def of_all(self, x: Array) -> Array:
        """[M, ...] of each device as [C, ...] of all that share a chunk."""
        return jax.lax.all_gather(x, self.shared, tiled=True) if self.shared else x

    def own(self, x: Array) -> Array:
        """This device's part [M, ...] of [C, ...]."""
        if not self.shared:
            return x
        size = x.shape[0] // sharding.parts(self.shared)
        start = jax.lax.axis_index(self.shared) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    def own_sum_of_vocabulary(self, x: Array) -> Array:
        """`own` of the sum over the parts of the vocabulary."""
        if self.shared:
            x = jax.lax.psum_scatter(x, self.shared, tiled=True)
        return _sum(x, [name for name in self.of_vocabulary if name not in self.shared])

    def sum_of_vocabulary(self, x: Array) -> Array:
        """Sum over the parts of the vocabulary."""
        return _sum(x, self.of_vocabulary)

    def highest(self, x: Array) -> Array:
        """Maximum over the parts of the vocabulary."""
        return jax.lax.pmax(x, self.of_vocabulary) if self.of_vocabulary else x

    def most(self, chunks: Array) -> Array:
        """Chunks of the device that has most, so that all take part in each exchange."""
        return jax.lax.pmax(chunks, self.of_positions) if self.of_positions else chunks

    def sum_of_positions(self, x: Array) -> Array:
        """Sum over the devices whose positions were not brought together."""
        return _sum(x, [name for name in self.of_positions if name not in self.shared])


def _sum(x: Array, names: Sequence[str]) -> Array:
    return jax.lax.psum(x, tuple(names)) if names else x


def find_cut(table: Array, hidden: Array) -> Cut:
    """How table [V, D] and hidden states [B, T, D] are cut."""
    rows, places, _ = sharding.activation_axes(("batch", "length", None), hidden.shape)
    vocabulary, _ = sharding.activation_axes(("vocab", None), table.shape)
    return Cut(
        PartitionSpec(vocabulary or None, None),
        PartitionSpec(rows or None, places or None, None),
        PartitionSpec(rows or None, places or None),
        vocabulary,
        (*rows, *places),
    )
