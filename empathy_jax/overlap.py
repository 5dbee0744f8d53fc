"""How much of one text stands in another."""


def ngrams(text: str, n: int) -> list[str]:
    """Every run of n characters, in order; of a shorter text the whole, of an empty one nothing."""
    return [text[i : i + n] for i in range(max(len(text) - n, 0) + 1)] if text else []


def ngram_overlap(question: str, answer: str, n: int) -> float:
    """Share of the answer's character n-grams that occur in the question, in [0, 1].

    Every occurrence counts: repeating one copied sentence does not lower the share. An answer shorter
    than n is compared as a whole; an empty one shares nothing.
    """
    grams = ngrams(answer, n)
    if not grams:
        return 0.0
    known = set(ngrams(question, len(grams[0])))
    return sum(gram in known for gram in grams) / len(grams)
