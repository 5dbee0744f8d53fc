"""Attention by blocks of queries and keys in plain XLA, for any platform: no score is kept.

Flash attention (https://arxiv.org/abs/2205.14135, https://arxiv.org/abs/2307.08691). A block of queries
goes through the keys block by block and carries the running maximum m, the sum l = Σ exp(s - m) and
o = Σ exp(s - m) v; what is kept for the backward pass is the output and L = m + log l. With
p = exp(s - L), the output's gradient dO and Δ = Σ dO ⊙ O,

    dv = pᵀ dO,    ds = p (dO vᵀ - Δ),    dq = ds k,    dk = dsᵀ q

Blocks of keys of other segments, and those after a whole block of queries, are not visited, wherever the
queries stand: segments and places may be known at run time only, as those of `context_parallel` are.
Padding costs nothing where a row is taken by itself.

Einsum legend: B batch, T query length, S key length, K kv heads, G query heads per kv head, H head
dim; U queries of a block, C keys of a block, M = G · U.
"""

import functools

import jax
import jax.numpy as jnp

from empathy_jax.models.masks import SegmentMask, visible
from empathy_jax.models.plain_attention import by_kv_head, merge_group
from empathy_jax.types import Array, Float, Int

BLOCK = 512  # queries and keys whose scores are held at a time
ROW_BLOCK = 128  # the same where a row is taken by itself: what stays in a CPU core's cache
LOWEST = jnp.finfo(jnp.float32).min
_IN_FLOAT32 = {"preferred_element_type": jnp.float32}


def flash_attention_by_row(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: SegmentMask,
    index: Int[Array, "T"],
) -> Float[Array, "B T N H"]:
    """`flash_attention` of one row at a time, as it suits CPUs.

    Measured on one core, forward and backward, against plain scores of a row at a time by blocks of 256
    causal queries: 8 completions of 700 to 1,300 tokens in rows of 1,536 behind a prompt of 512, 0.39 of
    the time; 16 full rows of 512 tokens with 8 heads of 32, 0.6; and without a causal mask, 10 rows of
    512 with 8 heads of 64, 0.66.
    """

    def attend(row: tuple[Array, Array, Array, SegmentMask]) -> Array:
        return flash_attention(*row, index, ROW_BLOCK)

    if q.shape[0] == 1:
        return attend((q, k, v, mask))
    rows = jax.tree.map(lambda leaf: leaf[:, None], (q, k, v, mask))
    return jax.lax.map(attend, rows)[:, 0]


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: SegmentMask,
    index: Int[Array, "T"],
    block: int = BLOCK,
) -> Float[Array, "B T N H"]:
    """`attention` of queries that may stand anywhere among the keys.

    Args:
        q, k, v, mask: see `attention`.
        index: place of each query among the keys; read where the mask is causal.
        block: queries and keys whose scores are held at a time.
    """
    length, keys = q.shape[1], k.shape[1]
    size, step = min(block, length), min(block, keys)
    grouped, k, v = by_kv_head(q, k, v)
    queries = (
        _cut(grouped, 3, size),
        _cut(mask.queries, 1, size),
        _cut(index, 0, size),
    )
    k, v, segments = (_pad(x, axis, step) for x, axis in ((k, 2), (v, 2), (mask.keys, 1)))
    mixed = _attend(*queries, k, v, segments, mask.is_causal, step)
    mixed = jnp.einsum("cBKGUH->BcUKGH", mixed)
    return mixed.reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _pad(x: Array, axis: int, multiple: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _cut(x: Array, axis: int, size: int) -> Array:
    """Blocks of `size` along an axis, on a new leading axis; the last is filled with 0."""
    x = _pad(x, axis, size)
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(
    q: Array,
    queries: Array,
    index: Array,
    k: Array,
    v: Array,
    keys: Array,
    is_causal: bool,
    step: int,
) -> Array:
    """Scaled queries [blocks, B, K, G, U, H] with segments [blocks, B, U] and places [blocks, U] over
    keys and values [B, K, S, H] with segments [B, S]; returns what `q` is the shape of."""
    return _forward(q, queries, index, k, v, keys, is_causal, step)[0]


def _forward(
    q: Array,
    queries: Array,
    index: Array,
    k: Array,
    v: Array,
    keys: Array,
    is_causal: bool,
    step: int,
) -> tuple[Array, tuple[Array, ...]]:
    def of_block(block: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        own, where = merge_group(block[0]), block[1:]

        def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, mixed = sums
            some_k, some_v, segments = _take((k, v, keys), number, step)
            scores = _scores(own, some_k, *where, segments, number * step, is_causal)
            new = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
            added = jnp.einsum("BKMC,BKCH->BKMH", weights.astype(v.dtype), some_v, **_IN_FLOAT32)
            total = shrink * total + jnp.sum(weights, axis=-1, keepdims=True)
            return new, total, shrink * mixed + added

        per_query = jnp.zeros((*own.shape[:-1], 1), jnp.float32)
        start = per_query + LOWEST, per_query, jnp.zeros(own.shape, jnp.float32)
        seen = _blocks_seen(*where, keys, is_causal, step)
        highest, total, mixed = jax.lax.fori_loop(*seen, add, start)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # 0 where no block was visited
        return (mixed / total).astype(own.dtype).reshape(q.shape[1:]), highest + jnp.log(total)

    mixed, normaliser = jax.lax.map(of_block, (q, queries, index))
    return mixed, (q, queries, index, k, v, keys, mixed, normaliser)


def _backward(is_causal: bool, step: int, residuals: tuple[Array, ...], gradient: Array) -> tuple:
    q, queries, index, k, v, keys, mixed, normaliser = residuals

    def add_block(sums: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        own, mixed, to_mixed = (merge_group(x) for x in block[:3])
        normaliser, *where = block[3:]
        delta = jnp.sum(to_mixed.astype(jnp.float32) * mixed, axis=-1, keepdims=True)

        def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_own, to_k, to_v = sums
            some_k, some_v, segments = _take((k, v, keys), number, step)
            scores = _scores(own, some_k, *where, segments, number * step, is_causal)
            weights = jnp.exp(scores - normaliser)
            to_weights = jnp.einsum("BKMH,BKCH->BKMC", to_mixed, some_v, **_IN_FLOAT32)
            to_scores = (weights * (to_weights - delta)).astype(own.dtype)
            to_own += jnp.einsum("BKMC,BKCH->BKMH", to_scores, some_k, **_IN_FLOAT32)
            # In this order of axes CPUs do not read the longer operand across its rows.
            new_k = jnp.einsum("BKMH,BKMC->BKHC", own, to_scores, **_IN_FLOAT32)
            new_v = jnp.einsum(
                "BKMH,BKMC->BKHC", to_mixed, weights.astype(own.dtype), **_IN_FLOAT32
            )
            return to_own, _add_at(to_k, new_k, number), _add_at(to_v, new_v, number)

        seen = _blocks_seen(*where, keys, is_causal, step)
        start = (jnp.zeros(own.shape, jnp.float32), *sums)
        to_own, to_k, to_v = jax.lax.fori_loop(*seen, add, start)
        return (to_k, to_v), to_own.astype(own.dtype).reshape(q.shape[1:])

    zeros = [jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (k, v)]
    blocks = (q, mixed, gradient, normaliser, queries, index)
    (to_k, to_v), to_q = jax.lax.scan(add_block, tuple(zeros), blocks)
    to_k, to_v = (x.swapaxes(2, 3).astype(k.dtype) for x in (to_k, to_v))
    return to_q, None, None, to_k, to_v, None


_attend.defvjp(_forward, _backward)


def _scores(
    q: Array,
    k: Array,
    queries: Array,
    index: Array,
    keys: Array,
    first_key: Array,
    is_causal: bool,
) -> Array:
    """Masked scores [B, K, M, C] in float32."""
    scores = jnp.einsum("BKMH,BKCH->BKMC", q, k, **_IN_FLOAT32)
    seen = visible(queries, keys, index, first_key, is_causal)
    seen = jnp.tile(seen, (1, q.shape[2] // seen.shape[1], 1))[:, None]
    return jnp.where(seen, scores, LOWEST)


def _take(arrays: tuple[Array, Array, Array], number: Array, step: int) -> list[Array]:
    """A block of keys, values and the keys' segments."""
    return [
        jax.lax.dynamic_slice_in_dim(x, number * step, step, axis)
        for x, axis in zip(arrays, (2, 2, 1), strict=True)
    ]


def _add_at(sums: Array, new: Array, number: Array) -> Array:
    start = number * new.shape[3]
    old = jax.lax.dynamic_slice_in_dim(sums, start, new.shape[3], axis=3)
    return jax.lax.dynamic_update_slice_in_dim(sums, old + new, start, axis=3)


def _blocks_seen(
    queries: Array, index: Array, keys: Array, is_causal: bool, step: int
) -> tuple[Array, Array]:
    """The first block of keys with one that some of these queries may see, and the one after the last.

    Between the lowest and the highest segment of a row's queries every segment counts as seen.
    """
    lowest = jnp.where(queries == 0, jnp.iinfo(queries.dtype).max, queries)
    lowest = jnp.min(lowest, axis=1, keepdims=True)
    highest = jnp.max(queries, axis=1, keepdims=True)
    place = jnp.arange(keys.shape[1])
    seen = jnp.any((keys != 0) & (keys >= lowest) & (keys <= highest), axis=0)
    if is_causal:
        seen &= place <= jnp.max(index)
    first = jnp.min(jnp.where(seen, place, keys.shape[1]))
    last = jnp.max(jnp.where(seen, place, -1))
    return first // step, last // step + 1
