"""Log importance ratios: how much likelier the policy makes what an older one wrote.

B completions, T tokens; float32. Outside the mask log-probabilities must be finite wherever no
mask is asked for (the engine stores 0 there).
"""

import jax
import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.types import Array, Bool, Float


def token_log_ratio(
    log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Of each token: log ρ_t = log π(y_t) - log π_old(y_t).

    PPO, https://arxiv.org/abs/1707.06347, and GRPO, https://arxiv.org/abs/2402.03300.

    Args:
      log_probs: of the policy being trained, [B, T]; gradients flow through it.
      old_log_probs: of the policy that sampled, as the trainer computes them, [B, T].
    """
    return log_probs.astype(jnp.float32) - old_log_probs.astype(jnp.float32)


def sequence_log_ratio(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
) -> Float[Array, "B 1"]:
    """Of each completion, per token: log s = Σ_t (log π(y_t) - log π_old(y_t)) / |y|.

    GSPO, https://arxiv.org/abs/2507.18071: the reward is of the whole completion, and so is what is
    clipped; single tokens' ratios are noise. s is a geometric mean, so it stays much nearer to 1:
    the paper clips at 3e-4 below and 4e-4 above. A completion without a counted token gets 0.
    """
    ratio = token_log_ratio(log_probs, old_log_probs)
    return masked.masked_mean(ratio, loss_mask, axis=-1)[:, None]


def on_policy_log_ratio(log_probs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """0 everywhere, with the gradient of log π: the ratio of a policy to itself.

    For one strictly on-policy step on each batch, where no second set of log-probabilities is
    needed: ∇ exp(log π - stop_gradient(log π)) = ∇ log π. It is the ratio of trainer to trainer;
    what the sampler's arithmetic does differently is the subject of `corrections`.
    """
    return token_log_ratio(log_probs, jax.lax.stop_gradient(log_probs))
