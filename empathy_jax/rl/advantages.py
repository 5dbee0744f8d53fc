"""Advantages: how much better a completion was than what is expected of its question.

Q questions, G completions of each question (a group), R reward terms. All take and return float32.
"""

import jax.numpy as jnp

from empathy_jax.types import Array, Float

EPSILON = 1e-4  # as in TRL; keeps a group of near-equal rewards from being blown up


def group_relative(
    rewards: Float[Array, "*terms Q G"], epsilon: float = EPSILON
) -> Float[Array, "*terms Q G"]:
    """Rewards normalised in their group: A = (r - mean(r)) / (std(r) + ε).

    GRPO, https://arxiv.org/abs/2402.03300. std is the sample standard deviation (ddof 1), as in
    TRL. A group whose rewards are all equal gets zeros: it carries no signal.
    """
    centered = group_centered(rewards)
    return centered / (jnp.std(centered, axis=-1, ddof=1, keepdims=True) + epsilon)


def group_centered(rewards: Float[Array, "*terms Q G"]) -> Float[Array, "*terms Q G"]:
    """Rewards less their group's mean: A = r - mean(r).

    Dr. GRPO, https://arxiv.org/abs/2503.20783: dividing by the group's std would weigh the very
    easy and the very hard questions most.

    Raises:
      ValueError: a group of one completion, whose advantage would always be 0.
    """
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards have shape {rewards.shape}: groups of {rewards.shape[-1]}; a group needs at "
            "least 2 completions of one question"
        )
    rewards = rewards.astype(jnp.float32)
    return rewards - jnp.mean(rewards, axis=-1, keepdims=True)


def leave_one_out(rewards: Float[Array, "*terms Q G"]) -> Float[Array, "*terms Q G"]:
    """Rewards less the mean of the others of their group: A_i = r_i - Σ_{j≠i} r_j / (G - 1).

    RLOO, https://arxiv.org/abs/2402.14740. The baseline does not hold the completion's own reward,
    so the policy gradient is unbiased; it is G / (G - 1) times that of `group_centered`.
    """
    centered = group_centered(rewards)
    size = rewards.shape[-1]
    return centered * (size / (size - 1))


def batch_scaled(rewards: Float[Array, "Q G"], epsilon: float = EPSILON) -> Float[Array, "Q G"]:
    """Rewards less their group's mean, over the batch's deviation: A = (r - mean_G(r)) / (std(r) + ε).

    Lite PPO, https://arxiv.org/abs/2508.08221: a group of nearly equal rewards has a std near 0,
    which blows up its differences; the batch's is steadier. std has ddof 1, as in TRL.
    """
    return group_centered(rewards) / (jnp.std(rewards.astype(jnp.float32), ddof=1) + epsilon)


def running_baseline(
    rewards: Float[Array, "Q G"], baseline: Float[Array, ""], decay: float
) -> tuple[Float[Array, "Q G"], Float[Array, ""]]:
    """Rewards less a mean over earlier batches: A = r - b;  b' = decay b + (1 - decay) mean(r).

    REINFORCE with a baseline, https://doi.org/10.1007/BF00992696. `b` does not know this batch,
    so the policy gradient is unbiased, and a group may have one completion. It tells easy
    questions from good answers less well than a group's own mean.

    Args:
      rewards: [Q, G].
      baseline: of the batches before; the mean reward of a first batch, or 0, to begin with.
      decay: in [0, 1); the baseline remembers about 1 / (1 - decay) batches.

    Returns:
      The advantages [Q, G] and the baseline for the next batch.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
    rewards = rewards.astype(jnp.float32)
    return rewards - baseline, decay * baseline + (1.0 - decay) * jnp.mean(rewards)


def per_reward(
    rewards: Float[Array, "R Q G"], weights: Float[Array, "R"], epsilon: float = EPSILON
) -> Float[Array, "Q G"]:
    """Each reward term normalised in its group, then summed with weights, then batch-normalised.

    S = Σ_k w_k (r_k - mean_G(r_k)) / (std_G(r_k) + ε);  A = (S - mean(S)) / (std(S) + ε)

    GDPO, https://arxiv.org/abs/2601.05242: when the terms are summed first, different outcomes
    (valid format with a poor answer, say, and the reverse) fall onto the same advantage, and a
    term of small range is drowned by one of large range.
    """
    summed = jnp.einsum("r,rqg->qg", weights.astype(jnp.float32), group_relative(rewards, epsilon))
    return (summed - jnp.mean(summed)) / (jnp.std(summed, ddof=1) + epsilon)


def zero_signal_share(rewards: Float[Array, "Q G"]) -> Float[Array, ""]:
    """Share of groups whose rewards are all equal, from which GRPO learns nothing.

    For a binary reward that succeeds with probability p it is p^G + (1 - p)^G: at G = 8 it is
    1 % for p = 0.5 and 43 % for p = 0.9.
    """
    return jnp.mean((jnp.max(rewards, axis=-1) == jnp.min(rewards, axis=-1)).astype(jnp.float32))
