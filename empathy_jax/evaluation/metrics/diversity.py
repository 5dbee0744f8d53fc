"""Distinct-n: how many different n-grams a text, or a system's answers together, hold.

Distinct-n is different n-grams over all n-grams (Li et al. 2016, https://arxiv.org/abs/1510.03055).
It falls with the amount of text, so systems that write more seem to repeat themselves more. Over a
corpus it is therefore measured at equal length, by rarefaction.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse, special

from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.evaluation.metrics.tokens import Ints, Tokens, number

HALVES = 100  # half-samples of questions behind an interval
_PART = 3  # equal length is this part of the shortest: a half-sample holds that much


def ngrams(tokens: Tokens, n: int, numbers: dict[int, Ints] | None = None) -> tuple[Ints, Ints]:
    """The n-grams within texts as numbers, and the text of each.

    Args:
      tokens: the texts.
      n: tokens in an n-gram.
      numbers: what earlier calls for the same texts have worked out; it is added to.
    """
    owners = tokens.owners
    places = np.flatnonzero(np.arange(len(tokens.ids)) + n <= tokens.starts[1:][owners])
    return _numbers(tokens.ids, n, {} if numbers is None else numbers)[places], owners[places]


def _numbers(ids: Ints, n: int, known: dict[int, Ints]) -> Ints:
    """A number for the n ids from each place on, equal where they are; at the end it means nothing.

    It is made of the numbers of both halves, so that few passes are needed.
    """
    if n == 1:
        return ids
    if n not in known:
        half = n // 2
        first, second = _numbers(ids, half, known), _numbers(ids, n - half, known)
        following = np.zeros_like(ids)
        following[: max(len(ids) - half, 0)] = second[half:]
        joined = first * (int(second.max(initial=0)) + 1) + following
        known[n] = number(joined)
    return known[n]


def distinct(tokens: Tokens, counts: Sequence[sparse.csr_matrix], n: int) -> Floats:
    """Distinct-n of each text by itself, [N]; NaN for one without n-grams.

    Args:
      tokens: the texts.
      counts: of `overlap.ngram_counts`. What stands once in all texts has no column there, and is
        counted as what is left of the total.
      n: tokens in an n-gram.
    """
    total = np.maximum(tokens.lengths - n + 1, 0)
    repeats = np.asarray(counts[n - 1].sum(axis=1)).ravel() - counts[n - 1].getnnz(axis=1)
    return np.where(total > 0, (total - repeats) / np.maximum(total, 1), np.nan)


def counts_by_question(
    tokens: Tokens, n: int, texts: Sequence[Ints], questions: Sequence[Ints], size: int
) -> list[sparse.csr_matrix]:
    """n-grams of several systems' texts by question, int32 [Q, n-grams] each.

    Args:
      tokens: the texts of all systems.
      n: tokens in an n-gram.
      texts: for each system the indices of its texts.
      questions: for each system the question of each of these.
      size: Q.
    """
    grams, owners = ngrams(tokens, n)
    shape = (len(tokens.starts) - 1, int(grams.max(initial=-1)) + 1)
    ones = np.ones(len(grams), np.int32)
    by_text = sparse.csr_matrix((ones, (owners, grams)), shape=shape)
    found = []
    for own, asked in zip(texts, questions, strict=True):
        members = (np.ones(len(own), np.int32), (asked, own))
        found.append(sparse.csr_matrix(members, shape=(size, shape[0])) @ by_text)
    return found


def at_equal_length(
    counts: Sequence[sparse.csr_matrix], seed: int
) -> tuple[int, list[float], list[Floats]]:
    """Distinct-n of each system at one and the same number of n-grams.

    The number m is a third of the smallest total. For each system: the expected number of different
    n-grams among m drawn without replacement, over m (`rarefied`). A bootstrap of questions would
    count the same text twice and find few different n-grams; half of the questions, drawn without
    replacement, vary as much as a fresh set of all of them does, and repeat nothing.

    Args:
      counts: of `counts_by_question`.
      seed: of the halves, which are the same for all systems.

    Returns:
      m; the values; and for each system its values over HALVES half-samples. NaN where the smallest
      total is below three.
    """
    totals = [int(count.sum()) for count in counts]
    length = min(totals, default=0) // _PART
    if not length:
        nothing = [float("nan")] * len(counts)
        return 0, nothing, [np.full(HALVES, np.nan) for _ in counts]
    size = counts[0].shape[0]
    rng = np.random.default_rng(seed)
    halves = np.zeros((HALVES, size), np.int32)
    for row in halves:
        row[rng.permutation(size)[: -(-size // 2)]] = 1
    values = [rarefied(np.asarray(count.sum(axis=0)).ravel(), length) for count in counts]
    spread = []
    for count in counts:
        drawn = sparse.csr_matrix(halves) @ count
        rows = np.split(drawn.data, drawn.indptr[1:-1])
        spread.append(np.array([rarefied(row, length) for row in rows]))
    return length, values, spread


def rarefied(counts: Ints, length: int) -> float:
    """Different n-grams expected among `length` of all, over `length`; NaN where there are fewer.

        Σ_g 1 - C(N - c_g, m) / C(N, m),   N = Σ c_g

    (Hurlbert 1971, https://doi.org/10.2307/1934145).
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    if total < length:
        return float("nan")
    times = np.bincount(counts)
    present = np.flatnonzero(times)
    present = present[present > 0]
    left = total - present
    absent = np.where(
        left >= length,
        np.exp(_log_choose(np.maximum(left, length), length) - _log_choose(total, length)),
        0.0,
    )
    return float(((1 - absent) * times[present]).sum() / length)


def _log_choose(total: np.ndarray | int, chosen: int) -> np.ndarray:
    total = np.asarray(total, np.float64)
    return (
        special.gammaln(total + 1)
        - special.gammaln(chosen + 1)
        - special.gammaln(total - chosen + 1)
    )
