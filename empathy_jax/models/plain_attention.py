"""Attention of one device as einsums that hold all scores: for short rows, and for a decoded token.

Einsum legend: B batch, T query length, S key length, N heads, K kv heads, G = N/K query heads per
kv head, H head dim, M = G · T.
"""

import jax
import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Float


def scored_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """`attention` as three einsums, normalised after the product with the values."""
    grouped, keys, values = by_kv_head(q, k, v)
    return jnp.einsum("BKGTH->BTKGH", _weigh(grouped, keys, values, mask)).reshape(q.shape)


def by_kv_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Scaled queries [B, K, G, T, H], keys and values [B, K, S, H]."""
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    grouped = jnp.einsum("BTKGH->BKGTH", grouped * jnp.asarray(head_dim**-0.5, q.dtype))
    return grouped, jnp.einsum("BSKH->BKSH", k), jnp.einsum("BSKH->BKSH", v)


def _weigh(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attention of scaled queries [B, K, G, T, H] to keys and values [B, K, S, H].

    The weights are normalised after the product with the values: their sum divides H numbers a query
    instead of S.
    """
    mask = jnp.tile(mask, (1, q.shape[2], 1))[:, None]
    scores = jnp.einsum("BKMH,BKSH->BKMS", merge_group(q), k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "BKMS,BKSH->BKMH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (mixed / total).astype(q.dtype).reshape(q.shape)


def merge_group(x: Array) -> Array:
    """[B, K, G, T, H] as [B, K, G · T, H]: with two axes XLA's CPU products take a fifth longer."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def single_query_attention(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 S"],
) -> Float[Array, "B 1 N H"]:
    """`attention` of one query, as plain einsums over the query heads of each kv head."""
    batch, _, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.einsum("BKGH,BSKH->BKGS", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, None], scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BKGS,BSKH->BKGH", weights, v)
    return mixed.reshape(q.shape).astype(q.dtype)
