"""Estimates of KL(π ‖ π_ref) from one sampled token, http://joschu.net/blog/kl-approx.html.

With d = log π - log π_ref at the token. An estimator serves in three places, and to be right in
one says nothing of the others (https://arxiv.org/abs/2510.01555, https://arxiv.org/abs/2512.21852):

  as                          k1 = d             k2 = ½ d²             k3 = e^-d - 1 + d
  value, its mean             KL(π ‖ π_ref)      biased                KL(π ‖ π_ref)
  loss, its mean gradient     0                  ∇ KL(π ‖ π_ref)       ∇ KL(π_ref ‖ π)
  part of the reward, E[k ∇ log π]
                              ∇ KL(π ‖ π_ref)    vanishes as π → π_ref, in the second order

All means are over tokens that π itself sampled. So: report k1 or k3, add k2 to a loss, subtract k1
from a reward. A loss of ρ k3, ρ being the importance ratio with its gradient, has ∇ KL(π ‖ π_ref)
again (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556). B completions, T tokens; float32.
"""

import jax.numpy as jnp

from empathy_jax.rl.ratios import token_log_ratio
from empathy_jax.types import Array, Float


def kl_k1(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """k1 = d: unbiased, of high variance, may be negative.

    As a loss it regularises nothing: its expected gradient is E[∇ log π] = 0. In a reward it is
    the right one: E[d ∇ log π] = ∇ KL(π ‖ π_ref).
    """
    return token_log_ratio(log_probs, ref_log_probs)


def kl_k2(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """k2 = ½ d²: biased, of low variance, never negative.

    As a loss it is the right one: E[d ∇ log π] = ∇ KL(π ‖ π_ref). In a reward its pull ½ E[d² ∇ log π]
    vanishes near the reference.
    """
    return 0.5 * jnp.square(token_log_ratio(log_probs, ref_log_probs))


def kl_k3(
    log_probs: Float[Array, "B T"], ref_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """k3 = e^-d - 1 + d: unbiased, of low variance near the reference, never negative.

    The KL of GRPO (https://arxiv.org/abs/2402.03300). As a loss its gradient is that of
    KL(π_ref ‖ π), which also holds π at π_ref but grows without bound where π gives up what the
    reference says. In a reward its pull is ∇ KL(π ‖ π_ref) - ∇ KL(π_ref ‖ π), which vanishes near
    the reference.
    """
    difference = token_log_ratio(ref_log_probs, log_probs)
    return jnp.expm1(difference) - difference
