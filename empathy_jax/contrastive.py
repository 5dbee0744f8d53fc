"""Contrastive losses: questions drawn to their good answers and away from the others.

All take embeddings, not texts, and return one value per question, so that the caller decides what is
averaged. Under `jit` on a mesh the rows may be cut over the devices: every question still meets the
answers of the whole batch, since XLA gathers them, and the batch is global without a word about it.

A large batch makes better negatives, and its activations do not fit. GradCache,
https://arxiv.org/abs/2101.06983, embeds the batch in chunks without keeping activations, takes the
loss's gradient at the embeddings, and embeds each chunk once more to carry that gradient into the
weights. In JAX this is `jax.lax.map` over a function under `jax.checkpoint`: see `map_in_chunks`.

B questions, M candidate documents (answers), D width, N pairs, R rows.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from empathy_jax import masked, passes
from empathy_jax.losses import token_log_probs
from empathy_jax.models.pooling import normalise
from empathy_jax.types import Array, Bool, Float, Int, PyTree


def triplet_cosine(
    question: Float[Array, "B D"],
    positive: Float[Array, "B D"],
    negative: Float[Array, "B D"],
    margin: float,
) -> Float[Array, "B"]:
    """Triplet loss on cosine distance: max(0, d(q, p) - d(q, n) + margin), d(a, b) = 1 - a·b.

    FaceNet, https://arxiv.org/abs/1503.03832, with cosine in place of its squared Euclidean
    distance (on unit vectors the latter is twice the former, so the margin is half of FaceNet's).

    Args:
      question, positive, negative: L2-normalised embeddings, [B, D].
      margin: how much closer the positive must be, in cosine; sensible values are 0.1 to 0.5
        (cosine distances end at 2).
    """
    question = question.astype(jnp.float32)
    to_positive = 1.0 - jnp.sum(question * positive, axis=-1)
    to_negative = 1.0 - jnp.sum(question * negative, axis=-1)
    return jnp.maximum(to_positive - to_negative + margin, 0.0)


def triplet_cosine_any(
    questions: Float[Array, "B D"],
    answers: Float[Array, "M D"],
    allowed: Bool[Array, "B M"],
    margin: float,
) -> Float[Array, "B"]:
    """`triplet_cosine` against a negative drawn at random: its mean over all that are allowed.

    Args:
      questions: L2-normalised, [B, D].
      answers: L2-normalised candidates, the own answer of question b at place b, [M, D].
      allowed: [B, M], true where an answer may serve as a negative.
      margin: see `triplet_cosine`.

    Returns:
      [B]; 0 where nothing is allowed.
    """
    scores = jnp.einsum("bd,md->bm", questions, answers, preferred_element_type=jnp.float32)
    own = jnp.diagonal(scores)[:, None]
    return masked.masked_mean(jnp.maximum(scores - own + margin, 0.0), allowed, axis=1)


def info_nce(
    questions: Float[Array, "B D"],
    answers: Float[Array, "M D"],
    positives: Int[Array, "B"],
    temperature: float,
    allowed: Bool[Array, "B M"],
) -> Float[Array, "B"]:
    """InfoNCE: -log( exp(q·a₊/τ) / Σ_{allowed a} exp(q·a/τ) ) for each question.

    CPC, https://arxiv.org/abs/1807.03748, with cosine similarity as the score. `allowed` false
    takes an answer out of a question's denominator: another good answer to the same question is
    no negative. The positive itself always counts.

    Args:
      questions: L2-normalised, [B, D].
      answers: L2-normalised candidates, [M, D].
      positives: which of the M answers belongs to each question, [B].
      temperature: τ > 0; 0.05 is usual.
      allowed: [B, M], true where an answer may serve as a negative.
    """
    scores = jnp.einsum("bd,md->bm", questions, answers, preferred_element_type=jnp.float32)
    scores = scores / temperature
    is_positive = positives[:, None] == jnp.arange(answers.shape[0])
    counted = jnp.where(allowed | is_positive, scores, -jnp.inf)
    return -token_log_probs(counted, positives)


def false_negatives(
    scores: Float[Array, "B M"],
    positive_scores: Float[Array, "B"],
    ceiling: float | None,
    margin: float | None,
    relative_margin: float | None,
) -> Bool[Array, "B M"]:
    """Which candidates score too well to be trusted as negatives: they may well be good answers.

    s > ceiling,  or  s > s₊ - margin,  or  s > s₊ - relative_margin·|s₊|.

    NV-Retriever, https://arxiv.org/abs/2407.15831, compares the three; Qwen3-Embedding,
    https://arxiv.org/abs/2506.05176, takes margin = -0.1: only what beats the positive by 0.1. For a
    positive score the last rule is NV-Retriever's s > s₊·(1 - relative_margin); |s₊| keeps the
    threshold below a negative one too. A positive with itself may be flagged (with margin > 0 it is);
    `info_nce` counts it all the same.

    Args:
      scores: cosines of questions and candidates, [B, M].
      positive_scores: the cosine of each question and its own answer, [B].
      ceiling: highest score of a negative; None for no ceiling.
      margin: how far a negative must stay below the positive; below 0, how far it may be above;
        None for no such rule.
      relative_margin: the same as a share of the positive's score; None for no such rule.

    Returns:
      [B, M], true for a false negative. It is a mask: no gradient flows through it.
    """
    positive = positive_scores[:, None]
    limits = [
        None if ceiling is None else jnp.full_like(positive, ceiling),
        None if margin is None else positive - margin,
        None if relative_margin is None else positive - relative_margin * jnp.abs(positive),
    ]
    flagged = jnp.zeros(scores.shape, bool)
    for limit in limits:
        if limit is not None:
            flagged |= scores > limit
    return flagged


def hardest_negative(
    scores: Float[Array, "B M"], allowed: Bool[Array, "B M"]
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
    """The allowed candidate that scores best for each question, argmax_{allowed m} s_m.

    "In defense of the triplet loss", https://arxiv.org/abs/1703.07737 ("batch hard").

    Args:
      scores: cosines of questions and candidates, [B, M].
      allowed: true where a candidate may serve as a negative; false at the positive, [B, M].

    Returns:
      (index [B], found [B]): where nothing is allowed, `found` is false and the index is 0.
    """
    index = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=1)
    return index, jnp.any(allowed, axis=1)


def bradley_terry(better: Float[Array, "N"], worse: Float[Array, "N"]) -> Float[Array, "N"]:
    """-log σ(r_better - r_worse): how surprised a preference model is by each comparison.

    Bradley and Terry (1952), as reward models are trained in https://arxiv.org/abs/2203.02155.

    Args:
      better, worse: rewards of the answer that was graded higher and of the other, [N].
    """
    difference = better.astype(jnp.float32) - worse.astype(jnp.float32)
    return -jax.nn.log_sigmoid(difference)


def matryoshka(
    loss: Callable[[Array, Array], Array],
    questions: Float[Array, "B D"],
    documents: Float[Array, "M D"],
    dims: Sequence[int],
) -> Array:
    """Mean over d in `dims` of the loss on the first d coordinates, normalised anew.

    Matryoshka representation learning, https://arxiv.org/abs/2205.13147, with equal weights: a vector
    may then be cut to any of these lengths and still be compared by cosine.

    Args:
      loss: (questions [B, d], documents [M, d]), unit vectors, to a value of any one shape.
      questions, documents: embeddings, normalised or not, [B, D] and [M, D].
      dims: lengths, ascending, from 1 to D. D itself is trained only if it is among them.

    Raises:
      ValueError: for other lengths.
    """
    width = questions.shape[1]
    ascending = all(low < high for low, high in itertools.pairwise(dims))
    if not dims or not ascending or dims[0] < 1 or dims[-1] > width:
        raise ValueError(
            f"config.reward_model.matryoshka_dims is {tuple(dims)}; give ascending lengths from 1 to "
            f"{width}, the width of the embeddings"
        )
    values = [loss(normalise(questions[:, :dim]), normalise(documents[:, :dim])) for dim in dims]
    return jnp.mean(jnp.stack(values), axis=0)


def map_in_chunks(embed: Callable[[PyTree], Array], batch: PyTree, chunk: int) -> Array:
    """`embed(batch)` computed `chunk` rows at a time, with the activations of one chunk in memory.

    GradCache, https://arxiv.org/abs/2101.06983: the forward pass keeps the embeddings only, and the
    backward pass embeds each chunk again, a third more work. The gradient is the exact one. A batch of
    one chunk is embedded directly, once.

    Args:
      embed: arrays [C, ...] to an array [C, ...]; each row of the result depends on its own row
        only. It may close over weights: gradients flow to them.
      batch: arrays [R, ...].
      chunk: rows per chunk; R is a multiple of it.

    Returns:
      [R, ...], in the order of the batch.

    Raises:
      ValueError: when R is larger than `chunk` and no multiple of it.
    """
    if jax.tree.leaves(batch)[0].shape[0] <= chunk:
        return embed(batch)
    return passes.map_rows(jax.checkpoint(embed), batch, chunk)
