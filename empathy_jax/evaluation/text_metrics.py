"""Measures of answers as texts: overlap with references, diversity, echo, and pairing by chance.

All are pure functions of strings. Characters are the unit of ROUGE-L, since Chinese has no spaces
and any word segmenter would become a part of the measure. What has no value (no reference, no text)
is NaN, so that it can be left out of a mean instead of counting as 0.
"""

import functools
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import numpy.typing as npt

from empathy_jax.rl.rewards import echo_overlap

# Ideographs, kana and syllables that stand as words of their own in `units`.
_IDEOGRAPHS = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNIT = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")


def score_answers(
    questions: Sequence[str], answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Every per-answer measure of this module.

    Args:
      questions: N texts.
      answers: N texts, one per question.
      references: for each question the answers that people gave, possibly none.

    Returns:
      Name to float64 [N]: `characters`, `rouge_l_max` and `rouge_l_mean` over the references,
      `distinct_1`, `distinct_2`, `echo_overlap`.
    """
    best, mean = rouge_l_of_references(answers, references)
    pairs = list(zip(questions, answers, strict=True))
    return {
        "characters": np.array([len(characters(answer)) for answer in answers], np.float64),
        "rouge_l_max": best,
        "rouge_l_mean": mean,
        "distinct_1": np.array([distinct([answer], 1) for answer in answers], np.float64),
        "distinct_2": np.array([distinct([answer], 2) for answer in answers], np.float64),
        "echo_overlap": np.array([echo_overlap(q, a) for q, a in pairs], np.float64),
    }


def characters(text: str) -> str:
    """The text in NFC without white space: what lengths and ROUGE-L count."""
    return "".join(unicodedata.normalize("NFC", text).split())


def rouge_l_of_references(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Largest and mean ROUGE-L of each answer over its references, float64 [N]; NaN without any."""
    counts = np.array([len(texts) for texts in references], np.int64)
    scores = rouge_l(
        [answer for answer, count in zip(answers, counts, strict=True) for _ in range(count)],
        [text for texts in references for text in texts],
    )
    best, mean = np.full(len(answers), np.nan), np.full(len(answers), np.nan)
    some = counts > 0
    if some.any():
        starts = (np.cumsum(counts) - counts)[some]
        best[some] = np.maximum.reduceat(scores, starts)
        mean[some] = np.add.reduceat(scores, starts) / counts[some]
    return best, mean


def rouge_l(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure on characters of each pair, in one batched call of tensorflow_text.

    F = 2PR / (P + R), with P and R the length of the longest common subsequence over the length of
    the candidate and of the reference; 0 when either is empty. Lin 2004,
    https://aclanthology.org/W04-1013.

    Args:
      candidates: N texts.
      references: N texts.

    Returns:
      float64 [N] in [0, 1].
    """
    if not candidates:
        return np.zeros(0)
    tf, metrics = _tensorflow()
    pairs = zip(candidates, references, strict=True)
    split = zip(*((characters(a), characters(b)) for a, b in pairs), strict=True)
    ragged = [tf.strings.unicode_split(tf.constant(texts), "UTF-8") for texts in split]
    return metrics.rouge_l(*ragged, alpha=0.5).f_measure.numpy().astype(np.float64)


@functools.cache
def _tensorflow() -> tuple[ModuleType, ModuleType]:
    """tensorflow and tensorflow_text.metrics; seconds and 750 MB, so imported where they are used.

    TensorFlow sees no GPU: it would claim the memory of every one.
    """
    # Its native code logs before it has read TF_CPP_MIN_LOG_LEVEL.
    with _without_stderr():
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        from tensorflow_text import metrics

        tf.constant("")
    return tf, metrics


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Sends standard error to nowhere, native code's included."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def units(text: str) -> list[str]:
    """Words for counting diversity: each ideograph, and each run of other letters and digits."""
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts (Distinct-n); NaN when there are none.

    It falls with the amount of text, so only equal amounts compare. Li et al. 2016,
    https://arxiv.org/abs/1510.03055.

    Args:
      texts: n-grams are taken within each, and counted over all.
      n: units per n-gram, see `units`.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = units(text)
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(counts) / counts.total() if counts else float("nan")


def derangement(size: int, seed: int) -> np.ndarray:
    """A permutation that leaves nothing in place: one random cycle through all, int [size].

    Raises:
      ValueError: for fewer than two things, which cannot change places.
    """
    if size < 2:
        raise ValueError(f"a derangement needs 2 things or more, received {size}")
    order = np.random.default_rng(seed).permutation(size)
    result = np.empty(size, np.int64)
    result[order] = np.roll(order, 1)
    return result


def by_question(values: npt.ArrayLike, owners: npt.ArrayLike) -> np.ndarray:
    """Mean of the values of each question, float64 [questions with any value].

    Samples of one question resemble each other; a standard error over these means does not take
    them for independent.

    Args:
      values: one per answer, NaN where there is none.
      owners: index of the question of each answer.
    """
    values, owners = np.asarray(values, np.float64), np.asarray(owners, np.int64)
    known = ~np.isnan(values)
    counts = np.bincount(owners[known])
    sums = np.bincount(owners[known], weights=values[known])
    return sums[counts > 0] / counts[counts > 0]
