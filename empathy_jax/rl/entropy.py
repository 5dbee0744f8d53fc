"""An entropy bonus that is on only while it is needed.

Loss = policy loss - α_k × mean entropy of the tokens, with

  α_k     = c_k where e_k <= target, else 0           `applied_coefficient`
  c_{k+1} = c_k + δ where e_k <= target, else c_k - δ    `next_coefficient`

for entropies e_k in nats, measured at step k. Skywork-OR1, https://arxiv.org/abs/2505.22312: a
constant coefficient depends on model and data so much that it either changes nothing or lets the
entropy explode. Where e_k is known only after the step, e_{k-1} may serve as well (as in TRL).
"""

import jax.numpy as jnp

from empathy_jax.types import Array, Float


def applied_coefficient(
    coefficient: Float[Array, ""], entropy: Float[Array, ""], target: float
) -> Float[Array, ""]:
    """α = c where the entropy is not above its target, else 0: a bonus never adds to enough."""
    return jnp.where(entropy <= target, coefficient, 0.0)


def next_coefficient(
    coefficient: Float[Array, ""],
    entropy: Float[Array, ""],
    target: float,
    delta: float,
    largest: float,
) -> Float[Array, ""]:
    """c' = c + δ where the entropy is not above its target, else c - δ; kept in [0, largest].

    The bounds are ours (and TRL's): below 0 the bonus would turn into a charge, and after a long
    time far from the target c would take as long to come back.

    Args:
      coefficient: c, of the step that was measured; 0 to begin with.
      entropy: mean over the tokens of that step, in nats.
      target: what the entropy should not fall below, in nats.
      delta: change a step, above 0; Skywork-OR1: 0.005.
      largest: bound of c.
    """
    if delta <= 0.0 or largest < 0.0:
        raise ValueError(f"delta is {delta} and largest {largest}; delta > 0, largest >= 0 needed")
    return jnp.clip(coefficient + jnp.where(entropy <= target, delta, -delta), 0.0, largest)
