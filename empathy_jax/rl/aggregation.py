"""From losses of tokens to the loss of a batch, as a sum and a count.

B completions, T tokens. The loss is sum / count, divided once after microbatches and devices are
summed. Values are [B, T], or [B, 1] where every token of a completion has the same.
"""

import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.types import Array, Bool, Float

SumCount = tuple[Float[Array, ""], Float[Array, ""]]


def sequence_mean_token_mean(
    values: Float[Array, "B #T"], loss_mask: Bool[Array, "B T"]
) -> SumCount:
    """Mean over each completion's tokens, summed over completions; count: completions.

    GRPO, https://arxiv.org/abs/2402.03300. A long completion's tokens weigh less each. Completions
    without a counted token (masked out, or padding of the batch) are not counted.
    """
    values = jnp.broadcast_to(values, loss_mask.shape)
    return jnp.sum(masked.masked_mean(values, loss_mask, axis=-1)), _completions(loss_mask)


def token_mean(values: Float[Array, "B #T"], loss_mask: Bool[Array, "B T"]) -> SumCount:
    """Sum over all tokens; count: tokens. Every token weighs the same.

    DAPO, https://arxiv.org/abs/2503.14476.
    """
    return masked.masked_sum(values, loss_mask), jnp.sum(loss_mask, dtype=jnp.float32)


def constant_length(
    values: Float[Array, "B #T"], loss_mask: Bool[Array, "B T"], length: int
) -> SumCount:
    """Sum over all tokens divided by a constant length; count: completions.

    Dr. GRPO, https://arxiv.org/abs/2503.20783: dividing by a completion's own length favours short
    good answers and long bad ones.

    Args:
      values: [B, T] or [B, 1].
      loss_mask: [B, T].
      length: the same number throughout the run, usually the largest completion length.
    """
    return masked.masked_sum(values, loss_mask) / length, _completions(loss_mask)


def _completions(loss_mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    return jnp.sum(jnp.any(loss_mask, axis=-1), dtype=jnp.float32)
