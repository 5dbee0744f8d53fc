"""Importance weights for samples of an engine that computes the policy a little differently.

Even with equal weights the sampler's and the trainer's log-probabilities differ (kernels, batch
shapes, precision), so every rollout is a little off-policy. A loss is corrected by the weight

  w = π_trainer(y) / π_sampler(y),   bounded, and without a gradient,

of each token ([B, T]: of low variance, biased, since the state that a token was written in is
itself the sampler's) or of each completion ([B, 1]: unbiased, of a variance that grows with its
length). B completions, T tokens. `weighted loss = w × loss`, before it is aggregated.

  https://fengyao.notion.site/off-policy-rl                 truncated weights (TIS)
  https://arxiv.org/abs/2510.18855                          weights outside a band set to 0 (IcePop)
  https://huggingface.co/docs/trl/en/paper_index            the four modes of TRL, equal to these
"""

import jax
import jax.numpy as jnp

from empathy_jax import masked
from empathy_jax.rl.ratios import token_log_ratio
from empathy_jax.types import Array, Bool, Float


def token_log_weight(
    old_log_probs: Float[Array, "B T"],
    sampler_log_probs: Float[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Of each token: log w_t = log π_trainer(y_t) - log π_sampler(y_t); 0 outside the mask.

    Args:
      old_log_probs: the trainer's, of the weights that sampled, [B, T]. Log-probabilities of later
        weights would mix this correction with the ratio that the loss clips.
      sampler_log_probs: as stored with the rollout, [B, T].
      loss_mask: [B, T].
    """
    return jnp.where(loss_mask, token_log_ratio(old_log_probs, sampler_log_probs), 0.0)


def sequence_log_weight(
    old_log_probs: Float[Array, "B T"],
    sampler_log_probs: Float[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
) -> Float[Array, "B 1"]:
    """Of each completion: log w = Σ_t (log π_trainer(y_t) - log π_sampler(y_t)); for Args see above."""
    ratio = token_log_ratio(old_log_probs, sampler_log_probs)
    return masked.masked_sum(ratio, loss_mask, axis=-1)[:, None]


def truncated_weights(
    log_weight: Float[Array, "B #T"], smallest: float, largest: float
) -> Float[Array, "B #T"]:
    """TIS: clip(w, smallest, largest), without a gradient.

    https://fengyao.notion.site/off-policy-rl; the idea is IMPALA's, https://arxiv.org/abs/1802.01561.

    Args:
      log_weight: [B, T] or [B, 1].
      smallest: in [0, 1]; 0 for no lower bound.
      largest: at least 1; `math.inf` for no upper bound. TRL's default is 3.
    """
    _check(smallest, largest)
    return jnp.clip(jnp.exp(jax.lax.stop_gradient(log_weight)), smallest, largest)


def masked_weights(
    log_weight: Float[Array, "B #T"], smallest: float, largest: float
) -> Float[Array, "B #T"]:
    """MIS: w where smallest <= w <= largest, else 0, without a gradient.

    IcePop, https://arxiv.org/abs/2510.18855 (of tokens). What the engines disagree on most is often
    an error of one of them, and a truncated weight still learns from it. What gets 0 still counts
    as a token of the batch. For Args see `truncated_weights`.
    """
    _check(smallest, largest)
    weight = jnp.exp(jax.lax.stop_gradient(log_weight))
    return jnp.where((weight < smallest) | (weight > largest), 0.0, weight)


def _check(smallest: float, largest: float) -> None:
    if not 0.0 <= smallest <= 1.0 <= largest:
        raise ValueError(
            f"weights are bounded to [{smallest}, {largest}]; 0 <= smallest <= 1 <= largest is "
            "needed, so that equal log-probabilities keep their weight 1"
        )
