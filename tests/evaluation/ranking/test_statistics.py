import choix
import numpy as np
import pytest

from empathy_jax.evaluation.ranking import statistics


def _draw(rng, utilities):
    """Ranks of a Plackett-Luce draw: utilities [..., S] plus Gumbel noise, the largest first."""
    noisy = utilities + rng.gumbel(size=utilities.shape)
    return (-noisy).argsort(-1).argsort(-1) + 1.0


def test_ranks_of_groups():
    np.testing.assert_array_equal(statistics.ranks_of([[2], [0, 3], [1]], 4), [2.5, 4, 1, 2.5])


def test_win_at_by_hand():
    ranks = np.array([[1, 2, 3, 4], [2.5, 4, 1, 2.5], [2, 2, 2, 4.0]])
    third = 1 / 3
    np.testing.assert_allclose(
        statistics.win_at(ranks, 1), [[1, 0, 0, 0], [0, 0, 1, 0], [third, third, third, 0]]
    )
    np.testing.assert_allclose(statistics.win_at(ranks, 2)[1], [0.5, 0, 1, 0.5])
    for k in (1, 2, 3):
        np.testing.assert_allclose(statistics.win_at(ranks, k).sum(1), k)


def test_six_equal_systems_win_one_in_six():
    rng = np.random.default_rng(0)
    ranks = _draw(rng, np.zeros((2000, 6)))
    wins = statistics.win_at(ranks, 1).mean(0)
    np.testing.assert_allclose(wins, 1 / 6, atol=4 * np.sqrt(5 / 36 / 2000))
    np.testing.assert_allclose(ranks.mean(0), 3.5, atol=4 * np.sqrt(35 / 12 / 2000))


def test_two_way_error_by_hand():
    # Two raters by two items. Sums by rater: 4, -4; by item: 2, -2; squares of votes: 20.
    influence = np.array([3.0, 1.0, -1.0, -3.0])
    error, freedom = statistics.two_way_error(
        influence, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    )
    by_rater, by_item, by_vote = 2 * 32 / 16, 2 * 8 / 16, 4 / 3 * 20 / 16
    assert freedom == 1
    np.testing.assert_allclose(error, np.sqrt(by_rater + by_item - by_vote))
    # Here raters and items cancel out, and the difference is below zero.
    crossed, _ = statistics.two_way_error(
        np.array([1.0, -1.0, -1.0, 1.0]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    )
    np.testing.assert_allclose(crossed, np.sqrt(4 / 3 * 4 / 16))
    lonely, _ = statistics.two_way_error(influence, np.zeros(4, int), np.arange(4))
    assert np.isnan(lonely)


def test_two_way_error_sees_what_raters_share():
    """The error of a mean of rater effects is about sd / √raters, however many items they see."""
    rng = np.random.default_rng(1)
    rater, item = np.divmod(np.arange(40 * 50), 50)
    errors = []
    for _ in range(50):
        values = rng.normal(size=40)[rater]
        errors.append(statistics.two_way_error(values - values.mean(), rater, item)[0])
    np.testing.assert_allclose(np.mean(errors), 1 / np.sqrt(40), rtol=0.1)


def test_plackett_luce_equals_choix():
    rng = np.random.default_rng(2)
    ranks = _draw(rng, np.tile([1.0, 0.3, 0.0, -0.8], (300, 1)))
    logs, influence = statistics.plackett_luce(ranks)
    oracle = choix.opt_rankings(4, [tuple(row.argsort()) for row in ranks], tol=1e-12)
    np.testing.assert_allclose(logs, oracle - oracle.mean(), atol=1e-5)
    np.testing.assert_allclose(influence.sum(0), 0, atol=1e-4)


def test_plackett_luce_of_two_is_the_odds():
    ranks = np.array([[1.0, 2.0]] * 3 + [[2.0, 1.0]])
    logs, _ = statistics.plackett_luce(ranks)
    np.testing.assert_allclose(logs[0] - logs[1], np.log(3), atol=1e-8)
    tied, _ = statistics.plackett_luce(np.vstack([ranks, [[1.5, 1.5]] * 4]))
    np.testing.assert_allclose(tied[0] - tied[1], np.log(5 / 3), atol=1e-8)  # 3 wins + 4 halves


def test_influence_is_what_a_vote_changes():
    rng = np.random.default_rng(3)
    ranks = _draw(rng, np.tile([0.5, 0.0, -0.5], (400, 1)))
    logs, influence = statistics.plackett_luce(ranks)
    twice, _ = statistics.plackett_luce(np.vstack([ranks, ranks[:1]]))
    np.testing.assert_allclose(401 * (twice - logs), influence[0], atol=0.02)


def test_plackett_luce_without_a_maximum():
    with pytest.raises(ValueError, match="always ranked before"):
        statistics.plackett_luce(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]))


def test_kendalls_w_by_hand():
    # Sums 4, 5, 10, 11 over three raters, mean 7.5: squared deviations 37.
    ranks = np.array([[1, 2, 3, 4], [2, 1, 3, 4], [1, 2, 4, 3.0]])
    sums = ranks.sum(0)
    np.testing.assert_array_equal(sums, [4, 5, 10, 11])
    np.testing.assert_allclose(statistics.kendalls_w(ranks), 12 * 37 / (9 * 60))
    assert statistics.kendalls_w(np.array([[1, 2, 3.0]] * 2)) == 1
    assert statistics.kendalls_w(np.array([[1, 2, 3.0], [3, 2, 1]])) == 0
    # Two raters with the same tie agree wholly: only the correction makes that 1.
    np.testing.assert_allclose(statistics.kendalls_w(np.array([[1.5, 1.5, 3.0]] * 2)), 1)
    assert np.isnan(statistics.kendalls_w(np.full((2, 3), 2.0)))


def test_krippendorff_alpha_of_the_published_example():
    """Four observers, twelve units, some missing (section D of Krippendorff 2011): 0.815."""
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
            [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
        ]
    )
    known = ~np.isnan(table)
    units = np.broadcast_to(np.arange(12), table.shape)
    levels, pairs = statistics.coincidences(table[known], units[known])
    np.testing.assert_array_equal(levels, [1, 2, 3, 4, 5])
    assert statistics.krippendorff_alpha(pairs.sum(0)) == pytest.approx(0.815, abs=5e-4)


def test_kendalls_tau_by_hand():
    assert statistics.kendalls_tau(np.array([1, 2, 3.0]), np.array([1, 3, 2.0])) == pytest.approx(
        1 / 3
    )
    assert statistics.kendalls_tau(np.array([1, 2.0]), np.array([2, 1.0])) == -1
    assert np.isnan(statistics.kendalls_tau(np.array([1.5, 1.5]), np.array([2, 1.0])))
