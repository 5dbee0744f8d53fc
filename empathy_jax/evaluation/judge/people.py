"""Human rankings of the same answers (evaluation.ranking), as outcomes beside those of a judge."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from empathy_jax.evaluation.judge import agreement, outcomes
from empathy_jax.evaluation.judge.outcomes import LOSS, WIN, Codes
from empathy_jax.evaluation.ranking import analysis
from empathy_jax.evaluation.ranking.analysis import Ballots
from empathy_jax.evaluation.ranking.statistics import Floats
from empathy_jax.evaluation.ranking.study import Question, canonical


@dataclasses.dataclass(frozen=True)
class Votes:
    """Votes of people on questions and systems that the judges saw too.

    Attributes:
      systems: [C] indices of the common systems in the judges' order.
      question: [V] index of the judges' question.
      ranks: dimension to ranks [V, C].
      left_out: reason to number of votes.
    """

    systems: list[int]
    question: np.ndarray
    ranks: Mapping[str, Floats]
    left_out: dict[str, int]


def read(
    public: Mapping[str, Any],
    key: Mapping[str, Any],
    votes: Mapping[tuple[str, str], Mapping[str, Any]],
    systems: Sequence[str],
    questions: Sequence[Question],
) -> Votes:
    """The votes that can be set beside a judge: same question, same answers, attentive raters.

    Args:
      public, key, votes: of a study, as `ranking.analysis.analyse` takes them.
      systems, questions: of the judges.

    Raises:
      ValueError: when fewer than two systems or no vote are common.
    """
    if key["study"] != public["study"]:
        raise ValueError(
            f"the key is of the study {key['study']}, and the study is {public['study']}; "
            "give the key.json that was built with this study.json"
        )
    common = [index for index, name in enumerate(systems) if name in key["systems"]]
    if len(common) < 2:
        raise ValueError(
            f"the study ranks {key['systems']} and the judges compare {list(systems)}; give two "
            "systems or more the names that they have in the study"
        )
    columns = [key["systems"].index(systems[index]) for index in common]
    ballots = analysis.unblind(public, key, votes)
    raters = analysis.describe_raters(key, votes)
    kept = ballots.without({name for name, entry in raters.items() if entry["excluded"]})
    left_out = {"rater left out": len(ballots.rater) - len(kept.rater)}
    place = _places(kept, _answers(public, key), questions, common, columns)
    left_out |= {reason: int((place == code).sum()) for reason, code in _REASONS.items()}
    use = place >= 0
    if not use.any():
        raise ValueError(f"no vote of the study is on an answer that the judges saw: {left_out}")
    ranks = {
        name: outcomes.ranks_of_points(-values[use][:, columns])
        for name, values in kept.ranks.items()
    }
    return Votes(common, place[use], ranks, left_out)


_REASONS = {"question not judged": -1, "other answers": -2}


def _answers(public: Mapping[str, Any], key: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Question to the study's text of each system."""
    texts = {
        card: public["texts"][text]
        for entry in public["raters"].values()
        for trial in entry["trials"]
        for card, text in trial["cards"]
    }
    return {
        secret["question"]: {
            owner: texts[card] for card, owners in secret["cards"].items() for owner in owners
        }
        for secret in key["trials"].values()
        if secret["kind"] == "item"
    }


def _places(
    ballots: Ballots,
    answers: Mapping[str, Mapping[int, str]],
    questions: Sequence[Question],
    common: Sequence[int],
    columns: Sequence[int],
) -> np.ndarray:
    """For each vote the judges' question, or a code of `_REASONS`."""
    numbers = {question.id: number for number, question in enumerate(questions)}
    place = np.full(len(ballots.questions), _REASONS["question not judged"])
    for item, name in enumerate(ballots.questions):
        if name not in numbers:
            continue
        own = [canonical(questions[numbers[name]].answers[index]) for index in common]
        same = own == [answers[name][column] for column in columns]
        place[item] = numbers[name] if same else _REASONS["other answers"]
    return place[ballots.item]


def majority(votes: Votes, dimension: str, questions: int) -> Codes:
    """Outcomes [Q, C, C] of most votes; a tie where there is no majority."""
    ranks, systems = votes.ranks[dimension], len(votes.systems)
    balance = np.zeros((questions, systems, systems), np.int64)
    number = np.bincount(votes.question, minlength=questions)
    np.add.at(balance, votes.question, _signs(ranks).astype(np.int64))
    found = np.sign(balance).astype(np.int8)
    found[number == 0] = outcomes.MISSING
    found[:, np.arange(systems), np.arange(systems)] = outcomes.SAME
    return found


def mean_ranks(votes: Votes, dimension: str, questions: int) -> Floats:
    """Mean rank [Q, C] of each answer; NaN for questions without a vote."""
    ranks = votes.ranks[dimension]
    sums = np.zeros((questions, ranks.shape[1]))
    np.add.at(sums, votes.question, ranks)
    number = np.bincount(votes.question, minlength=questions)[:, None]
    return np.divide(sums, number, out=np.full_like(sums, np.nan), where=number > 0)


def matches(judge: Codes, votes: Votes, dimension: str) -> dict[str, tuple[Floats, Floats]]:
    """How often single votes are on the judge's side, and on the side of other people.

    Both over the pairs of answers that the judge decided and the vote does not tie, with two votes
    or more: so the second is the ceiling of the first.

    Returns:
      `judge` and `people`, each as sums by question [Q]: matches, and votes.
    """
    i, j = np.triu_indices(judge.shape[1], 1)
    signs = _signs(votes.ranks[dimension])[:, i, j]
    sides = judge[:, i, j]
    counts = {
        sign: _sum_by(votes.question, (signs == sign).astype(np.float64), len(judge))
        for sign in (WIN, LOSS)
    }
    number = counts[WIN] + counts[LOSS]
    usable = np.isin(sides, (WIN, LOSS)) & (number > 1)
    with_judge = np.where(sides == WIN, counts[WIN], counts[LOSS])
    with_people = sum(count * (count - 1) for count in counts.values()) / np.maximum(number - 1, 1)
    total = (number * usable).sum(1)
    return {
        "judge": ((with_judge * usable).sum(1), total),
        "people": ((with_people * usable).sum(1), total),
    }


def rater_taus(votes: Votes, dimension: str, questions: int) -> tuple[Floats, Floats]:
    """Kendall's tau-b of each vote with the mean ranks of the other votes on its question.

    Returns:
      Sums by question [Q]: taus, and votes that have one.
    """
    ranks = votes.ranks[dimension]
    number = np.bincount(votes.question, minlength=questions)[votes.question][:, None]
    whole = mean_ranks(votes, dimension, questions)[votes.question]
    others = np.where(number > 1, (whole * number - ranks) / np.maximum(number - 1, 1), np.nan)
    taus = agreement.taus(ranks, np.round(others, 9))
    known = ~np.isnan(taus)
    found = _sum_by(votes.question, np.where(known, taus, 0)[:, None], questions)[:, 0]
    return found, _sum_by(votes.question, known[:, None].astype(np.float64), questions)[:, 0]


def _signs(ranks: Floats) -> Floats:
    """Whether each system is ranked before (1), with (0) or behind (-1) each other, [..., C, C]."""
    return np.sign(ranks[..., None, :] - ranks[..., :, None])


def _sum_by(question: np.ndarray, values: Floats, questions: int) -> Floats:
    sums = np.zeros((questions, *values.shape[1:]))
    np.add.at(sums, question, values)
    return sums
