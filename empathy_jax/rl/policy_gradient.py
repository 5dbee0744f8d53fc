"""Policy-gradient losses of each token, before they are aggregated.

B completions, T tokens. A `log_ratio` is [B, T], or [B, 1] for one per completion, from `ratios`;
advantages likewise, from `advantages`. Outside the mask every argument must be finite.
"""

import jax
import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Float


def clipped_surrogate(
    log_ratio: Float[Array, "B #T"],
    advantages: Float[Array, "B #T"],
    clip_low: float,
    clip_high: float,
    ceiling: float | None = None,
) -> Float[Array, "B #T"]:
    """PPO's clipped loss: -min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A), ρ at most `ceiling`.

    PPO, https://arxiv.org/abs/1707.06347; a clip_high above clip_low is DAPO's clip-higher,
    https://arxiv.org/abs/2503.14476; a `ceiling` is the two-sided clip of INTELLECT-2,
    https://arxiv.org/abs/2505.07291: where A < 0 PPO bounds no large ρ, and one such token can
    outweigh a batch.

    Args:
      log_ratio: log ρ, [B, T] or [B, 1]; gradients flow through it.
      advantages: [B, T] or [B, 1].
      clip_low, clip_high: distances from 1, both >= 0.
      ceiling: largest ρ (TRL's `delta`), above 1 + clip_high; None for no bound.

    Returns:
      The losses, [B, T]; [B, 1] where both arguments are.
    """
    _check(clip_low, clip_high, ceiling)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    if ceiling is not None:
        ratio = jnp.minimum(ratio, ceiling)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def is_clipped(
    log_ratio: Float[Array, "B #T"],
    advantages: Float[Array, "B #T"],
    clip_low: float,
    clip_high: float,
    ceiling: float | None = None,
) -> tuple[Bool[Array, "B #T"], Bool[Array, "B #T"]]:
    """Where `clipped_surrogate` has no gradient: since ρ is too low, and since it is too high.

    Too low: ρ < 1 - clip_low with A < 0. Too high: ρ > 1 + clip_high with A > 0, or ρ > ceiling
    with A < 0.
    """
    _check(clip_low, clip_high, ceiling)
    ratio = jnp.exp(log_ratio)
    too_low = (ratio < 1.0 - clip_low) & (advantages < 0)
    too_high = (ratio > 1.0 + clip_high) & (advantages > 0)
    if ceiling is not None:
        too_high |= (ratio > ceiling) & (advantages < 0)
    return too_low, too_high


def cispo(
    log_ratio: Float[Array, "B #T"],
    log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B #T"],
    clip_high: float,
) -> Float[Array, "B T"]:
    """REINFORCE with a bounded importance weight: -sg(min(ρ, 1 + clip_high)) A log π.

    CISPO, https://arxiv.org/abs/2506.13585. The weight is clipped and not the token's update, so
    rare tokens that grow likely fast (the turns of a chain of thought) go on learning.

    Args:
      log_ratio: log ρ, [B, T] or [B, 1]; no gradient flows through it.
      log_probs: of the policy being trained, [B, T]; gradients flow through it.
      advantages: [B, T] or [B, 1].
      clip_high: distance from 1, >= 0. TRL's and ScaleRL's bound is 1 + clip_high (theirs: 5).
    """
    _check(0.0, clip_high, None)
    weight = jnp.minimum(jnp.exp(jax.lax.stop_gradient(log_ratio)), 1.0 + clip_high)
    return -weight * advantages * log_probs.astype(jnp.float32)


def _check(clip_low: float, clip_high: float, ceiling: float | None) -> None:
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"clip_low is {clip_low}; the ratio's distance below 1 is in [0, 1]")
    if clip_high < 0.0:
        raise ValueError(f"clip_high is {clip_high}; the ratio's distance above 1 is at least 0")
    if ceiling is not None and ceiling <= 1.0 + clip_high:
        raise ValueError(
            f"ceiling is {ceiling}; it must be above 1 + clip_high = {1.0 + clip_high}, or None"
        )
