"""Kappa and tau of two sets of outcomes, by hand and by construction."""

import numpy as np
import pytest

from empathy_jax.evaluation.judge import agreement, outcomes
from empathy_jax.evaluation.judge.outcomes import FLIPPED, LOSS, MISSING, SAME, TIE, WIN


def of(codes):
    """Outcomes [Q, 2, 2] of system 0 against system 1."""
    found = np.full((len(codes), 2, 2), SAME, np.int8)
    for question, code in enumerate(codes):
        found[question, 0, 1] = code
        found[question, 1, 0] = -code if code in (WIN, LOSS) else code
    return found


def test_kappa_by_hand():
    # p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert agreement.cohens_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert agreement.cohens_kappa(np.eye(3)) == 1
    assert agreement.cohens_kappa(np.ones((3, 3))) == 0
    assert np.isnan(agreement.cohens_kappa(np.diag([1.0, 0.0, 0.0])))
    assert np.isnan(agreement.cohens_kappa(np.zeros((3, 3))))


def test_pairs_count_from_both_sides_and_what_one_did_not_judge_is_left_out():
    first = of([WIN, WIN, LOSS, TIE, FLIPPED, MISSING, WIN, SAME])
    second = of([WIN, LOSS, LOSS, FLIPPED, WIN, WIN, MISSING, SAME])
    cells = agreement.tables(first, second)
    assert cells.sum((1, 2)).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    # Agreed: WIN, LOSS, and two that are both undecided.
    expected = [[1, 0, 0.5], [0.5, 1, 0.5], [0.5, 0, 1]]
    expected[0][2] = expected[2][0] = 0.5
    np.testing.assert_array_equal(cells.sum(0), expected)
    np.testing.assert_array_equal(agreement.decided(cells.sum(0)), [[1, 0.5], [0.5, 1]])
    # Of three pairs that both decided two agree; by chance one in two would.
    kappa = agreement.cohens_kappa(agreement.decided(cells.sum(0)))
    assert kappa == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))
    # Nor does it matter which system is called the first.
    turned = [outcomes.select(found, [1, 0]) for found in (first, second)]
    np.testing.assert_array_equal(agreement.tables(*turned), cells)


def test_tau_of_rankings_leaves_out_what_is_not_ranked():
    first = np.array([[1.0, 2, 3], [1, 2, 3], [2, 2, 2], [np.nan] * 3])
    second = np.array([[1.0, 2, 3], [3, 2, 1], [1, 2, 3], [1, 2, 3]])
    found = agreement.taus(first, second)
    assert found[:2].tolist() == [1, -1] and np.isnan(found[2:]).all()
