"""How much of one text stands in another."""


def ngram_overlap(question: str, answer: str, n: int) -> float:
    """Share of the answer's character n-grams that occur in the question, in [0, 1].

    Every occurrence counts: repeating one copied sentence does not lower the share. An answer shorter
    than n is compared as a whole; an empty one shares nothing.
    """
    n = min(n, len(answer))
    if n == 0:
        return 0.0
    known = {question[i : i + n] for i in range(len(question) - n + 1)}
    total = len(answer) - n + 1
    return sum(answer[i : i + n] in known for i in range(total)) / total
