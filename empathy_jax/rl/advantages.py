"""Advantages of sampled completions over the others of their group.

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
