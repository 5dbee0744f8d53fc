"""Token log-probabilities, entropy and cross-entropy.

Losses come as (sum, count): the caller divides once, after microbatches and devices are summed.
B batch, T query length, D width, V vocab.
"""

import jax
import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.models import decoder
from empathy_jax.models.output_head import chunked_log_probs
from empathy_jax.models.permutation import permute
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
    first, and stops after them.

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
    batch, length, width = hidden.shape
    # Each device sorts and cuts its own rows, so that nothing is moved between devices.
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    parts = batch if batch % devices else devices
    size = batch // parts * length
    chunk_size = min(chunk_size, size)
    padded = -(-size // chunk_size) * chunk_size
    mask = jnp.ones((batch, length), bool) if loss_mask is None else loss_mask
    mask = jnp.pad(mask.reshape(parts, size), ((0, 0), (0, padded - size)))
    order = jnp.argsort(~mask, axis=1, stable=True)
    inverse = jnp.argsort(order, axis=1)[:, :size]
    is_first = jnp.take_along_axis(mask, order, axis=1)
    counted = mask[:, :size]
    live_chunks = -(-jnp.max(jnp.sum(mask, axis=1)) // chunk_size)
    log_probs, entropy = chunked_log_probs(
        decoder.output_embedding(params, config),
        permute(
            hidden.reshape(parts, size, width).astype(config.compute_dtype),
            order,
            is_first,
            inverse,
            counted,
        ),
        permute(targets.reshape(parts, size), order, is_first, inverse, counted),
        live_chunks,
        chunk_size,
        temperature,
        entropy_gradient,
    )
    log_probs, entropy = (
        permute(x, inverse, counted, order, is_first).reshape(batch, length)
        for x in (log_probs, entropy)
    )
    return log_probs, entropy


def cross_entropy_sum(
    log_probs: Float[Array, "..."], loss_mask: Bool[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Negative log-likelihood summed over the tokens that count, and their number."""
    return -masked.masked_sum(log_probs, loss_mask), masked.masked_count(log_probs, loss_mask)
