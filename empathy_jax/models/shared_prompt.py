"""Attention of completions that stand in one row behind a prompt that they share.

```
place         0 1  2 3 4  5 6  7          keys  a b d e f g h .
what it is    a b  d e f  g h  .    queries  a  x . . . . . . .
              prompt, 1st, 2nd               b  x x . . . . . .
                                             d  x x x . . . . .
                                             e  x x x x . . . .
                                             f  x x x x x . . .
                                             g  x x . . . x . .
                                             h  x x . . . x x .
```

Linear layers and norms run over the row as it is, so the prompt is computed once and nothing is padded
but the row's end. For attention the row is taken apart: the prompt by itself, and every completion
beside a copy of the prompt's keys and values. The blocks of siblings are never computed.

R rows, T places, P prompt places, G completions, C tokens of a completion; N heads, K kv heads, H head
dim.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from empathy_jax.models.attention import attention
from empathy_jax.models.masks import SegmentMask, causal_mask
from empathy_jax.models.permutation import permute
from empathy_jax.types import Array, Bool, Float, Int


class SharedPrompt(NamedTuple):
    """Where prompt and completions are in each row; stands where an attention mask would.

    Attributes:
        prompt_mask: true in the first places of a row, those of the prompt [R, P].
        places: place in the row of each token of each completion [R, G, C].
        completion_mask: true where a completion has a token [R, G, C].
        slots: for each place its index among P prompt places followed by G · C completion tokens,
            the inverse of `places`; -1 where the row is padding [R, T].
    """

    prompt_mask: Bool[Array, "R P"]
    places: Int[Array, "R G C"]
    completion_mask: Bool[Array, "R G C"]
    slots: Int[Array, "R T"]


def from_batch(batch: Mapping[str, Array]) -> SharedPrompt:
    """The layout of the rows that `training.rollout_rows` packs."""
    return SharedPrompt(*(batch[name] for name in SharedPrompt._fields))


def shared_prompt_attention(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    shared: SharedPrompt,
) -> Float[Array, "R T N H"]:
    """`attention` where a token sees the prompt and its own completion up to itself.

    Returns:
        [R, T, N, H] in the dtype of `q`, 0 where the row is padding.
    """
    rows, prompt_length = shared.prompt_mask.shape
    members, length = shared.places.shape[1:]
    q, k, v = (_take_apart(x, shared) for x in (q, k, v))

    of_prompt = [x[:, :prompt_length] for x in (q, k, v)]
    mixed_prompt = attention(*of_prompt, causal_mask(shared.prompt_mask.astype(jnp.int32)))

    def of_completions(x: Array) -> Array:
        return x[:, prompt_length:].reshape(rows * members, length, *x.shape[2:])

    def behind_prompt(x: Array) -> Array:
        prompt = jnp.repeat(x[:, :prompt_length], members, axis=0)
        return jnp.concatenate([prompt, of_completions(x)], axis=1)

    mask = behind_prompt_mask(shared)
    mixed = attention(of_completions(q), behind_prompt(k), behind_prompt(v), mask)
    mixed = mixed.reshape(rows, members * length, *mixed.shape[2:])
    return _put_together(jnp.concatenate([mixed_prompt, mixed], axis=1), shared)


def behind_prompt_mask(shared: SharedPrompt) -> SegmentMask:
    """What each token of a completion sees of the prompt's P places and of its own C, [R · G, P + C].

    One segment is all of it: the last of the C queries stands at the last of the P + C keys.
    """
    members, length = shared.places.shape[1:]
    own = shared.completion_mask.reshape(-1, length).astype(jnp.int32)
    prompt = jnp.repeat(shared.prompt_mask, members, axis=0).astype(jnp.int32)
    return SegmentMask(own, jnp.concatenate([prompt, own], axis=1), is_causal=True)


def per_completion(x: Float[Array, "R T *rest"], shared: SharedPrompt) -> Float[Array, "..."]:
    """Values at the tokens of each completion, [R · G, C, ...]; 0 where it has none."""
    rows, members, length = shared.places.shape
    apart = _take_apart(x, shared)[:, shared.prompt_mask.shape[1] :]
    return apart.reshape(rows * members, length, *x.shape[2:])


def _take_apart(x: Array, shared: SharedPrompt) -> Array:
    """[R, T, ...] to [R, P + G · C, ...], 0 where a slot is empty."""
    places, is_filled = _slots(shared)
    return permute(x, places, is_filled, shared.slots, shared.slots >= 0)


def _put_together(x: Array, shared: SharedPrompt) -> Array:
    """[R, P + G · C, ...] to [R, T, ...], 0 where the row is padding."""
    places, is_filled = _slots(shared)
    return permute(x, shared.slots, shared.slots >= 0, places, is_filled)


def _slots(shared: SharedPrompt) -> tuple[Array, Array]:
    """The place of each slot, and whether it has one, [R, P + G · C] each."""
    rows, prompt_length = shared.prompt_mask.shape
    prompt = jnp.broadcast_to(jnp.arange(prompt_length), shared.prompt_mask.shape)
    places = jnp.concatenate([prompt, shared.places.reshape(rows, -1)], axis=1)
    filled = jnp.concatenate([shared.prompt_mask, shared.completion_mask.reshape(rows, -1)], axis=1)
    return places, filled
