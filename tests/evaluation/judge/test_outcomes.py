"""A win counts only where both orders give it."""

import collections

import numpy as np
import pytest

from empathy_jax.evaluation.judge import comparing, outcomes
from empathy_jax.evaluation.judge.comparing import Settings, Showing
from empathy_jax.evaluation.judge.outcomes import FLIPPED, LOSS, MISSING, SAME, TIE, WIN
from empathy_jax.evaluation.ranking.study import Question
from tests.evaluation.judge.simulated import judgement

FIRST, SECOND, EVEN = [[0], [1]], [[1], [0]], [[0, 1]]


def pair(order, again, question=0):
    """Judgements of systems 0 and 1, shown in this order and then in the other."""
    places = ((0,), (1,))
    return [
        judgement(Showing(question, places), order, fault=None if order else "values"),
        judgement(Showing(question, places[::-1]), again, fault=None if again else "values"),
    ]


@pytest.mark.parametrize(
    ("order", "again", "outcome"),
    [
        (FIRST, SECOND, WIN),
        (SECOND, FIRST, LOSS),
        (EVEN, EVEN, TIE),
        (FIRST, FIRST, FLIPPED),  # always the first one
        (SECOND, SECOND, FLIPPED),
        (FIRST, EVEN, FLIPPED),
        (EVEN, FIRST, FLIPPED),
        (FIRST, None, MISSING),
        (None, None, MISSING),
    ],
)
def test_two_verdicts_make_one_outcome(order, again, outcome):
    found = outcomes.of_judge(pair(order, again), "overall", 1, 2)
    assert found[0, 0, 1] == outcome
    assert found[0, 1, 0] == (-outcome if outcome in (WIN, LOSS) else outcome)
    assert found[0, 0, 0] == found[0, 1, 1] == SAME
    counts = outcomes.count(found)
    name = outcomes.NAMES.get(outcome, "decided")
    assert counts == {**dict.fromkeys(counts, 0), name: 1}


def test_lists_are_read_as_pairs_and_equal_texts_share_their_place():
    places = ((2,), (0, 3), (1,))
    shown = [Showing(0, places), Showing(0, places[::-1])]
    # 2 before 0 = 3 before 1; then 0 = 3 before 2 before 1.
    found = outcomes.of_judge(
        [judgement(shown[0], [[0], [1], [2]]), judgement(shown[1], [[1], [2], [0]])],
        "overall", 1, 4,
    )[0]  # fmt: skip
    assert found[2, 1] == found[0, 1] == found[3, 1] == WIN and found[1, 3] == LOSS
    assert found[2, 0] == found[0, 2] == found[3, 2] == FLIPPED
    assert found[0, 3] == found[3, 0] == SAME
    assert outcomes.places(found[None]).tolist() == [[2, 4, 2, 2]]


def test_ranks_need_every_pair_of_the_question():
    judged = outcomes.of_judge([*pair(FIRST, SECOND), *pair(FIRST, None, 1)], "overall", 2, 2)
    ranks = outcomes.places(judged)
    assert ranks[0].tolist() == [1, 2] and np.isnan(ranks[1]).all()


def test_preference_for_the_first_place_is_counted_by_question():
    judged = [*pair(FIRST, FIRST), *pair(FIRST, SECOND, 1), *pair(EVEN, None, 2)]
    upper, decided = outcomes.first_shown(judged, "overall", 3)
    assert upper.tolist() == [2, 1, 0] and decided.tolist() == [2, 2, 0]
    listed = [judgement(Showing(0, ((0,), (1,), (2,))), [[2], [0], [1]])]
    upper, decided = outcomes.first_shown(listed, "overall", 1)
    assert upper.tolist() == [1] and decided.tolist() == [3]


@pytest.mark.parametrize("systems", [2, 3, 4, 6])
def test_each_system_stands_in_each_place_equally_often(systems):
    answers = tuple(f"回信{n}" for n in range(systems))
    questions = [Question(f"q{n}", f"信{n}", answers) for n in range(12)]
    for mode in ("pairwise", "listwise"):
        shown = comparing.showings(questions, systems, Settings(mode, "zh"))
        for one, two in zip(shown[::2], shown[1::2], strict=True):
            assert one.question == two.question and one.places == two.places[::-1]
        counts = collections.Counter(
            (place, system)
            for showing in shown
            for place, owners in enumerate(showing.places)
            for system in owners
        )
        assert max(counts.values()) - min(counts.values()) <= (2 if mode == "listwise" else 0)
    # More questions at the end change nothing for those before: their requests stay paid.
    more = comparing.showings(questions + questions[:5], systems, Settings("listwise", "zh"))
    assert more[: len(shown)] == shown


def test_equal_answers_are_one_card():
    questions = [Question("q", "信", ("一", "二", "一", "三"))]
    shown = comparing.showings(questions, 4, Settings("pairwise", "zh"))
    assert len(shown) == 6
    assert {owners for showing in shown for owners in showing.places} == {(0, 2), (1,), (3,)}
    assert len(comparing.showings(questions, 4, Settings("listwise", "zh"))[0].places) == 3
