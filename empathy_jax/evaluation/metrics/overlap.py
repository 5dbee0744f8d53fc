"""BLEU, ROUGE, METEOR and chrF of pairs of texts, many pairs at a time.

Everything is made of counts: the n-grams of each text as a sparse row, and for a pair the sum of the
smaller counts (the clipped matches). Scores are in [0, 1]. Tests hold each against sacrebleu,
rouge-chinese, tensorflow_text and nltk.

Legend: N texts, P pairs. `pairs` is int [P, 2]: the index of a candidate and of a reference.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq
from scipy import sparse

from empathy_jax.evaluation.metrics.tokens import Ints, Tokens, number

Floats = NDArray[np.float64]
BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2.0
# METEOR's weights, as in Lavie & Agarwal 2007.
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5
BLOCK = 2048  # pairs whose counts are held at a time


def score_pairs(
    tokens: Tokens, counts: Sequence[sparse.csr_matrix], pairs: Ints
) -> dict[str, Floats]:
    """Every metric of this module for each pair.

    Args:
      tokens: the texts.
      counts: of `ngram_counts`, up to BLEU_ORDER, or up to CHRF_ORDER for characters.
      pairs: [P, 2].

    Returns:
      `bleu_1` to `bleu_4`, `rouge_1`, `rouge_2`, `rouge_l`, `meteor` and, with counts up to
      CHRF_ORDER, `chrf`, each [P].
    """
    found = matches(counts, pairs)
    candidate, reference = (totals(tokens, len(counts))[side] for side in pairs.T)
    # A text has itself wholly in common, n-grams without a column included.
    itself = pairs[:, 0] == pairs[:, 1]
    found[itself] = candidate[itself]
    scores = {
        f"bleu_{n}": bleu(found[:, :n], candidate[:, :n], candidate[:, 0], reference[:, 0])
        for n in range(1, BLEU_ORDER + 1)
    }
    for n in (1, 2):
        scores[f"rouge_{n}"] = f_measure(found[:, n - 1], candidate[:, n - 1], reference[:, n - 1])
    common = common_subsequence(tokens, pairs)
    scores["rouge_l"] = f_measure(common, candidate[:, 0], reference[:, 0])
    scores["meteor"] = meteor(tokens, pairs)
    if len(counts) == CHRF_ORDER:
        scores["chrf"] = chrf(found, candidate, reference)
    return scores


def ngram_counts(tokens: Tokens, order: int) -> list[sparse.csr_matrix]:
    """For n = 1 to `order` the n-grams of each text: int32 [N, different n-grams of two or more].

    An n-gram that stands once in all texts matches nothing, and has no column.
    """
    size, owners = len(tokens.starts) - 1, tokens.owners
    ends = tokens.starts[1:][owners]
    places, grams = np.arange(len(tokens.ids)), tokens.ids
    found = []
    for n in range(1, order + 1):
        if n > 1:
            fits = places + n <= ends[places]
            places, grams = places[fits], grams[fits]
            grams = grams * tokens.vocabulary + tokens.ids[places + n - 1]
        grams = number(grams)
        times = np.bincount(grams)
        # What stands once has no longer n-gram that stands twice.
        kept = times[grams] > 1
        places, grams = places[kept], grams[kept]
        rows = owners[places]
        shape = (size, len(times))
        found.append(sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, grams)), shape=shape))
    return found


def orders(tokenization: str) -> int:
    """The longest n-grams that are counted: chrF's for characters, else BLEU's."""
    return CHRF_ORDER if tokenization == "char" else BLEU_ORDER


def totals(tokens: Tokens, order: int) -> Ints:
    """Number of n-grams of each text, for n = 1 to `order`, [N, order]."""
    return np.maximum(tokens.lengths[:, None] - np.arange(order), 0)


def matches(counts: Sequence[sparse.csr_matrix], pairs: Ints) -> Ints:
    """Clipped matches Σ_g min(count_candidate(g), count_reference(g)), [P, orders]."""
    found = np.zeros((len(pairs), len(counts)), np.int64)
    for start in range(0, len(pairs), BLOCK):
        block = slice(start, start + BLOCK)
        candidate, reference = pairs[block].T
        for n, count in enumerate(counts):
            smaller = count[candidate].minimum(count[reference])
            found[block, n] = np.asarray(smaller.sum(axis=1)).ravel()
    return found


def best_counts(counts: sparse.csr_matrix, references: Sequence[Ints]) -> sparse.csr_matrix:
    """The largest count of each n-gram over the texts of each group, a row for each group."""
    best = None
    for place in range(max(map(len, references), default=0)):
        # A group with fewer texts is given its first one again.
        row = counts[[own[place] if place < len(own) else own[0] for own in references]]
        best = row if best is None else best.maximum(row)
    return best


def bleu_statistics(
    tokens: Tokens,
    counts: Sequence[sparse.csr_matrix],
    candidates: Ints,
    references: Sequence[Ints],
) -> Floats:
    """What corpus BLEU sums up, of each candidate against all its references.

    Matches are clipped by the largest count over the references, and the reference length is the
    one closest to the candidate's, the shorter of two (Papineni et al. 2002,
    https://aclanthology.org/P02-1040).

    Args:
      tokens: the texts.
      counts: of `ngram_counts`, n = 1 to 4.
      candidates: C text indices.
      references: for each the text indices of its references, at least one.

    Returns:
      [C, 10]: candidate length, reference length, four matches, four totals.
    """
    lengths, own = tokens.lengths, totals(tokens, BLEU_ORDER)[candidates]
    # Many candidates share their references.
    groups: dict[tuple[int, ...], int] = {}
    group = np.array([groups.setdefault(tuple(some), len(groups)) for some in references])
    found = np.zeros((len(candidates), BLEU_ORDER))
    for n, count in enumerate(counts[:BLEU_ORDER]):
        best = best_counts(count, list(groups))
        for start in range(0, len(candidates), BLOCK):
            block = slice(start, start + BLOCK)
            smaller = count[candidates[block]].minimum(best[group[block]])
            found[block, n] = np.asarray(smaller.sum(axis=1)).ravel()
    itself = [index in some for index, some in zip(candidates, references, strict=True)]
    found[itself] = own[itself]
    closest = [
        min(lengths[some], key=lambda length: (abs(length - lengths[index]), length))
        for index, some in zip(candidates, references, strict=True)
    ]
    return np.column_stack([lengths[candidates], closest, found, own]).astype(np.float64)


def corpus_bleu(statistics: Floats) -> Floats:
    """BLEU-4 of summed `bleu_statistics` [..., 10]."""
    found, total = statistics[..., 2 : 2 + BLEU_ORDER], statistics[..., 2 + BLEU_ORDER :]
    shape = found.shape[:-1]
    rows = (found.reshape(-1, BLEU_ORDER), total.reshape(-1, BLEU_ORDER))
    lengths = (statistics[..., side].reshape(-1) for side in (0, 1))
    return bleu(*rows, *lengths).reshape(shape)


def bleu(found: NDArray, total: NDArray, length: NDArray, reference_length: NDArray) -> Floats:
    """BLEU up to the order of the counts, as sacrebleu scores a sentence.

        BP · exp(1/n Σ_k log p_k),   BP = exp(min(0, 1 - reference / candidate))

    An order without a match counts half a match, then a quarter, and so on (exponential smoothing),
    and orders longer than the candidate are left out (effective order). Papineni et al. 2002,
    https://aclanthology.org/P02-1040; Post 2018, https://aclanthology.org/W18-6319.

    Args:
      found: clipped matches [P, n].
      total: n-grams of the candidate [P, n].
      length, reference_length: [P].
    """
    exists = total > 0
    missed = exists & (found == 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), found)
    logs = np.log(np.where(exists, smoothed, 1.0) / np.where(exists, total, 1))
    mean = logs.sum(axis=1) / np.maximum(exists.sum(axis=1), 1)
    penalty = np.minimum(0.0, 1 - reference_length / np.maximum(length, 1))
    return np.where(found.any(axis=1), np.exp(mean + penalty), 0.0)


def f_measure(found: NDArray, candidate: NDArray, reference: NDArray) -> Floats:
    """F = 2PR / (P + R) of matches [P] among the units of candidate and reference; 0 without units.

    With n-grams this is ROUGE-N, with the longest common subsequence ROUGE-L: Lin 2004,
    https://aclanthology.org/W04-1013.
    """
    return 2.0 * found / np.maximum(candidate + reference, 1)


def chrf(found: NDArray, candidate: NDArray, reference: NDArray) -> Floats:
    """chrF2 of character n-grams, n = 1 to 6, as sacrebleu scores it.

        (1 + β²) P R / (β² P + R),   P and R means over the orders that both texts have

    Popović 2015, https://aclanthology.org/W15-3049.

    Args:
      found, candidate, reference: matches and totals [P, 6].
    """
    both = (candidate > 0) & (reference > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision, recall = (
        np.where(both, found / np.maximum(total, 1), 0.0).sum(axis=1) / orders
        for total in (candidate, reference)
    )
    weighed = CHRF_BETA**2 * precision + recall
    return (1 + CHRF_BETA**2) * precision * recall / np.where(weighed > 0, weighed, 1.0)


def meteor(tokens: Tokens, pairs: Ints) -> Floats:
    """METEOR with exact matches alone: no stems, no synonyms, which Chinese has no tables of.

        (1 - γ (chunks / matches)^β) · P R / (α P + (1 - α) R),   α 0.9, β 3, γ 0.5

    Of equal tokens the last of the candidate matches the last of the reference, then the one before
    it, as in nltk: an alignment with fewer chunks may exist. Lavie & Agarwal 2007,
    https://aclanthology.org/W07-0734.
    """
    aligned = _alignable(tokens)
    lengths = tokens.lengths
    scores = np.zeros(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        block = slice(start, start + BLOCK)
        rows, first, second = _alignment(aligned, *pairs[block].T)
        count = np.bincount(rows, minlength=len(pairs[block]))
        follows = (np.diff(rows) == 0) & (np.diff(first) == 1) & (np.diff(second) == 1)
        chunks = count - np.bincount(rows[1:][follows], minlength=len(count))
        precision, recall = (count / np.maximum(lengths[side], 1) for side in pairs[block].T)
        weighed = METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall
        mean = precision * recall / np.where(weighed > 0, weighed, 1.0)
        scores[block] = (1 - METEOR_GAMMA * (chunks / np.maximum(count, 1)) ** METEOR_BETA) * mean
    return scores


def _alignable(tokens: Tokens) -> sparse.csr_matrix:
    """Place of the k-th last occurrence of each token in each text, from 1, [N, (token, k)]."""
    rows = tokens.owners
    groups = rows * tokens.vocabulary + tokens.ids
    order = np.argsort(groups, kind="stable")
    sizes = np.unique(groups, return_counts=True)[1]
    from_end = np.empty(len(groups), np.int64)
    from_end[order] = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(groups))
    keys = number(tokens.ids * (from_end.max(initial=0) + 1) + from_end)
    places = np.arange(len(groups)) - tokens.starts[rows] + 1
    shape = (len(tokens.starts) - 1, int(keys.max(initial=-1)) + 1)
    return sparse.csr_matrix((places.astype(np.int32), (rows, keys)), shape=shape)


def _alignment(
    aligned: sparse.csr_matrix, candidate: Ints, reference: Ints
) -> tuple[Ints, Ints, Ints]:
    """Matches of all pairs in the order of the candidate: pair, place in it, place in the other."""
    rows = aligned[candidate], aligned[reference]
    first = rows[0].multiply(rows[1].astype(bool)).tocsr()
    second = rows[1].multiply(rows[0].astype(bool)).tocsr()
    for matrix in (first, second):
        matrix.sort_indices()
    pair = np.repeat(np.arange(len(candidate)), np.diff(first.indptr))
    order = np.lexsort((first.data, pair))
    return pair, first.data[order], second.data[order]


def common_subsequence(tokens: Tokens, pairs: Ints) -> Ints:
    """Length of the longest common subsequence of each pair, by rapidfuzz (bit-parallel), [P]."""
    if not len(pairs):
        return np.zeros(0, np.int64)
    # Both orders of a pair have the same one.
    size = len(tokens.starts)
    keys, places = np.unique(pairs.min(axis=1) * size + pairs.max(axis=1), return_inverse=True)
    texts = _as_strings(tokens)
    first, second = ([texts[index] for index in side] for side in np.divmod(keys, size))
    return process.cpdist(first, second, scorer=LCSseq.similarity, dtype=np.int64)[places]


def _as_strings(tokens: Tokens) -> list[str]:
    """Texts with one code point for each token, surrogates left out."""
    points = tokens.ids + np.where(tokens.ids < 0xD800, 0, 0x800)
    flat = points.astype("<u4").tobytes().decode("utf-32-le")
    return [flat[start:end] for start, end in itertools.pairwise(tokens.starts)]
