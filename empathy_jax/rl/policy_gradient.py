"""Per-token policy-gradient losses, KL estimators and the ways to aggregate them.

B completions, T tokens. Everything per token is [B, T] and float32. Aggregations return
(sum, count); the loss is their quotient, taken once after microbatches and devices are summed.
Outside the mask every argument must be finite (the engine stores 0 there).
"""

import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.types import Array, Bool, Float

SumCount = tuple[Float[Array, ""], Float[Array, ""]]


def log_ratio(
    log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log of the importance ratio of each token: log π(y_t) - log π_old(y_t)."""
    return log_probs.astype(jnp.float32) - old_log_probs.astype(jnp.float32)


def clipped_surrogate(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B #T"],
    clip_low: float,
    clip_high: float,
) -> Float[Array, "B T"]:
    """PPO's clipped loss of each token: -min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A).

    PPO, https://arxiv.org/abs/1707.06347; a clip_high above clip_low is DAPO's clip-higher,
    https://arxiv.org/abs/2503.14476.

    Args:
      log_probs: of the policy being trained, [B, T]; gradients flow through it.
      old_log_probs: of the policy that sampled, [B, T].
      advantages: [B, T], or [B, 1] for one per completion.
      clip_low, clip_high: distances from 1, both >= 0.
    """
    ratio = jnp.exp(log_ratio(log_probs, old_log_probs))
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def is_clipped(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B #T"],
    clip_low: float,
    clip_high: float,
) -> Bool[Array, "B T"]:
    """True where `clipped_surrogate` has no gradient because its clip is in force."""
    ratio = jnp.exp(log_ratio(log_probs, old_log_probs))
    too_low = (ratio < 1.0 - clip_low) & (advantages < 0)
    too_high = (ratio > 1.0 + clip_high) & (advantages > 0)
    return too_low | too_high


def kl_k1(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """KL(π ‖ π_ref) estimated by log π - log π_ref: unbiased, of high variance, may be negative.

    http://joschu.net/blog/kl-approx.html. For reporting, or inside a reward. As a loss it
    regularises nothing: its expected gradient on-policy is E[∇ log π] = 0.
    """
    return log_ratio(log_probs, ref_log_probs)


def kl_k2(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """KL(π ‖ π_ref) estimated by ½ (log π - log π_ref)²: biased, of low variance, never negative.

    http://joschu.net/blog/kl-approx.html. As a loss its on-policy gradient is that of the true KL
    (https://arxiv.org/abs/2510.01555).
    """
    return 0.5 * jnp.square(log_ratio(log_probs, ref_log_probs))


def kl_k3(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """KL(π ‖ π_ref) estimated by e^d - 1 - d, d = log π_ref - log π: unbiased, never negative.

    http://joschu.net/blog/kl-approx.html; the KL of GRPO (https://arxiv.org/abs/2402.03300). Its
    value is unbiased, but as a loss its on-policy gradient is that of KL(π_ref ‖ π) instead.
    """
    difference = log_ratio(ref_log_probs, log_probs)
    return jnp.expm1(difference) - difference


def sequence_mean_token_mean(
    values: Float[Array, "B T"], loss_mask: Bool[Array, "B T"]
) -> SumCount:
    """Mean over each completion's tokens, summed over completions; count: completions.

    GRPO, https://arxiv.org/abs/2402.03300. A long completion's tokens weigh less each. Completions
    without a counted token (masked out, or padding of the batch) are not counted.
    """
    return jnp.sum(masked.masked_mean(values, loss_mask, axis=-1)), _completions(loss_mask)


def token_mean(values: Float[Array, "B T"], loss_mask: Bool[Array, "B T"]) -> SumCount:
    """Sum over all tokens; count: tokens. Every token weighs the same.

    DAPO, https://arxiv.org/abs/2503.14476.
    """
    return masked.masked_sum(values, loss_mask), masked.masked_count(values, loss_mask)


def constant_length(
    values: Float[Array, "B T"], loss_mask: Bool[Array, "B T"], length: int
) -> SumCount:
    """Sum over all tokens divided by a constant length; count: completions.

    Dr. GRPO, https://arxiv.org/abs/2503.20783: dividing by a completion's own length favours short
    good answers and long bad ones.

    Args:
      values: [B, T].
      loss_mask: [B, T].
      length: the same number throughout the run, usually the largest completion length.
    """
    return masked.masked_sum(values, loss_mask) / length, _completions(loss_mask)


def _completions(loss_mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    return jnp.sum(jnp.any(loss_mask, axis=-1), dtype=jnp.float32)
