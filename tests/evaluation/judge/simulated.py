"""Judges whose strengths, bias of place and love of length are known."""

import numpy as np

from empathy_jax.evaluation.judge import comparing, style
from empathy_jax.evaluation.judge.comparing import Judgement, Settings, Showing
from empathy_jax.evaluation.judge.replies import Verdict
from empathy_jax.evaluation.ranking import DIMENSIONS
from empathy_jax.evaluation.ranking.study import Question


def questions_of(rng, count: int, longer: np.ndarray) -> list[Question]:
    """Questions with one answer of each system; `longer` are the systems' mean log-lengths [S]."""
    lengths = np.exp(rng.normal(longer, 0.6, (count, len(longer)))).astype(int) + 5
    return [
        Question(
            f"q{n}", f"问题{n}", tuple("好" * length + f"。{s}" for s, length in enumerate(row))
        )
        for n, row in enumerate(lengths)
    ]


def chances(questions, strengths, place=0.0, length=0.0):
    """P(i is preferred to j where i stands first), [Q, S, S]."""
    scaled, _ = style.standardise(style.differences([question.answers for question in questions]))
    likes = strengths[:, None] - strengths[None, :] + length * scaled[..., 0]
    return 1 / (1 + np.exp(-(likes + place)))


def judge(rng, questions, first_wins, name="judge") -> list[Judgement]:
    """Independent verdicts on all pairs in both orders, the same on every dimension."""
    systems = first_wins.shape[1]
    found = []
    for showing in comparing.showings(questions, systems, Settings("pairwise", "zh")):
        (first,), (second,) = showing.places
        won = rng.random() < first_wins[showing.question, first, second]
        found.append(judgement(showing, [[0], [1]] if won else [[1], [0]], name))
    return found


def judgement(showing: Showing, order, name="judge", fault=None) -> Judgement:
    verdict = None if fault else Verdict("", dict.fromkeys(DIMENSIONS, order))
    return Judgement("", name, showing, verdict, fault, 1)
