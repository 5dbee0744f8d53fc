"""What the judgements say: systems by dimension, bias of place, style, agreement, intervals."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from empathy_jax.evaluation.judge import agreement, bradley_terry, outcomes, people, style
from empathy_jax.evaluation.judge.comparing import Judgement
from empathy_jax.evaluation.judge.outcomes import LOSS, WIN, Codes
from empathy_jax.evaluation.judge.people import Votes
from empathy_jax.evaluation.ranking import DIMENSIONS, statistics
from empathy_jax.evaluation.ranking.statistics import Floats
from empathy_jax.evaluation.ranking.study import Question

INTERVALS = "95 %, percentiles of 1,000 bootstrap samples of questions"
_RESAMPLES = 1000

Entry = dict[str, float | None]


def analyse(
    judgements: Sequence[Judgement],
    judges: Sequence[str],
    systems: Sequence[str],
    questions: Sequence[Question],
    votes: Votes | None,
) -> dict[str, Any]:
    """The whole analysis.

    Args:
      judgements: of `comparing.run`.
      judges: names, one or two.
      systems, questions: what was judged.
      votes: of people on the same answers, None where there are none.

    Returns:
      `judges`, `agreement` (of the two judges; None for one) and `people` (by judge; None without
      votes), each by dimension; every figure has `value`, `low` and `high`.

    Raises:
      ValueError: when there is no judgement.
    """
    if not judgements:
        raise ValueError("there is no judgement to analyse")
    own = {name: [entry for entry in judgements if entry.judge == name] for name in judges}
    found = {
        dimension: {
            name: outcomes.of_judge(own[name], dimension, len(questions), len(systems))
            for name in judges
        }
        for dimension in DIMENSIONS
    }
    weights = _bootstrap(len(questions))
    differences = style.differences([question.answers for question in questions])
    return {
        "systems": list(systems),
        "questions": len(questions),
        "chance": {"win_at_1": 1 / len(systems), "mean_rank": (len(systems) + 1) / 2},
        "intervals": INTERVALS,
        "style": _style(differences),
        "judges": {
            name: {
                "requests": describe_requests(own[name]),
                "dimensions": {
                    dimension: _dimension(
                        found[dimension][name], own[name], dimension, systems, differences, weights
                    )
                    for dimension in DIMENSIONS
                },
            }
            for name in judges
        },
        "agreement": {
            dimension: between(*found[dimension].values(), weights) for dimension in DIMENSIONS
        }
        if len(judges) == 2
        else None,
        "people": with_people(found, judges, systems, votes, weights) if votes else None,
    }


def _bootstrap(questions: int) -> Floats:
    """How often each question is in each sample, [B, Q]."""
    rng = np.random.default_rng(0)
    chances = np.full(questions, 1 / questions)
    return rng.multinomial(questions, chances, size=_RESAMPLES).astype(np.float64)


def describe_requests(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """How many had a verdict at first, after the repair, and the faults of those that have none."""
    faults = collections.Counter(entry.fault for entry in judgements if entry.fault)
    return {
        "all": len(judgements),
        "verdicts": sum(entry.verdict is not None for entry in judgements),
        "repaired": sum(entry.verdict is not None and entry.turns > 1 for entry in judgements),
        "faults": dict(sorted(faults.items())),
    }


def _style(differences: Floats) -> dict[str, float | None]:
    """Share of each feature's differences that the systems do not explain; None: no differences."""
    shares = style.within_systems(differences)
    return {
        name: None if np.isnan(share) else float(share)
        for name, share in zip(style.FEATURES, shares, strict=True)
    }


def _dimension(
    codes: Codes,
    judgements: Sequence[Judgement],
    dimension: str,
    systems: Sequence[str],
    differences: Floats,
    weights: Floats,
) -> dict[str, Any]:
    apart = outcomes.judged(codes) & (codes != outcomes.SAME)
    agreed = apart & (codes != outcomes.FLIPPED)
    strengths, coefficients = _strengths(codes, systems, differences, weights)
    upper = outcomes.first_shown(judgements, dimension, len(codes))
    return {
        "outcomes": outcomes.count(codes),
        "consistency": _ratio(agreed.sum((1, 2)) / 2, apart.sum((1, 2)) / 2, weights),
        "first_shown": _ratio(*upper, weights),
        "systems": {
            name: _places(codes, index, weights) | strengths[name]
            for index, name in enumerate(systems)
        },
        "wins": _matrix(codes),
        "style": coefficients,
    }


def _places(codes: Codes, system: int, weights: Floats) -> dict[str, Entry]:
    """Consistent wins and losses among the system's comparisons, Win@1 and mean rank."""
    judged = outcomes.judged(codes)[:, system].sum(1)
    ranks = outcomes.places(codes)
    known = ~np.isnan(ranks[:, system])
    filled = np.where(known[:, None], ranks, 1)
    first = statistics.win_at(filled, 1)[:, system] * known
    return {
        "wins": _ratio((codes[:, system] == WIN).sum(1), judged, weights),
        "losses": _ratio((codes[:, system] == LOSS).sum(1), judged, weights),
        "win_at_1": _ratio(first, known, weights),
        "mean_rank": _ratio(filled[:, system] * known, known, weights),
    }


def _strengths(
    codes: Codes, systems: Sequence[str], differences: Floats, weights: Floats
) -> tuple[dict[str, dict[str, Entry]], dict[str, Entry]]:
    """Log-strengths of each system without and with control, and the coefficients of style."""
    scaled, _ = style.standardise(differences)
    used = np.flatnonzero((differences != 0).any((0, 1, 2)))
    nothing = {"value": None, "low": None, "high": None}
    if not np.isin(codes, (WIN, LOSS)).any():
        return {name: dict.fromkeys(_STRENGTHS, nothing) for name in systems}, {}
    plain = bradley_terry.resampled(codes, scaled[..., :0], weights)
    controlled = bradley_terry.resampled(codes, scaled[..., used], weights)
    both = dict(zip(_STRENGTHS, (plain, controlled), strict=True))
    return (
        {
            name: {
                measure: statistics.percentile_interval(best[index], drawn[:, index])
                for measure, (best, drawn) in both.items()
            }
            for index, name in enumerate(systems)
        },
        {
            style.FEATURES[feature]: statistics.percentile_interval(
                controlled[0][len(systems) + place], controlled[1][:, len(systems) + place]
            )
            for place, feature in enumerate(used)
        },
    )


_STRENGTHS = ("log_strength", "log_strength_controlled")


def _matrix(codes: Codes) -> list[list[float | None]]:
    """Share of consistent wins of the row over the column; None where nothing was judged."""
    judged = outcomes.judged(codes).sum(0)
    wins = (codes == WIN).sum(0)
    return [
        [float(won / of) if of else None for won, of in zip(*rows, strict=True)]
        for rows in zip(wins, judged, strict=True)
    ]


def between(first: Codes, second: Codes, weights: Floats) -> dict[str, Any]:
    """Agreement of two sets of outcomes of the same systems.

    Returns:
      `pairs` that both judged and `decided` by both; `kappa` with three outcomes (win, undecided,
      loss); `kappa_decided` of the pairs that both decided; `tau` of the rankings by consistent
      wins, mean over questions.
    """
    cells = agreement.tables(first, second)
    taus = agreement.taus(outcomes.places(first), outcomes.places(second))
    known = ~np.isnan(taus)
    return {
        "pairs": int(cells.sum()),
        "decided": int(agreement.decided(cells).sum()),
        "kappa": _kappa(cells, weights),
        "kappa_decided": _kappa(agreement.decided(cells), weights),
        "tau": _ratio(np.where(known, taus, 0), known, weights),
    }


def _kappa(cells: Floats, weights: Floats) -> Entry:
    resampled = np.tensordot(weights, cells, 1)
    value = float(agreement.cohens_kappa(cells.sum(0)))
    return statistics.percentile_interval(value, agreement.cohens_kappa(resampled))


def with_people(
    found: Mapping[str, Mapping[str, Codes]],
    judges: Sequence[str],
    systems: Sequence[str],
    votes: Votes,
    weights: Floats,
) -> dict[str, Any]:
    """Each judge beside the people, by dimension."""
    return {
        "votes": len(votes.question),
        "questions": len(np.unique(votes.question)),
        "systems": [systems[index] for index in votes.systems],
        "left_out": votes.left_out,
        "judges": {
            name: {
                dimension: _beside_people(
                    outcomes.select(found[dimension][name], votes.systems),
                    votes,
                    dimension,
                    [systems[index] for index in votes.systems],
                    weights,
                )
                for dimension in DIMENSIONS
            }
            for name in judges
        },
    }


def _beside_people(
    judge: Codes, votes: Votes, dimension: str, systems: Sequence[str], weights: Floats
) -> dict[str, Any]:
    """Agreement with the majority, with single votes, and with the systems' order.

    `people_votes` and `people_tau` are the ceiling: one person against the others.
    """
    questions = len(judge)
    mean = people.mean_ranks(votes, dimension, questions)
    own = outcomes.places(judge)
    taus = agreement.taus(own, np.round(mean, 9))
    known = ~np.isnan(taus)
    match = people.matches(judge, votes, dimension)
    both = ~np.isnan(own).any(1) & ~np.isnan(mean).any(1)
    ranks = {"judge": own[both].mean(0), "people": mean[both].mean(0)} if both.any() else {}
    majority = between(judge, people.majority(votes, dimension, questions), weights)
    return majority | {
        "votes": _ratio(*match["judge"], weights),
        "people_votes": _ratio(*match["people"], weights),
        "tau": _ratio(np.where(known, taus, 0), known, weights),
        "people_tau": _ratio(*people.rater_taus(votes, dimension, questions), weights),
        "systems_tau": _system_tau(**ranks),
        "mean_rank": {
            who: dict(zip(systems, values.tolist(), strict=True)) for who, values in ranks.items()
        },
    }


def _system_tau(judge: Floats | None = None, people: Floats | None = None) -> float | None:
    """Kendall's tau-b of the two orders of the systems by mean rank."""
    if judge is None or people is None:
        return None
    tau = statistics.kendalls_tau(np.round(judge, 9), np.round(people, 9))
    return None if np.isnan(tau) else tau


def _ratio(parts: Any, wholes: Any, weights: Floats) -> Entry:
    """Sum of parts by sum of wholes, both [Q], with the interval of its bootstrap samples."""
    parts, wholes = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = parts.sum() / wholes.sum()
        drawn = weights @ parts / (weights @ wholes)
    return statistics.percentile_interval(value, drawn)
