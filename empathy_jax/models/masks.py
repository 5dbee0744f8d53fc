"""Attention masks by segment, without an array of all pairs of places.

A mask of 32,768 tokens, written out, is a gigabyte a row; its segment ids are 128 kilobytes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("queries", "keys"),
    meta_fields=("is_causal",),
)
@dataclasses.dataclass(frozen=True)
class SegmentMask:
    """A query sees the keys of its own segment, and under a causal mask none that is later.

    Attributes:
        queries: segment of each query, Int[B, T]; 0 is padding and sees nothing.
        keys: segment of each key, Int[B, S]; 0 is padding and is not seen.
        is_causal: whether later keys are hidden. The last query stands at the last key.
    """

    queries: Any
    keys: Any
    is_causal: bool

    def at(self, places: Int[Array, "B P"]) -> "SegmentMask":
        """The mask of the queries at `places` alone, where it is not causal."""
        assert not self.is_causal, "a causal mask depends on where its queries stand"
        chosen = jnp.take_along_axis(self.queries, places, axis=1)
        return dataclasses.replace(self, queries=chosen)


def causal_mask(segment_ids: Int[Array, "B T"]) -> SegmentMask:
    """A query sees a key of the same segment that is not later, neither of them padding.

    ```
    segment_ids  1 1 2 2 0      keys  1 1 2 2 0
                 queries    1         x . . . .
                            1         x x . . .
                            2         . . x . .
                            2         . . x x .
                            0         . . . . .
    ```

    Args:
        segment_ids: number of the packed sequence that each position belongs to; 0 is padding.
    """
    return SegmentMask(segment_ids, segment_ids, is_causal=True)


def segment_mask(segment_ids: Int[Array, "B T"]) -> SegmentMask:
    """A query sees a key of the same segment, neither of them padding.

    Args:
        segment_ids: number of the packed text that each position belongs to; 0 is padding.
    """
    return SegmentMask(segment_ids, segment_ids, is_causal=False)


def dense(mask: SegmentMask | Array) -> Bool[Array, "B T S"]:
    """The mask written out: true where a query may see a key. Arrays are written out already."""
    if not isinstance(mask, SegmentMask):
        return mask
    before = mask.keys.shape[1] - mask.queries.shape[1]
    index = before + jnp.arange(mask.queries.shape[1])
    return visible(mask.queries, mask.keys, index, 0, mask.is_causal)


def visible(
    queries: Int[Array, "B T"],
    keys: Int[Array, "B S"],
    index: Int[Array, "T"],
    first_key: int | Int[Array, ""],
    is_causal: bool,
) -> Bool[Array, "B T S"]:
    """True where a query may see a key, of some queries and some keys that stand side by side.

    Args:
        queries, keys: their segments.
        index: place of each query among all keys.
        first_key: place of the first key.
        is_causal: whether later keys are hidden.
    """
    seen = (queries[:, :, None] == keys[:, None, :]) & (queries != 0)[:, :, None]
    if is_causal:
        seen &= index[:, None] >= first_key + jnp.arange(keys.shape[1])
    return seen
