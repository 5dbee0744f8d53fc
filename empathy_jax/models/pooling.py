"""One vector per text from the hidden states of its tokens."""

import dataclasses

import jax.numpy as jnp

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.types import Array, Bool, Float, Float32, Int

KINDS = ("mean", "cls", "last")


@dataclasses.dataclass(frozen=True)
class Embedding:
    """How a model turns questions and documents (answers) into vectors.

    Without prompts a question and an answer of the same words would be one vector, and an echo the
    best of all answers.

    Attributes:
        pooling: one of `KINDS`.
        max_tokens: longest text, prompt and special tokens included; longer ones are cut.
        query_prompt: put before a question.
        document_prompt: put before an answer.
        has_head: the variables hold the collection `head`, which grades answers; see `contrastive`.
    """

    pooling: str
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""
    has_head: bool = False


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
    hidden: Float[Array, "R T D"], segment_ids: Int[Array, "R T"], kind: str, segments: int
) -> Float32[Array, "R S D"]:
    """For each text of a row the mean of its tokens ("mean"), the first ("cls") or the last ("last").

    Args:
        hidden: hidden states [R, T, D].
        segment_ids: the text of the row that each position belongs to, 1 to S; 0 is padding.
        kind: one of `KINDS`.
        segments: S, texts in a row at most.

    Returns:
        [R, S, D] in float32, not normalised; where a row has fewer texts, what is left over is zero
        for "mean" and means nothing for the others.

    Raises:
        ValueError: for another `kind`.
    """
    hidden = hidden.astype(jnp.float32)
    if kind == "mean":
        member = _members(segment_ids, segments)
        total = jnp.einsum("RTS,RTD->RSD", member.astype(jnp.float32), hidden)
        return total / jnp.maximum(jnp.sum(member, axis=1), 1)[:, :, None]
    index = pooled_places(segment_ids, kind, segments)
    return jnp.take_along_axis(hidden, index[:, :, None], axis=1)


def pooled_places(segment_ids: Int[Array, "R T"], kind: str, segments: int) -> Int[Array, "R S"]:
    """Where each text of a row has the one token that stands for it; see `pool`.

    Raises:
        ValueError: for a `kind` that is neither "cls" nor "last".
    """
    member = _members(segment_ids, segments)
    if kind == "cls":
        return jnp.argmax(member, axis=1)
    if kind == "last":
        return member.shape[1] - 1 - jnp.argmax(member[:, ::-1], axis=1)
    raise ValueError(f"pooling is {kind!r}, allowed are {', '.join(KINDS)}")


def _members(segment_ids: Int[Array, "R T"], segments: int) -> Bool[Array, "R T S"]:
    return segment_ids[:, :, None] == jnp.arange(1, segments + 1)


def normalise(vectors: Float[Array, "*batch D"]) -> Float32[Array, "*batch D"]:
    """x / ‖x‖₂ in float32; a zero vector stays zero and passes no NaN to its gradient."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    # The epsilon is the square of 1e-12, torch's floor for the norm.
    return vectors / jnp.sqrt(jnp.maximum(squared, 1e-24))
