"""What to do about completions that are too long: charge for them, or leave them out.

DAPO, https://arxiv.org/abs/2503.14476: a completion that was cut off gets a bad reward for its
length alone, which punishes sound reasoning and is noise. B completions, T tokens.
"""

import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Float, Int


def soft_penalty(
    lengths: Int[Array, "*shape"], max_length: int, buffer: int
) -> Float[Array, "*shape"]:
    """0 up to max_length - buffer tokens, growing linearly to 1 at max_length, and 1 beyond.

    (length - (max_length - buffer)) / buffer, clipped to [0, 1]: DAPO's soft overlong punishment
    with the sign of the other penalties, so give it a negative weight.

    Args:
      lengths: tokens of each completion.
      max_length: where a completion is cut off.
      buffer: tokens over which the penalty grows, in [1, max_length]; the paper: 4096 of 20480.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer is {buffer}; it must be from 1 to max_length, {max_length}")
    excess = (lengths - (max_length - buffer)).astype(jnp.float32)
    return jnp.clip(excess / buffer, 0.0, 1.0)


def without_cut_off(loss_mask: Bool[Array, "B T"], cut_off: Bool[Array, "B"]) -> Bool[Array, "B T"]:
    """The loss mask without the completions that were cut off: DAPO's overlong filtering.

    They still count in their group's advantages. Their lengths are then nowhere charged for;
    Skywork-OR1 (https://arxiv.org/abs/2505.22312) found it better to keep them in.
    """
    return loss_mask & ~cut_off[:, None]
