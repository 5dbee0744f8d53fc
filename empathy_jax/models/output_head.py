"""Log-probabilities and entropies from hidden states, a chunk of positions at a time.

The logits of a chunk are made, reduced and dropped; the backward pass, written by hand, makes them
again. Neither pass holds more than a chunk of them, and chunks in which nothing counts are not computed.

With z = h·Wᵀ/τ, p = softmax(z) and g the gradient of the loss to log p(y), to H = -Σ p log p and to z:

    g_z = g_y (1_y - p) - g_H p (log p + H),    g_h = g_z W/τ,    g_W = g_zᵀ h/τ

S parts (one for each device), N positions of a part, M positions of a chunk, D width, V vocab.
"""

import functools

import jax
import jax.numpy as jnp

from empathy_jax.types import Array, Float, Int

Outputs = tuple[Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def chunked_log_probs(
    table: Float[Array, "V D"],
    hidden: Float[Array, "S N D"],
    targets: Int[Array, "S N"],
    live_chunks: Int[Array, ""],
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Float[Array, "S N"], Float[Array, "S N"]]:
    """Log-probability of each target and entropy of each position, in float32.

    Args:
        table: the matrix that scores the vocabulary; it is read in the dtype of `hidden`, and its
            gradient is summed in float32.
        hidden: states after the final norm, in the compute dtype.
        targets: the token that each position predicts.
        live_chunks: how many chunks are computed; the positions after them get 0.
        chunk_size: M, a divisor of N.
        temperature: τ.
        entropy_gradient: whether the entropy is differentiated; otherwise g_H is taken to be 0.
    """
    return _forward(table, hidden, targets, live_chunks, chunk_size, temperature, entropy_gradient)[
        0
    ]


def _forward(
    table: Array,
    hidden: Array,
    targets: Array,
    live_chunks: Array,
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Outputs, tuple[Array, ...]]:
    scores = table.astype(hidden.dtype)

    def add_chunk(index: Array, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        z, at = _logits(scores, hidden, index, chunk_size, temperature)
        picked = jnp.take_along_axis(z, at(targets)[..., None], axis=-1)[..., 0]
        highest = jnp.max(z, axis=-1)
        weights = jnp.exp(z - highest[..., None])
        total = jnp.sum(weights, axis=-1)
        normaliser = highest + jnp.log(total)
        entropy = normaliser - jnp.sum(weights * z, axis=-1) / total
        made = (picked - normaliser, entropy, normaliser)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(output, new, index * chunk_size, axis=1)
            for output, new in zip(outputs, made, strict=True)
        )

    empty = jnp.zeros(targets.shape, jnp.float32)
    log_probs, entropy, normaliser = jax.lax.fori_loop(0, live_chunks, add_chunk, (empty,) * 3)
    return (log_probs, entropy), (table, hidden, targets, live_chunks, normaliser, entropy)


def _backward(
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
    residuals: tuple[Array, ...],
    gradients: Outputs,
) -> tuple:
    table, hidden, targets, live_chunks, normaliser, entropy = residuals
    to_log_probs, to_entropy = gradients
    scores = table.astype(hidden.dtype)

    def add_chunk(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        to_table, to_hidden = sums
        z, at = _logits(scores, hidden, index, chunk_size, temperature)
        log_p = z - at(normaliser)[..., None]
        is_target = jnp.arange(z.shape[-1]) == at(targets)[..., None]
        to_p = at(to_log_probs)[..., None]
        to_z = to_p * is_target
        if entropy_gradient:
            to_p += at(to_entropy)[..., None] * (log_p + at(entropy)[..., None])
        to_z -= jnp.exp(log_p) * to_p
        to_z = (to_z / temperature).astype(hidden.dtype)
        to_table += jnp.einsum("SMV,SMD->VD", to_z, at(hidden), preferred_element_type=jnp.float32)
        new = jnp.einsum("SMV,VD->SMD", to_z, scores)
        to_hidden = jax.lax.dynamic_update_slice_in_dim(to_hidden, new, index * chunk_size, axis=1)
        return to_table, to_hidden

    zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(hidden)
    to_table, to_hidden = jax.lax.fori_loop(0, live_chunks, add_chunk, zeros)
    return to_table.astype(table.dtype), to_hidden, None, None


chunked_log_probs.defvjp(_forward, _backward)


def _logits(
    scores: Array, hidden: Array, index: Array, chunk_size: int, temperature: float
) -> tuple:
    """Scaled logits of a chunk [S, M, V], and what cuts the chunk out of an array [S, N, ...]."""

    def at(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * chunk_size, chunk_size, axis=1)

    z = jnp.einsum("SMD,VD->SMV", at(hidden), scores, preferred_element_type=jnp.float32)
    return z / temperature, at
