"""Strengths: against scipy, against planted truths, and free of the bias of place."""

import numpy as np
import pytest
from scipy import optimize

from empathy_jax.evaluation.judge import bradley_terry, outcomes, style
from empathy_jax.evaluation.judge.bradley_terry import PRIOR
from tests.evaluation.judge import simulated

STRENGTHS = np.array([0.6, 0.2, -0.2, -0.6])
# The weakest systems write the longest answers.
LONGER = np.array([2.6, 3.2, 3.8, 4.4])


def by_scipy(rows, won, weights):
    def loss(beta):
        margin = rows @ beta
        return (weights * (np.logaddexp(0, margin) - won * margin)).sum() + (
            beta**2
        ).sum() / 2 / PRIOR**2

    found = optimize.minimize(loss, np.zeros(rows.shape[1]), method="BFGS", tol=1e-10)
    return found.x


def data(rng, count, strengths, place=0.0, length=0.0):
    questions = simulated.questions_of(rng, count, LONGER)
    first_wins = simulated.chances(questions, strengths, place, length)
    judged = simulated.judge(rng, questions, first_wins)
    found = outcomes.of_judge(judged, "overall", count, len(strengths))
    scaled, _ = style.standardise(style.differences([q.answers for q in questions]))
    return found, scaled, judged


def test_the_fit_is_that_of_scipy_for_every_weighting():
    rng = np.random.default_rng(0)
    found, scaled, _ = data(rng, 20, STRENGTHS, 0.5, 0.5)
    rows, won, question = bradley_terry.games(found, scaled[..., :1])
    weights = rng.multinomial(20, np.full(20, 0.05), size=3)[:, question].astype(float)
    fitted = bradley_terry.fit(rows, won, weights)
    for beta, own in zip(fitted, weights, strict=True):
        np.testing.assert_allclose(beta, by_scipy(rows, won, own), atol=1e-4)
    np.testing.assert_allclose(fitted[:, :4].sum(1), 0, atol=1e-9)


def test_a_system_that_always_wins_has_a_finite_strength():
    rows, won = np.array([[1.0, -1.0]] * 50), np.ones(50)
    fitted = bradley_terry.fit(rows, won, np.ones((1, 50)))[0]
    np.testing.assert_allclose(fitted, by_scipy(rows, won, np.ones(50)), atol=1e-3)
    assert 5 < fitted[0] - fitted[1] < 15


def test_counting_consistent_wins_removes_the_bias_of_place():
    """Strengths keep their size, though a judge likes what stands first."""
    rng = np.random.default_rng(1)
    found, scaled, judged = data(rng, 500, STRENGTHS, place=1.5)
    upper, decided = outcomes.first_shown(judged, "overall", 500)
    assert upper.sum() / decided.sum() > 0.75
    counts = outcomes.count(found)
    assert counts["flipped"] > 1.5 * counts["decided"]
    rows, won, _ = bradley_terry.games(found, scaled[..., :0])
    fitted = bradley_terry.fit(rows, won, np.ones((1, len(rows))))[0]
    # Two independent verdicts that agree have twice the log-odds of one.
    np.testing.assert_allclose(fitted / 2, STRENGTHS, atol=0.15)


def test_control_recovers_strengths_that_length_hides():
    """By wins alone the weakest system leads, for it writes most; at equal length it is last."""
    rng = np.random.default_rng(2)
    found, scaled, _ = data(rng, 500, STRENGTHS, place=1.0, length=1.5)
    plain, _ = bradley_terry.resampled(found, scaled[..., :0], np.ones((1, 500)))
    assert plain.argmax() == 3 and plain[3] > plain[0] + 0.5
    fitted, same = bradley_terry.resampled(found, scaled[..., :1], np.ones((1, 500)))
    np.testing.assert_allclose(fitted[:4] / 2, STRENGTHS, atol=0.15)
    assert fitted[4] / 2 == pytest.approx(1.5, abs=0.2)
    np.testing.assert_allclose(same[0], fitted, atol=1e-8)


def test_control_leaves_an_honest_judge_alone():
    rng = np.random.default_rng(3)
    found, scaled, _ = data(rng, 500, STRENGTHS)
    fitted, _ = bradley_terry.resampled(found, scaled[..., :1], np.ones((1, 500)))
    np.testing.assert_allclose(fitted[:4] / 2, STRENGTHS, atol=0.15)
    assert abs(fitted[4] / 2) < 0.12
