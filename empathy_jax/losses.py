"""Token log-probabilities, entropy and cross-entropy.

Losses come as (sum, count): the caller divides once, after microbatches and devices are summed.
B batch, T query length, D width, V vocab.
"""

import jax
import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.models import decoder
from empathy_jax.models.output_head import chunked_log_probs
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
    loss_mask: Bool[Array, "B T"] | None = None,
    entropy_gradient: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each target and entropy of each position, without the [B, T, V] logits.

    The output head runs over `chunk_size` positions at a time (`models.output_head`), those that count
    first, and stops after them. On a mesh the vocabulary stays cut over devices.

    Args:
      params: decoder parameters; gradients flow to the output head through all chunks.
      config: the decoder's configuration.
      hidden: states after the final norm, [B, T, D].
      targets: the token that each position predicts, [B, T].
      chunk_size: positions whose logits a device holds at a time, at least 1.
      temperature: logits are divided by it, so that RL sees the distribution that was sampled.
      loss_mask: the positions that are wanted; all if not given.
      entropy_gradient: false where the entropy is only reported, which saves its backward pass.

    Returns:
      (log_probs, entropy), each [B, T] in float32; 0 where `loss_mask` is false.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    mask = jnp.ones(targets.shape, bool) if loss_mask is None else loss_mask
    return chunked_log_probs(
        decoder.output_embedding(params, config),
        hidden.astype(config.compute_dtype),
        targets,
        mask,
        chunk_size,
        temperature,
        entropy_gradient,
    )


def cross_entropy_sum(
    log_probs: Float[Array, "..."], loss_mask: Bool[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log-likelihood summed over the tokens that count, and their number."""
    return -masked.masked_sum(log_probs, loss_mask), masked.masked_count(log_probs, loss_mask)
