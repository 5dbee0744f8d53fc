"""Votes of people beside a judge's outcomes."""

import dataclasses

import numpy as np
import pytest

from empathy_jax.evaluation.judge import analysis, outcomes, people
from empathy_jax.evaluation.judge.outcomes import LOSS, MISSING, SAME, TIE, WIN
from empathy_jax.evaluation.judge.people import Votes
from empathy_jax.evaluation.ranking import DIMENSIONS
from empathy_jax.evaluation.ranking.study import Question
from tests.evaluation.ranking import small_study

GRADES = ("好", "中", "差")


def vote_all(public, key, better):
    """Every rater ranks by the grades that `better` gives for the rater, foils last."""
    found = {}
    for rater, entry in public["raters"].items():
        for place, trial in enumerate(entry["trials"]):
            vote = small_study.make_vote(public, rater, place)
            texts = {card: public["texts"][text] for card, text in trial["cards"]}
            foil = key["trials"][trial["trial"]]["foil"]
            order = sorted(
                texts, key=lambda card: (card == foil, better(rater).index(texts[card][-1]))
            )
            vote["rankings"] = dict.fromkeys(DIMENSIONS, order)
            found[rater, trial["trial"]] = vote
    return found


def judged_questions(count=5):
    return [
        Question(f"q{n}", f"问题 {n}", tuple(f"{n} {grade}" for grade in GRADES))
        for n in range(count)
    ]


def test_votes_are_put_beside_the_judge_by_question_and_answers():
    public, key = small_study.make_study(questions=6, checks=1, repeats=0)
    ballots = vote_all(public, key, lambda rater: "差中好" if rater == "r003" else "好中差")
    names = ["other", "secret-gamma", "secret-alpha"]
    items = [trial["question"] for trial in key["trials"].values() if trial["kind"] == "item"]
    mine = [Question(q.id, q.text, ("x", q.answers[2], q.answers[0])) for q in judged_questions(6)]
    one, two = sorted(set(items))[:2]
    mine = [q for q in mine if q.id != one]
    changed = [
        dataclasses.replace(q, answers=("x", "y", q.answers[2])) if q.id == two else q for q in mine
    ]
    votes = people.read(public, key, ballots, names, changed)
    assert votes.systems == [1, 2]
    assert votes.left_out == {"rater left out": 0, "question not judged": 3, "other answers": 3}
    assert len(votes.question) == 9 and {mine[n].id for n in votes.question} == set(items) - {
        one,
        two,
    }
    assert sorted(votes.ranks["overall"][:, 0].tolist()) == [1] * 3 + [2] * 6
    found = people.majority(votes, "overall", len(mine))
    assert set(found[np.unique(votes.question), 0, 1].tolist()) == {LOSS}
    with pytest.raises(ValueError, match=r"two systems or more the names"):
        people.read(public, key, ballots, ["a", "b", "secret-beta"], mine)
    with pytest.raises(ValueError, match="no vote of the study is on an answer"):
        people.read(public, key, ballots, names, [])
    with pytest.raises(ValueError, match="the key is of the study"):
        people.read(public | {"study": "x"}, key, ballots, names, mine)


def test_raters_who_fail_their_checks_are_left_out():
    public, key = small_study.make_study(questions=5, checks=2, repeats=0)
    ballots = vote_all(public, key, lambda rater: "好中差")
    for (rater, _), vote in ballots.items():
        if rater == "r001":
            vote["rankings"] = {name: order[::-1] for name, order in vote["rankings"].items()}
    votes = people.read(public, key, ballots, small_study.SYSTEMS, judged_questions())
    assert votes.left_out["rater left out"] == 3 and len(votes.question) == 6


def of_ranks(rows):
    """Votes on one dimension: (question, ranks) each."""
    ranks = np.array([row for _, row in rows], np.float64)
    return Votes([0, 1, 2], np.array([q for q, _ in rows]), {"overall": ranks}, {})


def test_the_majority_decides_and_a_draw_is_a_tie():
    votes = of_ranks([(0, [1, 2, 3]), (0, [1, 3, 2]), (0, [3, 2, 1]), (2, [1, 2.5, 2.5])])
    found = people.majority(votes, "overall", 3)
    assert found[0, 0].tolist() == [SAME, WIN, WIN] and found[0, 2].tolist() == [LOSS, WIN, SAME]
    assert found[2, 1, 2] == TIE and found[2, 1, 0] == LOSS
    assert (found[1][~np.eye(3, dtype=bool)] == MISSING).all()
    mean = people.mean_ranks(votes, "overall", 3)
    np.testing.assert_allclose(mean[0], [5 / 3, 7 / 3, 2])
    assert np.isnan(mean[1]).all()


def test_single_votes_on_the_judges_side_and_the_ceiling_by_hand():
    votes = of_ranks([(0, [1, 2, 3]), (0, [1, 2, 3]), (0, [2, 1, 3])])
    judge = np.full((1, 3, 3), SAME, np.int8)
    for (i, j), code in {(0, 1): WIN, (0, 2): LOSS, (1, 2): outcomes.FLIPPED}.items():
        judge[0, i, j], judge[0, j, i] = code, -code if code in (WIN, LOSS) else code
    found = people.matches(judge, votes, "overall")
    # 0 before 1: two of three votes; 0 behind 2: none of three; 1 and 2 are not decided.
    assert [values.tolist() for values in found["judge"]] == [[2], [6]]
    # 0, 1: each of the two agrees with one of two others, the third with none; 0, 2: all agree.
    assert [values.tolist() for values in found["people"]] == [[1 + 3], [6]]
    taus, number = people.rater_taus(votes, "overall", 1)
    # The first two: ranks of the others [1.5, 1.5, 3]; the third: [1, 2, 3] against [2, 1, 3].
    expected = 2 * 2 / np.sqrt(3 * 2) + 1 / 3
    assert number.tolist() == [3] and taus[0] == pytest.approx(expected)


def test_a_judge_that_follows_the_people_and_one_that_opposes_them():
    public, key = small_study.make_study(questions=5, checks=1, repeats=0)
    ballots = vote_all(public, key, lambda rater: "好中差")
    questions = judged_questions()
    votes = people.read(public, key, ballots, small_study.SYSTEMS, questions)
    likes = np.zeros((5, 3, 3), np.int8)
    for i in range(3):
        for j in range(3):
            likes[:, i, j] = np.sign(j - i) if i != j else SAME
    weights = analysis._bootstrap(5)
    for sign, value in ((1, 1.0), (-1, -1.0)):
        judge = np.where(likes == SAME, SAME, sign * likes).astype(np.int8)
        found = analysis._beside_people(judge, votes, "overall", small_study.SYSTEMS, weights)
        assert found["kappa"]["value"] == found["kappa_decided"]["value"] == value
        assert found["tau"]["value"] == found["systems_tau"] == value
        assert found["votes"]["value"] == (value + 1) / 2 and found["people_votes"]["value"] == 1
        assert found["people_tau"]["value"] == 1 and found["pairs"] == 12
