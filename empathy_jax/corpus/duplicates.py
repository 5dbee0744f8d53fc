"""Near copies among many texts, in time linear in their number.

Two texts are near duplicates when the Jaccard similarity of their sets of character n-grams

    J(A, B) = |A ∩ B| / |A ∪ B|

reaches a threshold; what differs in width, case, space and punctuation alone is the same text
(`splits.split_key`). Pairs are found by MinHash (Broder 1997, "On the resemblance and containment of
documents", https://doi.org/10.1109/SEQUEN.1997.666900) with banding (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3, http://www.mmds.org), and each is then confirmed by its
exact similarity, so that a group is joined by true near duplicates only. Groups are transitive: the
ends of a chain of near duplicates may be less alike than the threshold.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt32

from empathy_jax.corpus.splits import split_key

NGRAM = 3  # characters; about two Chinese words
HASHES = 128  # values in a signature: 512 bytes a text
FOUND = 0.99  # at least this share of the pairs right at the threshold become candidates
NEIGHBOURS = 32  # texts of one bucket that each text is compared with: bounds the work per text
_SLACK = 4.0  # standard deviations by which a signature may understate the similarity

_SEED = 20_250_914
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2⁶⁴ / golden ratio: Knuth's multiplicative hashing


def near_duplicate_groups(
    texts: Sequence[str], threshold: float = 0.8, ngram: int = NGRAM
) -> Int64[np.ndarray, " N"]:
    """The group of each text: the index of the first text of its group, int64 [N].

    Of the pairs right at the threshold at least `FOUND` are found, of those above it more; no pair
    below it is ever joined directly. The result depends on the texts and their order alone.

    A bucket with thousands of members costs each of them `NEIGHBOURS` comparisons, not thousands:
    members are compared with those next to them, and exact copies are set aside first.

    Args:
      texts: N texts.
      threshold: smallest Jaccard similarity of near duplicates, in (0, 1].
      ngram: characters in an n-gram, 1 or more.

    Raises:
      ValueError: for a threshold or an n-gram length out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"The threshold must lie in (0, 1], got {threshold};"
            " change config.corpus.near_duplicate_threshold."
        )
    if ngram < 1:
        raise ValueError(f"An n-gram has 1 character or more, got {ngram}.")
    first: dict[str, int] = {}
    originals = np.array(
        [first.setdefault(split_key(text), index) for index, text in enumerate(texts)], np.int64
    )
    keys = list(first)
    if not keys:
        return originals
    signatures = np.stack([signature(key, ngram) for key in keys])
    pairs = _candidates(signatures, threshold)
    roots = _join(keys, pairs, threshold, ngram)
    # Numbers of distinct keys back to indices of texts; both run in the order of first sight.
    group = dict(zip(first.values(), np.array(list(first.values()))[roots], strict=True))
    return np.array([group[index] for index in originals.tolist()], np.int64)


def ngrams(key: str, ngram: int = NGRAM) -> set[str]:
    """The set of a text's character n-grams; a shorter text is its own only one."""
    return {key[start : start + ngram] for start in range(max(len(key) - ngram + 1, 1))}


def jaccard(first: str, second: str, ngram: int = NGRAM) -> float:
    """|A ∩ B| / |A ∪ B| of the n-gram sets of two texts' `split_key`s."""
    a, b = ngrams(split_key(first), ngram), ngrams(split_key(second), ngram)
    return len(a & b) / len(a | b)


def signature(key: str, ngram: int = NGRAM) -> UInt32[np.ndarray, " H"]:
    """MinHash of the n-gram set: min over its hashes x of (aₕ·x + bₕ) mod 2³², for each h.

    Two signatures agree at a place with a probability that is the Jaccard similarity of the sets.
    """
    codes = np.frombuffer(key.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    codes = np.pad(codes, (0, max(ngram - len(codes), 0)))
    mixed = np.zeros(len(codes) - ngram + 1, np.uint64)
    for offset in range(ngram):
        mixed = (mixed ^ codes[offset : offset + len(mixed)]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    slopes, shifts = _permutations()
    return np.min(slopes * (mixed >> np.uint64(32)).astype(np.uint32) + shifts, axis=1)


@functools.cache
def _permutations() -> tuple[UInt32[np.ndarray, "H 1"], UInt32[np.ndarray, "H 1"]]:
    """Slopes (odd, so that each is a permutation of the 32-bit numbers) and shifts."""
    draw = np.random.default_rng(_SEED).integers(0, 2**32, (2, HASHES, 1), np.uint32)
    return draw[0] | np.uint32(1), draw[1]


def rows_per_band(threshold: float) -> int:
    """The most rows r such that a pair right at the threshold t still meets in some of the
    ⌊H/r⌋ bands with probability 1 - (1 - tʳ)^⌊H/r⌋ ≥ `FOUND`."""
    chances = [1 - (1 - threshold**rows) ** (HASHES // rows) for rows in range(1, HASHES + 1)]
    return max((rows for rows, chance in enumerate(chances, 1) if chance >= FOUND), default=1)


def _candidates(signatures: UInt32[np.ndarray, "N H"], threshold: float) -> list[tuple[int, int]]:
    """Pairs (i < j), sorted, that share a band and whose signatures do not rule them out."""
    count = len(signatures)
    found = [first * count + second for first, second in _meetings(signatures, threshold)]
    codes = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    agreeing = np.empty(len(codes), np.int64)
    for begin in range(0, len(codes), 1 << 16):
        first, second = np.divmod(codes[begin : begin + (1 << 16)], count)
        agreeing[begin : begin + len(first)] = np.sum(
            signatures[first] == signatures[second], axis=1
        )
    deviation = (threshold * (1 - threshold) * HASHES) ** 0.5
    first, second = np.divmod(codes[agreeing >= threshold * HASHES - _SLACK * deviation], count)
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _meetings(
    signatures: UInt32[np.ndarray, "N H"], threshold: float
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """For each band, pairs (i < j) of texts in one bucket at most `NEIGHBOURS` places apart."""
    rows = rows_per_band(threshold)
    for begin in range(0, HASHES - rows + 1, rows):
        bucket = np.zeros(len(signatures), np.uint64)
        for column in signatures[:, begin : begin + rows].T:
            bucket = (bucket ^ column) * _MIX
            bucket ^= bucket >> np.uint64(29)
        order = np.argsort(bucket, kind="stable")
        bucket = bucket[order]
        for lag in range(1, min(NEIGHBOURS + 1, len(bucket))):
            (places,) = np.nonzero(bucket[lag:] == bucket[:-lag])
            if not len(places):
                break
            yield order[places], order[places + lag]


def _join(
    keys: Sequence[str], pairs: Sequence[tuple[int, int]], threshold: float, ngram: int
) -> list[int]:
    """The smallest member of each key's group after joining the pairs that are near duplicates."""
    parents = list(range(len(keys)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    current, own = -1, set()
    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        if low == high:
            continue
        if first != current:
            current, own = first, ngrams(keys[first], ngram)
        other = ngrams(keys[second], ngram)
        shared = len(own & other)
        if shared >= threshold * (len(own) + len(other) - shared):
            parents[high] = low
    return [root(index) for index in range(len(keys))]
