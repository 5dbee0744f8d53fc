"""Token log-probabilities, entropy and cross-entropy.

Losses come as (sum, count): the caller divides once, after microbatches and devices are summed.
B batch, T query length, D width, V vocab.
"""

import jax
import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.models import decoder
from empathy_jax.types import Array, Bool, Float, Int, Params


def token_log_probs(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> Float[Array, "..."]:
    """Log-probability of each target: log p(y) = z_y - logsumexp(z), in float32.

    The full log-softmax is never formed, only its picked entry.
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


def token_entropy(logits: Float[Array, "... V"]) -> Float[Array, "..."]:
    """Entropy of softmax(z) in nats: H = logsumexp(z) - Σ_v softmax(z)_v z_v, in float32."""
    logits = logits.astype(jnp.float32)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    probs = jnp.exp(logits - log_normaliser[..., None])
    return log_normaliser - jnp.sum(probs * logits, axis=-1)


def token_log_probs_from_hidden(
    params: Params,
    config: decoder.DecoderConfig,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    chunk_size: int,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each target and entropy of each position, without the [B, T, V] logits.

    The output head runs over `chunk_size` positions at a time under `jax.checkpoint`: neither the
    forward nor the backward pass holds more than [B, chunk_size, V].

    Args:
      params: decoder parameters; gradients flow to the output head through all chunks.
      config: the decoder's configuration.
      hidden: states after the final norm, [B, T, D].
      targets: the token that each position predicts, [B, T].
      chunk_size: positions per chunk, at least 1. T need not be a multiple of it.
      temperature: logits are divided by it, so that RL sees the distribution that was sampled.

    Returns:
      (log_probs, entropy), each [B, T] in float32.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    batch, length, width = hidden.shape
    chunk_size = min(chunk_size, length)
    chunks = -(-length // chunk_size)
    padding = chunks * chunk_size - length
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))

    @jax.checkpoint
    def chunk_outputs(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk_hidden, chunk_targets = chunk
        logits = decoder.logits(params, config, chunk_hidden) / temperature
        return token_log_probs(logits, chunk_targets), token_entropy(logits)

    chunked = (
        hidden.reshape(batch, chunks, chunk_size, width).swapaxes(0, 1),
        targets.reshape(batch, chunks, chunk_size).swapaxes(0, 1),
    )
    outputs = jax.lax.map(chunk_outputs, chunked)
    log_probs, entropy = (
        out.swapaxes(0, 1).reshape(batch, chunks * chunk_size)[:, :length] for out in outputs
    )
    return log_probs, entropy


def cross_entropy_sum(
    log_probs: Float[Array, "..."], loss_mask: Bool[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log-likelihood summed over the tokens that count, and their number."""
    return -masked.masked_sum(log_probs, loss_mask), masked.masked_count(log_probs, loss_mask)
