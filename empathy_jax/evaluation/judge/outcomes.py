"""What comes of two judgements in opposite orders: a win counts only where both give it.

Legend: Q questions, S systems. `outcomes[q, i, j]` is one of the codes below, from the view of
system i against j; WIN and LOSS change sides with i and j, all else is the same on both sides.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from empathy_jax.evaluation.judge.comparing import Judgement
from empathy_jax.evaluation.ranking.statistics import Floats

Codes = NDArray[np.int8]

WIN, TIE, LOSS = 1, 0, -1
FLIPPED = 2  # the two orders disagree
SAME = 3  # both systems gave the same text, and no judge was asked
MISSING = 4  # not judged in both orders

NAMES = {TIE: "tie", FLIPPED: "flipped", SAME: "same text", MISSING: "missing"}


def of_judge(
    judgements: Iterable[Judgement], dimension: str, questions: int, systems: int
) -> Codes:
    """Outcomes [Q, S, S] of one judge's judgements; the diagonal is SAME."""
    signs: dict[tuple[int, int, int], list[int]] = {}
    outcomes = np.full((questions, systems, systems), MISSING, np.int8)
    outcomes[:, np.arange(systems), np.arange(systems)] = SAME
    for judgement in judgements:
        question, places = judgement.showing.question, judgement.showing.places
        for group in places:
            outcomes[question][np.ix_(group, group)] = SAME
        if judgement.verdict is None:
            continue
        rank = {
            place: index
            for index, tied in enumerate(judgement.verdict.orders[dimension])
            for place in tied
        }
        for first, own in enumerate(places):
            for second, other in enumerate(places):
                if first != second:
                    sign = int(np.sign(rank[second] - rank[first]))
                    for i in own:
                        for j in other:
                            signs.setdefault((question, i, j), []).append(sign)
    for (question, i, j), found in signs.items():
        if len(found) == 2:
            outcomes[question, i, j] = found[0] if found[0] == found[1] else FLIPPED
    return outcomes


def judged(outcomes: Codes) -> NDArray[np.bool_]:
    """Where there is an outcome of two different systems: not MISSING, not the diagonal."""
    apart = ~np.eye(outcomes.shape[1], dtype=bool)
    return (outcomes != MISSING) & apart


def places(outcomes: Codes) -> Floats:
    """Ranks [Q, S] of the systems by consistent wins less losses, ties share; NaN if not all judged.

    1 is the best.
    """
    points = ((outcomes == WIN).astype(np.int64) - (outcomes == LOSS)).sum(2)
    ranks = ranks_of_points(points.astype(np.float64))
    ranks[(outcomes == MISSING).any((1, 2))] = np.nan
    return ranks


def ranks_of_points(points: Floats) -> Floats:
    """Ranks [..., S] of points [..., S]: the most points have rank 1, ties share."""
    above = (points[..., None, :] > points[..., :, None]).sum(-1)
    equal = (points[..., None, :] == points[..., :, None]).sum(-1)
    return above + (equal + 1) / 2


def first_shown(
    judgements: Iterable[Judgement], dimension: str, questions: int
) -> tuple[Floats, Floats]:
    """How often the answer that stands first on the page is preferred.

    Returns:
      By question, pairs of answers that the verdicts prefer the upper one of, and pairs that they
      decide, both [Q]. Without a bias of place the former are half of the latter.
    """
    upper, decided = np.zeros(questions), np.zeros(questions)
    for judgement in judgements:
        if judgement.verdict is None:
            continue
        order = judgement.verdict.orders[dimension]
        for better, worse in itertools.combinations(order, 2):
            pairs = [above < below for above in better for below in worse]
            upper[judgement.showing.question] += sum(pairs)
            decided[judgement.showing.question] += len(pairs)
    return upper, decided


def count(outcomes: Codes) -> dict[str, int]:
    """Pairs of systems on questions, by what came of them."""
    i, j = np.triu_indices(outcomes.shape[1], 1)
    codes = outcomes[:, i, j]
    found = {"decided": int(np.isin(codes, (WIN, LOSS)).sum())}
    return found | {name: int((codes == code).sum()) for code, name in NAMES.items()}


def select(outcomes: Codes, systems: Sequence[int]) -> Codes:
    """Outcomes among some of the systems, in another order."""
    return outcomes[:, systems][:, :, systems]
