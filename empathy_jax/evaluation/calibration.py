"""What a reward model is worth: ranks, thresholds, quantiles and reliability on held-out questions.

Everything is computed by numpy from the cosines of questions and answers, and is the same whenever
the seed is. A score equal to that of the genuine answer counts against the model, except in the
pairwise accuracy, where it counts one half.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from empathy_jax.corpus.duplicates import near_duplicate_groups
from empathy_jax.data import corruptions
from empathy_jax.data.pairs import positives
from empathy_jax.rl.rewards import quantile_scaled

QUANTILES = 101
CANDIDATES = 100  # answers that the genuine one is ranked among, itself included
BINS = 10


def calibrate(
    records: Sequence[dict[str, Any]],
    scorer: Any,
    pass_rate: float,
    language: str,
    max_characters: int,
    seed: int,
    limit: int,
) -> dict[str, Any]:
    """Measures a reward model on held-out questions, each against the others' answers.

    With S the cosines of N questions and their N first good answers, the diagonal is genuine and
    the rest are answers to another question. Where an answer answers several questions, the first
    is kept. Each text is embedded once.

    Args:
      records: question records with answers, at least two with different good ones.
      scorer: has `embed_questions` and `embed_answers`, texts to unit vectors [N, D], `has_head`
        and, with a head, `quality`; see `training.scorer.Scorer`.
      pass_rate: share of genuine answers to pass at `pass_rate_threshold`, in (0, 1].
      language: of the corruptions, "zh" or "en".
      max_characters: of an answer that the model sees.
      seed: of the random candidates and of the corruptions.
      limit: most questions whose answers are corrupted, or graded; 0 leaves both out.

    Returns:
      JSON values:
      - max_characters as given, questions: N;
      - pairwise_accuracy (+ _error): share of other answers below the genuine one; chance is 0.5;
      - recall_at_1: share of questions whose genuine answer is first of all N; chance is 1/N;
      - random, nearest: of `ranks` among CANDIDATES answers (or N, where that is less): to questions
        drawn at random, and to the questions nearest by the model's own cosine;
      - threshold, balanced_accuracy: see `best_threshold`;
      - pass_rate, pass_rate_threshold: see `threshold_at`;
      - quantiles: of genuine and other cosines, weighed equally, at ranks 0, 0.01, ..., 1;
      - reliability: see `reliability`;
      - negatives: for each kind of worse answer, the share of questions where the genuine answer
        scores higher: `random`, `same_topic` (the nearest question's), and each corruption;
      - genuine_mean, other_mean;
      - with a head, quality_quantiles and graded, see `grade`.

    Raises:
      ValueError: with fewer than two questions that have answers of their own, or a bad pass rate.
    """
    known = answered(records)
    count, some = len(known), min(len(known), limit)
    corrupted = corrupt_all(known, some, language, max_characters, seed)
    vectors, cosines, corrupted_cosines = _embed(known, corrupted, scorer)
    genuine = np.diag(cosines)
    other = cosines[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    candidates = min(CANDIDATES, count) - 1
    at_random = np.take_along_axis(cosines, draw_others(count, candidates, seed), axis=1)
    of_nearest = np.take_along_axis(cosines, nearest(vectors, candidates), axis=1)
    negatives = {"random": other, "same_topic": of_nearest[:, :1]} | corrupted_cosines
    return {
        "max_characters": max_characters,
        **among_all(genuine, other, pass_rate),
        "random": ranks(genuine, at_random),
        "nearest": ranks(genuine, of_nearest),
        "negatives": {
            kind: accuracy_over(genuine[: len(worse)], worse) for kind, worse in negatives.items()
        },
        **(grade(records, scorer, limit) if scorer.has_head and limit else {}),
    }


def answered(records: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Records with their first good answer; of records that share it, or whose questions are near
    duplicates, the first alone.

    Raises:
      ValueError: when fewer than two are left.
    """
    groups = near_duplicate_groups([record["question"] for record in records])
    owners: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(records):
        if groups[number] == number and (good := positives(record)):
            owners.setdefault(good[0], record)
    if len(owners) < 2:
        raise ValueError(
            f"{len(owners)} held-out questions have an answer of their own, two are needed to "
            "compare; raise config.data.validation_fraction or give more in config.data.questions"
        )
    return [(record, answer) for answer, record in owners.items()]


def corrupt_all(
    known: Sequence[tuple[dict[str, Any], str]],
    count: int,
    language: str,
    max_characters: int,
    seed: int,
) -> dict[str, list[str]]:
    """Each kind of corruption of the first `count` answers, with the next answer as the other."""
    if count == 0:
        return {}
    rng = np.random.default_rng(seed)
    others = [answer for _, answer in (*known[1:], known[0])]
    return {
        kind: [
            corruptions.corrupt(
                kind, rng, record["question"], answer, other, max_characters, language
            )
            for (record, answer), other in zip(known[:count], others[:count], strict=True)
        ]
        for kind in corruptions.KINDS
    }


def among_all(genuine: np.ndarray, other: np.ndarray, pass_rate: float) -> dict[str, Any]:
    """What the cosines of genuine answers [N] and of all others [N, N - 1] say by themselves."""
    wins = (genuine[:, None] > other) + 0.5 * (genuine[:, None] == other)
    accuracy, accuracy_error = mean_and_error(wins.mean(axis=1))
    threshold, balanced = best_threshold(genuine, other.ravel())
    quantiles = mixed_quantiles(genuine, other.ravel())
    return {
        "questions": genuine.size,
        "pairwise_accuracy": accuracy,
        "pairwise_accuracy_error": accuracy_error,
        "recall_at_1": float((genuine > other.max(axis=1)).mean()),
        "threshold": threshold,
        "balanced_accuracy": balanced,
        "pass_rate": pass_rate,
        "pass_rate_threshold": threshold_at(genuine, pass_rate),
        "quantiles": quantiles.tolist(),
        "reliability": reliability(genuine, other.ravel(), quantiles),
        "genuine_mean": float(genuine.mean()),
        "other_mean": float(other.mean()),
    }


def mean_and_error(values: npt.ArrayLike) -> tuple[float, float]:
    """Mean and its standard error (0 for fewer than two values)."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else 0.0
    return float(values.mean()), float(error)


def nearest(vectors: np.ndarray, count: int, allowed: npt.ArrayLike = True) -> np.ndarray:
    """Indices [N, count] of the nearest other rows by cosine, the nearest first.

    Args:
      vectors: unit vectors [N, D].
      count: at most the number of others that are allowed.
      allowed: bool, broadcastable to [N, N]; which others a row may be given.
    """
    similar = np.where(allowed, vectors @ vectors.T, -np.inf)
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1, kind="stable")[:, :count]


def draw_others(size: int, count: int, seed: int) -> np.ndarray:
    """For each of `size` things, `count` different others drawn at random, int [size, count]."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(size - 1, count, replace=False) for _ in range(size)])
    return drawn + (drawn >= np.arange(size)[:, None])


def ranks(genuine: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Where the genuine answer stands among others: recall@1 and mean reciprocal rank.

    rank = 1 + #{others >= genuine}; MRR = mean of 1 / rank. Both with standard errors over the
    questions.

    Args:
      genuine: cosines [N].
      others: cosines of M other answers to each question [N, M].
    """
    rank = 1 + (others >= genuine[:, None]).sum(axis=1)
    recall, recall_error = mean_and_error(rank == 1)
    mrr, mrr_error = mean_and_error(1 / rank)
    return {
        "answers": others.shape[1] + 1,
        "recall_at_1": recall,
        "recall_at_1_error": recall_error,
        "mrr": mrr,
        "mrr_error": mrr_error,
    }


def accuracy_over(genuine: np.ndarray, worse: np.ndarray) -> dict[str, float]:
    """Share of worse answers [N, M] scored below the genuine one [N], with error over questions."""
    accuracy, error = mean_and_error((genuine[:, None] > worse).mean(axis=1))
    return {"accuracy": accuracy, "error": error, "questions": genuine.size}


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


def threshold_at(genuine: np.ndarray, pass_rate: float) -> float:
    """The highest cosine seen that at least this share of genuine answers reaches.

    Raises:
      ValueError: for a share outside (0, 1].
    """
    if not 0 < pass_rate <= 1:
        raise ValueError(
            f"config.reward_model.pass_rate is {pass_rate}; it is the share of genuine answers "
            "that pass, above 0 and at most 1"
        )
    # 0.3 * 10 is a little more than 3; that must not ask for a fourth answer.
    wanted = int(np.ceil(pass_rate * genuine.size - 1e-9))
    return float(np.sort(genuine)[::-1][wanted - 1])


def mixed_quantiles(genuine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Quantiles of the even mixture of two samples, at QUANTILES equally spaced ranks."""
    values, weights = _even_mixture(genuine, other)
    order = np.argsort(values, kind="stable")
    values, places = values[order], np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(np.linspace(0, 1, QUANTILES), places, values)


def reliability(genuine: np.ndarray, other: np.ndarray, quantiles: np.ndarray) -> dict[str, Any]:
    """How often an answer is genuine at each height of the quantile-scaled score.

    Genuine and other weigh the same, so the bins of the score, [0, 0.1), ..., [0.9, 1], hold equal
    mass but for ties. A model that separates has shares near 0 in the low bins and near 1 in the
    high ones; one that is blind has 0.5 in all.

    Returns:
      `bins`: for each that is not empty its mean `score`, the share `genuine` and its `mass`; and
      `expected_calibration_error` = Σ mass · |genuine - score|, as in Guo et al. 2017
      (https://arxiv.org/abs/1706.04599), with the score read as a probability. A score is a rank,
      so this is 0.25 for a blind model, and again for one that separates perfectly.
    """
    values, weights = _even_mixture(genuine, other)
    is_genuine = np.arange(values.size) < genuine.size
    scores = np.asarray(quantile_scaled(values, quantiles), np.float64)
    places = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    mass, score_sum, genuine_sum = (
        np.bincount(places, weights=weights * factor, minlength=BINS)
        for factor in (1.0, scores, is_genuine)
    )
    bins = [
        {"score": float(s / m), "genuine": float(g / m), "mass": float(m)}
        for m, s, g in zip(mass, score_sum, genuine_sum, strict=True)
        if m > 0
    ]
    error = sum(entry["mass"] * abs(entry["genuine"] - entry["score"]) for entry in bins)
    return {"bins": bins, "expected_calibration_error": error}


def grade(records: Sequence[dict[str, Any]], scorer: Any, limit: int) -> dict[str, Any]:
    """What a scalar head makes of answers of different grades.

    Args:
      records: question records, their answers with `score` where they are graded.
      scorer: has `quality` and `similarity` of (questions, answers), [N].
      limit: the first so many of the questions with answers are taken.

    Returns:
      `quality_quantiles` over all answers at QUANTILES ranks; and `graded`, over the pairs of
      answers to one question with different grades: the share where the better one has the higher
      `quality`, and the higher `cosine`, each a mean over questions with its standard error, with
      the number of questions and pairs. None where no answers are graded apart.
    """
    chosen = [record for record in records if record["answers"]][:limit]
    rows = [
        (record["question"], answer["text"]) for record in chosen for answer in record["answers"]
    ]
    questions, answers = (list(column) for column in zip(*rows, strict=True))
    quality = np.asarray(scorer.quality(questions, answers), np.float64)
    cosine = np.asarray(scorer.similarity(questions, answers), np.float64)
    pairs = [better_and_worse(record["answers"]) for record in chosen]
    starts = np.cumsum([0, *(len(record["answers"]) for record in chosen)])
    graded = None
    if any(pairs):
        graded = {"questions": sum(map(bool, pairs)), "pairs": sum(map(len, pairs))}
        for name, values in (("quality", quality), ("cosine", cosine)):
            shares = [
                np.mean([values[start + better] > values[start + worse] for better, worse in own])
                for start, own in zip(starts, pairs, strict=False)
                if own
            ]
            graded[name], graded[f"{name}_error"] = mean_and_error(shares)
    quantiles = np.quantile(quality, np.linspace(0, 1, QUANTILES))
    return {"quality_quantiles": quantiles.tolist(), "graded": graded}


def better_and_worse(answers: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of positions of answers to one question, the first with the higher `score`."""
    known = [(i, a["score"]) for i, a in enumerate(answers) if a.get("score") is not None]
    return [(i, j) for i, better in known for j, worse in known if better > worse]


def _embed(
    known: Sequence[tuple[dict[str, Any], str]], corrupted: Mapping[str, Sequence[str]], scorer: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Vectors of N questions [N, D], cosines with all answers [N, N], with corrupted ones [n, 1]."""
    questions = np.asarray(scorer.embed_questions([record["question"] for record, _ in known]))
    texts = [answer for _, answer in known]
    vectors = scorer.embed_answers(texts + [text for made in corrupted.values() for text in made])
    questions, vectors = questions.astype(np.float64), np.asarray(vectors, np.float64)
    cosines, start = {}, len(known)
    for kind, made in corrupted.items():
        own = vectors[start : start + len(made)]
        cosines[kind] = np.einsum("nd,nd->n", questions[: len(made)], own)[:, None]
        start += len(made)
    return questions, questions @ vectors[: len(known)].T, cosines


def _even_mixture(genuine: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of two samples, genuine ones first, and weights that give each sample one half."""
    weights = [np.full(sample.size, 0.5 / sample.size) for sample in (genuine, other)]
    return np.concatenate([genuine, other]), np.concatenate(weights)
