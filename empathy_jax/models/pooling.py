"""One vector per text from the hidden states of its tokens."""

import jax.numpy as jnp

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.types import Array, Bool, Float, Float32

KINDS = ("mean", "cls", "last")


def check_kind(kind: str, config: DecoderConfig | EncoderConfig, field: str) -> None:
    """Refuses a pooling that does not go with an architecture.

    In a decoder the first token has read nothing but itself; an encoder's token for a whole text is
    its first.

    Raises:
        ValueError: names the field and what is allowed.
    """
    decodes = isinstance(config, DecoderConfig)
    allowed = ("mean", "last") if decodes else ("mean", "cls")
    if kind not in allowed:
        raise ValueError(
            f"{field} is {kind!r}, allowed for {'a decoder' if decodes else 'an encoder'} are "
            f"{' and '.join(allowed)}"
        )


def pool(
    hidden: Float[Array, "B T D"], attention_mask: Bool[Array, "B T"], kind: str
) -> Float32[Array, "B D"]:
    """The mean of the true positions ("mean"), the first of them ("cls") or the last ("last").

    Args:
        hidden: hidden states [B, T, D].
        attention_mask: true where a token counts; padding may be on either side.
        kind: one of `KINDS`.

    Returns:
        [B, D] in float32, not normalised; the mean of a row without tokens is zero.

    Raises:
        ValueError: for another `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"pooling is {kind!r}, allowed are {', '.join(KINDS)}")
    hidden = hidden.astype(jnp.float32)
    if kind == "mean":
        total = jnp.sum(jnp.where(attention_mask[..., None], hidden, 0.0), axis=1)
        return total / jnp.maximum(jnp.sum(attention_mask, axis=1), 1)[:, None]
    if kind == "cls":
        index = jnp.argmax(attention_mask, axis=1)
    else:
        index = attention_mask.shape[1] - 1 - jnp.argmax(attention_mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]


def normalise(vectors: Float[Array, "*batch D"]) -> Float32[Array, "*batch D"]:
    """x / ‖x‖₂ in float32; a zero vector stays zero and passes no NaN to its gradient."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    # The epsilon is the square of 1e-12, torch's floor for the norm.
    return vectors / jnp.sqrt(jnp.maximum(squared, 1e-24))
