"""BERTScore with a local encoder: tokens of two texts matched by the cosine of their vectors.

    P = mean over tokens of the candidate of max over tokens of the reference of cos,   R likewise,
    F = 2PR / (P + R)

Zhang et al. 2020, https://arxiv.org/abs/1904.09675, as the package bert-score computes it without
idf weights: the tokenizer's first and last token may be matched with, and do not count themselves.
Scores are raw, not rescaled with a baseline, so they compare within one encoder and layer alone.

Legend: B texts, T tokens, D width, M pairs.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.evaluation.metrics.tokens import Ints
from empathy_jax.models import encoder
from empathy_jax.models.attention import segment_mask
from empathy_jax.models.pooling import normalise
from empathy_jax.types import Array, Float, Int, Params

TEXTS = 32  # embedded at a time
PAIRS = 32  # matched at a time
_BUCKET = 64  # lengths are padded to a multiple of it, so that few shapes are compiled


def score_pairs(
    texts: list[str],
    pairs: Ints,
    params: Params,
    config: encoder.EncoderConfig,
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
) -> dict[str, Floats]:
    """BERTScore of pairs of texts; texts beyond the encoder's positions are cut.

    Args:
      texts: N texts.
      pairs: int [P, 2], index of a candidate and of a reference; those that share texts are best
        near each other, since vectors are held for TEXTS texts at a time.
      params, config, tokenizer: of a BERT encoder.
      layer: whose states are taken, counted from 1; 0 is the last.

    Returns:
      `bertscore_precision`, `bertscore_recall`, `bertscore_f1`, each [P]; 0 for an empty text.

    Raises:
      ValueError: for a layer that there is not.
    """
    if not 0 <= layer <= config.num_layers:
        raise ValueError(
            f"config.evaluate.bertscore_layer is {layer}; the encoder has the layers 1 to "
            f"{config.num_layers}, and 0 stands for the last"
        )
    params, config = first_layers(params, config, layer or config.num_layers)
    ids = [tokenizers.text_ids(tokenizer, text, config.max_positions) for text in texts]
    found = np.zeros((len(pairs), 2))
    for members in _blocks(pairs):
        unique, places = np.unique(pairs[members], return_inverse=True)
        vectors, lengths = _embed_texts([ids[index] for index in unique], params, config)
        places = places.reshape(-1, 2)
        for start in range(0, len(members), PAIRS):
            some = places[start : start + PAIRS]
            filled = np.pad(some, ((0, PAIRS - len(some)), (0, 0)))
            scores = _match_places(vectors, lengths, filled[:, 0], filled[:, 1])
            found[members[start : start + PAIRS]] = np.stack(scores, axis=1)[: len(some)]
    precision, recall = found.T
    both = precision + recall
    f1 = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
    return {"bertscore_precision": precision, "bertscore_recall": recall, "bertscore_f1": f1}


def first_layers(
    params: Params, config: encoder.EncoderConfig, layers: int
) -> tuple[Params, encoder.EncoderConfig]:
    """An encoder without the layers after the first so many."""
    kept = jax.tree.map(lambda stacked: stacked[:layers], params["layers"])
    return {**params, "layers": kept}, dataclasses.replace(config, num_layers=layers)


def _blocks(pairs: Ints) -> Iterator[Ints]:
    """Numbers of the pairs in blocks that share at most TEXTS texts, in order."""
    members: list[int] = []
    texts: set[int] = set()
    for number, pair in enumerate(pairs.tolist()):
        if len(texts | set(pair)) > TEXTS:
            yield np.array(members)
            members, texts = [], set()
        members.append(number)
        texts |= set(pair)
    if members:
        yield np.array(members)


def _embed_texts(
    ids: list[list[int]], params: Params, config: encoder.EncoderConfig
) -> tuple[Array, Array]:
    """Unit vectors [TEXTS, T, D] of texts given as ids, and their lengths [TEXTS]."""
    longest = max(map(len, ids))
    size = min(-(-longest // _BUCKET) * _BUCKET, config.max_positions)
    tokens, lengths = np.full((TEXTS, size), config.pad_id, np.int32), np.zeros(TEXTS, np.int32)
    for row, own in enumerate(ids):
        tokens[row, : len(own)], lengths[row] = own, len(own)
    return embed(params, config, jnp.asarray(tokens), jnp.asarray(lengths)), jnp.asarray(lengths)


@functools.partial(jax.jit, static_argnames="config")
def embed(
    params: Params,
    config: encoder.EncoderConfig,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
) -> Float[Array, "B T D"]:
    """Unit vectors of the tokens, by the encoder's last layer; those at padding mean nothing."""
    count = jnp.arange(tokens.shape[1])
    positions = jnp.broadcast_to(count, tokens.shape)
    mask = segment_mask((count < lengths[:, None]).astype(jnp.int32))
    return normalise(encoder.hidden_states(params, config, tokens, positions, mask))


@jax.jit
def _match_places(
    vectors: Float[Array, "B T D"],
    lengths: Int[Array, "B"],
    candidates: Int[Array, "M"],
    references: Int[Array, "M"],
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    return match(vectors[candidates], lengths[candidates], vectors[references], lengths[references])


def match(
    candidates: Float[Array, "M T D"],
    candidate_lengths: Int[Array, "M"],
    references: Float[Array, "M S D"],
    reference_lengths: Int[Array, "M"],
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Precision and recall of greedy matching, [M] each.

    Args:
      candidates, references: unit vectors, the first and last of each text its special tokens.
      candidate_lengths, reference_lengths: tokens of each text, the special ones included.
    """
    sides = (candidates, candidate_lengths), (references, reference_lengths)
    is_text, counts = zip(*(_places(*side) for side in sides), strict=True)
    similar = jnp.einsum("MTD,MSD->MTS", candidates, references)
    # As in bert-score, padding is similar by 0, not by minus infinity.
    similar = jnp.where(is_text[0][:, :, None] & is_text[1][:, None, :], similar, 0.0)
    best = jnp.max(similar, axis=2), jnp.max(similar, axis=1)
    both = (candidate_lengths > 2) & (reference_lengths > 2)
    means = (
        jnp.sum(jnp.where(count, values, 0.0), axis=1) / jnp.maximum(jnp.sum(count, axis=1), 1)
        for values, count in zip(best, counts, strict=True)
    )
    precision, recall = (jnp.where(both, mean, 0.0) for mean in means)
    return precision, recall


def _places(vectors: Array, lengths: Array) -> tuple[Array, Array]:
    """Which places hold a token, and which of these count: all but the first and the last."""
    place = jnp.arange(vectors.shape[1])
    counts = (place > 0) & (place < lengths[:, None] - 1)
    return place < lengths[:, None], counts
