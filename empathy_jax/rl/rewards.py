"""Rewards: pure functions from a question and a judged completion to numbers, as numpy.

The paper's reward (Empathy-R1, https://arxiv.org/abs/2509.14851) is `format_reward` plus
`binary_answer`. What it invites, and what stands against it here:
  - A group whose completions all pass, or all fail, has no advantage: at a pass rate p the share of
    such groups is p^G + (1 - p)^G. `quantile_scaled` grades instead of passing.
  - Similarity of question and answer is largest for an answer that repeats the question.
    `echo_overlap` measures that and `echo_penalty` charges for it.
  - A kind letter that fits every question is a local optimum of any learnt reward. `template_overlap`
    sees it, because the same words answer different questions, and `template_penalty` charges for it.
  - A policy can collect the format's reward with nothing behind it, or the answer's reward with no
    chain. A valid verdict requires every layer and the answer to hold text, and `gated` pays for
    an answer only behind a valid chain.
  - The shorter an answer, the less there is to break the format with: a policy that is paid for the
    format alone shrinks its answers to a few words. `brevity_penalty` charges for those.
Arrays may have any shape, commonly [Q, G]: Q questions with G completions each.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from empathy_jax.chain_of_empathy import Verdict
from empathy_jax.overlap import ngram_overlap, ngrams

# Characters of an n-gram that people seldom share by chance, by language: see `template_penalty`.
TEMPLATE_NGRAM: Mapping[str, int] = {"zh": 8, "en": 24}
ECHO_NGRAM = 4  # characters


def format_reward(verdict: Verdict) -> float:
    """1 for a text that is a whole Chain of Empathy, else 0."""
    return float(verdict.valid)


def binary_answer(similarity: npt.ArrayLike, threshold: float) -> np.ndarray:
    """1 where similarity >= threshold, else 0: the paper's answer reward.

    Args:
      similarity: of question and answer under the reward model, any shape.
      threshold: its value where about half of the first policy's answers pass gives most signal.
    """
    return (np.asarray(similarity) >= threshold).astype(np.float32)


def quantile_scaled(similarity: npt.ArrayLike, quantiles: npt.ArrayLike) -> np.ndarray:
    """Share of reference answers that a similarity exceeds, in [0, 1].

    Piecewise linear between the entries of the table, 0 below the first, 1 from the last on. It
    grades answers within a group, and it is bounded: a very similar answer (an echo) cannot
    outweigh everything else.

    Args:
      similarity: any shape.
      quantiles: similarities at equally spaced ranks 0, 1/(n-1), ..., 1, sorted, n >= 2.

    Raises:
      ValueError: a table that is too short, unsorted or not finite.
    """
    table = np.asarray(quantiles, np.float64)
    if table.ndim != 1 or table.size < 2:
        raise ValueError(f"quantiles have shape {table.shape}; a list of 2 or more is needed")
    if not np.all(np.isfinite(table)) or np.any(np.diff(table) < 0):
        raise ValueError(f"quantiles must be finite and sorted upwards; received {table.tolist()}")
    ranks = np.linspace(0.0, 1.0, table.size)
    return np.interp(np.asarray(similarity, np.float64), table, ranks).astype(np.float32)


def gated(format_rewards: npt.ArrayLike, answer_rewards: npt.ArrayLike) -> np.ndarray:
    """The answer's reward where the format's reward is 1, and 0 elsewhere."""
    return np.where(np.asarray(format_rewards) >= 1.0, answer_rewards, 0.0).astype(np.float32)


def echo_overlap(question: str, answer: str, n: int = ECHO_NGRAM) -> float:
    """Share of the answer's character n-grams that occur in the question, in [0, 1].

    White space, letter case and full-width forms make no difference, so that they cannot hide a
    copy. Every occurrence counts: repeating one copied sentence does not lower the share. Answers
    to the same question share few 4-grams with it in Chinese; English words make more, so compare
    with human answers of the same language before choosing what is free.

    Args:
      question: what the help-seeker wrote.
      answer: what the person would read, without the chain.
      n: characters per n-gram; an answer shorter than that is compared as a whole.
    """
    return ngram_overlap(comparable(question), comparable(answer), n)


def echo_penalty(overlap: npt.ArrayLike, free: float = 0.2) -> np.ndarray:
    """0 up to an overlap of `free`, then growing linearly to 1 at full overlap.

    An answer that takes up the person's own words is good counselling; one made of them is not.
    Give it a negative weight in `total`.
    """
    return _above(overlap, free)


def template_overlap(questions: Sequence[str], answers: Sequence[str], n: int) -> np.ndarray:
    """Share of each answer's character n-grams that also answer another question of the batch.

    White space, letter case and full-width forms make no difference. Answers to the same question
    may be alike: they are samples of one policy.

    Args:
      questions: N texts; equal texts are one question.
      answers: N texts.
      n: characters per n-gram, see TEMPLATE_NGRAM; a shorter answer is compared as a whole.

    Returns:
      float32 [N] in [0, 1]; 0 for an empty answer.
    """
    pairs = [(q, ngrams(comparable(a), n)) for q, a in zip(questions, answers, strict=True)]
    asked: dict[str, set[str]] = {}
    for question, grams in pairs:
        for gram in grams:
            asked.setdefault(gram, set()).add(question)
    # The answer's own question is among those of each n-gram.
    known = [sum(len(asked[gram]) > 1 for gram in grams) for _, grams in pairs]
    sizes = [max(len(grams), 1) for _, grams in pairs]
    return np.divide(known, sizes, dtype=np.float32)


def template_penalty(overlap: npt.ArrayLike, free: float = 0.2) -> np.ndarray:
    """0 up to an overlap of `free`, then growing linearly to 1 at full overlap.

    What people write shares little: of the counsellors' answers to 35,176 questions of SmileChat,
    99 % overlap by at most 0.04 in batches of 16 questions, 0.11 in batches of 128 and 0.19 in
    batches of 512 (n = 8); of the answers to 824 questions of CounselChat, by at most 0.03 in
    batches of 128 (n = 24). Give it a negative weight in `total`.
    """
    return _above(overlap, free)


def brevity_penalty(characters: npt.ArrayLike, least: int) -> np.ndarray:
    """1 for an empty answer, falling linearly to 0 at `least` characters; give it a negative weight.

    Args:
      characters: of `comparable` answers, any shape.
      least: from which on an answer is long enough, 1 or more.
    """
    return np.clip(1.0 - np.asarray(characters) / least, 0.0, 1.0).astype(np.float32)


def total(terms: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Weighted sum of reward terms: Σ_k w_k r_k.

    Args:
      terms: name to rewards, all of one shape.
      weights: name to weight (from config.rl.<name>_weight), exactly the names of `terms`.

    Raises:
      ValueError: names that do not match, or a term that holds NaN or infinity. A NaN that passed
        as 0 would train the policy on a broken reward model.
    """
    if set(terms) != set(weights):
        raise ValueError(
            f"reward terms are {sorted(terms)}, but there are weights (config.rl.<name>_weight) for "
            f"{sorted(weights)}"
        )
    for name, values in terms.items():
        if bad := np.size(values) - np.count_nonzero(np.isfinite(values)):
            raise ValueError(f"reward term {name!r} has {bad} values that are not finite")
    return sum(
        np.float32(weights[name]) * np.asarray(terms[name], np.float32) for name in sorted(terms)
    )


def _above(share: npt.ArrayLike, free: float) -> np.ndarray:
    return np.asarray(np.clip((np.asarray(share) - free) / (1.0 - free), 0.0, 1.0), np.float32)


def comparable(text: str) -> str:
    """The text without white space, letter case and full-width forms, which can hide a copy."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
