"""What a reward model's cosine is worth: accuracy on held-out questions, threshold, quantiles."""

from collections.abc import Callable

import numpy as np

from empathy_jax.data.pairs import positives

QUANTILES = 101


def calibrate(records: list[dict], scorer) -> dict:
    """Measures a reward model on held-out questions, each against every other's answer.

    With S the cosines of Q questions and the Q first good answers, the diagonal is genuine and the
    rest are answers to another question:
      - pairwise accuracy: share of (question, other answer) with the genuine one ahead, and its
        standard error over questions; chance is 0.5;
      - recall@1: share of questions whose genuine answer is first; chance is 1/Q;
      - threshold: the cosine with the best balanced accuracy of genuine against other;
      - quantiles: of genuine and other cosines, weighed equally, at ranks 0, 0.01, ..., 1.

    Args:
      records: question records with answers, at least two with a good one.
      embed: texts to unit vectors [N, D].

    Returns:
      JSON values.

    Raises:
      ValueError: with fewer than two questions that have an answer.
    """
    pairs = [(record["question"], positives(record)[0]) for record in records if positives(record)]
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} held-out questions have an answer, two are needed to calibrate; raise "
            "config.data.validation_fraction or give more in config.data.questions"
        )
    questions, answers = zip(*pairs, strict=True)
    cosines = scorer.embed_questions(list(questions)) @ scorer.embed_answers(list(answers)).T
    count = len(pairs)
    genuine = np.diag(cosines)
    other = cosines[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    wins = (genuine[:, None] > other) + 0.5 * (genuine[:, None] == other)
    per_question = wins.mean(axis=1)
    threshold, balanced = best_threshold(genuine, other.ravel())
    return {
        "questions": count,
        "pairwise_accuracy": float(per_question.mean()),
        "pairwise_accuracy_error": float(per_question.std(ddof=1) / np.sqrt(count)),
        "recall_at_1": float((genuine > other.max(axis=1)).mean()),
        "threshold": threshold,
        "balanced_accuracy": balanced,
        "quantiles": mixed_quantiles(genuine, other.ravel()).tolist(),
        "genuine_mean": float(genuine.mean()),
        "other_mean": float(other.mean()),
    }


def best_threshold(genuine: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The cosine that separates best: (threshold, balanced accuracy there).

    Balanced accuracy of "genuine where cosine >= t" is (P(genuine >= t) + P(other < t)) / 2; the
    candidates are all values seen, and of equal ones the lowest is taken.
    """
    candidates = np.unique(np.concatenate([genuine, other]))
    kept = 1 - np.searchsorted(np.sort(genuine), candidates, side="left") / genuine.size
    refused = np.searchsorted(np.sort(other), candidates, side="left") / other.size
    balanced = (kept + refused) / 2
    best = int(np.argmax(balanced))
    return float(candidates[best]), float(balanced[best])


def mixed_quantiles(genuine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Quantiles of the even mixture of two samples, at QUANTILES equally spaced ranks."""
    values = np.concatenate([genuine, other])
    weights = np.concatenate(
        [np.full(genuine.size, 0.5 / genuine.size), np.full(other.size, 0.5 / other.size)]
    )
    order = np.argsort(values, kind="stable")
    values, ranks = values[order], np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(np.linspace(0, 1, QUANTILES), ranks, values)
