"""Attention by blocks of queries and keys in plain XLA, for any platform: no score is kept.

Flash attention (https://arxiv.org/abs/2205.14135, https://arxiv.org/abs/2307.08691). A block of queries
goes through the keys block by block and carries the running maximum m, the sum l = Σ exp(s - m) and
o = Σ exp(s - m) v; what is kept for the backward pass is the output and L = m + log l. With
p = exp(s - L), the output's gradient dO and Δ = Σ dO ⊙ O,

    dv = pᵀ dO,    ds = p (dO vᵀ - Δ),    dq = ds k,    dk = dsᵀ q

Keys that stand after a whole block of queries are not visited, wherever the queries stand: their places
may be known at run time only, as those of `context_parallel` are.

Einsum legend: B batch, T query length, S key length, K kv heads, G query heads per kv head, H head
dim; U queries of a block, C keys of a block.
"""

import functools

import jax
import jax.numpy as jnp

from empathy_jax.models.masks import SegmentMask, visible
from empathy_jax.models.plain_attention import by_kv_head
from empathy_jax.types import Array, Float, Int

BLOCK = 512  # queries and keys whose scores are held at a time
LOWEST = jnp.finfo(jnp.float32).min
_IN_FLOAT32 = {"preferred_element_type": jnp.float32}


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: SegmentMask,
    index: Int[Array, "T"],
) -> Float[Array, "B T N H"]:
    """`attention` of queries that may stand anywhere among the keys.

    Args:
        q, k, v, mask: see `attention`.
        index: place of each query among the keys; read where the mask is causal.
    """
    length, keys = q.shape[1], k.shape[1]
    size, step = min(BLOCK, length), min(BLOCK, keys)
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
        own, *where = block

        def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, mixed = sums
            some_k, some_v, segments = _take((k, v, keys), number, step)
            scores = _scores(own, some_k, *where, segments, number * step, is_causal)
            new = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
            added = jnp.einsum("BKGUC,BKCH->BKGUH", weights.astype(v.dtype), some_v, **_IN_FLOAT32)
            total = shrink * total + jnp.sum(weights, axis=-1, keepdims=True)
            return new, total, shrink * mixed + added

        per_query = jnp.zeros((*own.shape[:-1], 1), jnp.float32)
        start = per_query + LOWEST, per_query, jnp.zeros(own.shape, jnp.float32)
        blocks = _blocks_seen(where[1], keys.shape[1], is_causal, step)
        highest, total, mixed = jax.lax.fori_loop(0, blocks, add, start)
        return (mixed / total).astype(own.dtype), highest + jnp.log(total)

    mixed, normaliser = jax.lax.map(of_block, (q, queries, index))
    return mixed, (q, queries, index, k, v, keys, mixed, normaliser)


def _backward(is_causal: bool, step: int, residuals: tuple[Array, ...], gradient: Array) -> tuple:
    *blocks, k, v, keys, mixed, normaliser = residuals

    def add_block(sums: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        (own, *where), mixed, normaliser, to_mixed = block
        delta = jnp.sum(to_mixed.astype(jnp.float32) * mixed, axis=-1, keepdims=True)

        def add(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_own, to_k, to_v = sums
            some_k, some_v, segments = _take((k, v, keys), number, step)
            scores = _scores(own, some_k, *where, segments, number * step, is_causal)
            weights = jnp.exp(scores - normaliser)
            to_weights = jnp.einsum("BKGUH,BKCH->BKGUC", to_mixed, some_v, **_IN_FLOAT32)
            to_scores = (weights * (to_weights - delta)).astype(own.dtype)
            weights = weights.astype(own.dtype)
            new_k = jnp.einsum("BKGUC,BKGUH->BKCH", to_scores, own, **_IN_FLOAT32)
            new_v = jnp.einsum("BKGUC,BKGUH->BKCH", weights, to_mixed, **_IN_FLOAT32)
            to_own += jnp.einsum("BKGUC,BKCH->BKGUH", to_scores, some_k, **_IN_FLOAT32)
            return to_own, _add_at(to_k, new_k, number), _add_at(to_v, new_v, number)

        seen = _blocks_seen(where[1], keys.shape[1], is_causal, step)
        start = (jnp.zeros(own.shape, jnp.float32), *sums)
        to_own, to_k, to_v = jax.lax.fori_loop(0, seen, add, start)
        return (to_k, to_v), to_own.astype(own.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (to_k, to_v), to_q = jax.lax.scan(add_block, zeros, (blocks, mixed, normaliser, gradient))
    return to_q, None, None, to_k.astype(k.dtype), to_v.astype(v.dtype), None


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
    """Masked scores [B, K, G, U, C] in float32."""
    scores = jnp.einsum("BKGUH,BKCH->BKGUC", q, k, **_IN_FLOAT32)
    seen = visible(queries, keys, index, first_key, is_causal)
    return jnp.where(seen[:, None, None], scores, LOWEST)


def _take(arrays: tuple[Array, Array, Array], number: Array, step: int) -> list[Array]:
    """A block of keys, values and the keys' segments."""
    return [
        jax.lax.dynamic_slice_in_dim(x, number * step, step, axis)
        for x, axis in zip(arrays, (2, 2, 1), strict=True)
    ]


def _add_at(sums: Array, new: Array, number: Array) -> Array:
    start = number * new.shape[2]
    old = jax.lax.dynamic_slice_in_dim(sums, start, new.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(sums, old + new, start, axis=2)


def _blocks_seen(index: Array, keys: int, is_causal: bool, step: int) -> Array | int:
    """How many blocks of keys the last of some queries reaches."""
    if not is_causal:
        return keys // step
    return jnp.minimum(jnp.max(index) // step + 1, keys // step)
