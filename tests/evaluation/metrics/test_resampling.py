import itertools

import numpy as np
import pytest
from scipy import stats

from empathy_jax.evaluation.metrics import resampling


def _means(values):
    """One answer to each question."""
    return resampling.mean_of(values, np.arange(len(values)), len(values))


def test_a_mean_is_taken_over_questions_and_leaves_out_what_is_missing():
    sums = resampling.mean_of([1.0, 3.0, np.nan, np.nan, 5.0], [0, 0, 0, 1, 3], 5)
    assert sums.value == pytest.approx((2 + 5) / 2)
    np.testing.assert_array_equal(sums.counted, [True, False, False, True, False])
    assert np.isnan(resampling.mean_of([np.nan], [0], 1).value)
    assert np.isnan(resampling.mean_of([], [], 0).value)
    kept = sums.only(np.array([True, True, True, False, True]))
    assert kept.value == 2 and kept.counted.sum() == 1


def test_ratios_and_geometric_means_are_of_sums():
    found = resampling.sums_of([[2, 1], [4, 3], [1, 0]], [0, 0, 1], 2, resampling.ratio)
    assert found.value == pytest.approx((3 + 1) / (2 + 0))
    none = resampling.sums_of([[2, 0]], [0], 1, resampling.ratio)
    assert np.isnan(none.value)
    logs = resampling.mean_of(np.log([2.0, 8.0]), [0, 1], 2, resampling.exp_ratio)
    assert logs.value == pytest.approx(4)


def test_the_bootstrap_agrees_with_that_of_scipy():
    values = np.random.default_rng(0).gamma(2, size=60)
    sums = _means(values)
    drawn = resampling.bootstrap({"x": sums}, seed=1)["x"]
    found = resampling.summarise(sums, drawn)
    other = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(2)
    )
    assert found["value"] == pytest.approx(values.mean()) and found["questions"] == 60
    assert found["error"] == pytest.approx(other.standard_error, rel=0.05)
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found["low"] == pytest.approx(other.confidence_interval.low, abs=0.06 * width)
    assert found["high"] == pytest.approx(other.confidence_interval.high, abs=0.06 * width)


def test_intervals_hold_the_truth_where_answers_of_a_question_are_alike():
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(60), 4)
    held, naive = [], []
    for seed in range(200):
        values = rng.normal(size=60)[owners] + rng.normal(size=240)
        sums = resampling.mean_of(values, owners, 60)
        entry = resampling.spread(resampling.bootstrap({0: sums}, seed, 400)[0])
        held.append(entry["low"] <= 0 <= entry["high"])
        naive.append(abs(values.mean()) <= 1.96 * values.std() / np.sqrt(240))
    assert 0.89 <= np.mean(held) <= 0.99
    assert np.mean(naive) < 0.85


def test_measures_are_drawn_together():
    values = np.random.default_rng(0).normal(size=30)
    drawn = resampling.bootstrap({"a": _means(values), "b": _means(values + 2)}, seed=0)
    np.testing.assert_allclose(drawn["b"] - drawn["a"], 2)
    again = resampling.bootstrap({"a": _means(values)}, seed=0)
    np.testing.assert_array_equal(again["a"], drawn["a"])
    assert resampling.bootstrap({}, 0) == {}


def test_no_value_and_one_question_have_no_interval():
    nothing = resampling.mean_of([np.nan], [0], 1)
    drawn = resampling.bootstrap({0: nothing}, 0)[0]
    assert resampling.summarise(nothing, drawn) == {
        "value": None, "error": None, "low": None, "high": None, "questions": 0,
    }  # fmt: skip
    one = resampling.mean_of([3.0], [1], 2)
    entry = resampling.summarise(one, resampling.bootstrap({0: one}, 0)[0])
    assert entry == {"value": 3, "error": None, "low": None, "high": None, "questions": 1}


def test_swapping_all_ways_is_the_sign_flip_test():
    a, b = np.array([0.3, 0.5, 0.9, 0.2, 0.8]), np.array([0.1, 0.6, 0.2, 0.1, 0.3])
    signs = np.array(list(itertools.product((1, -1), repeat=5)))
    seen = abs((a - b).mean())
    expected = np.mean(np.abs((signs * (a - b)).mean(axis=1)) >= seen - 1e-12)
    assert resampling.swap_p(_means(a), _means(b), 0) == pytest.approx(expected)
    other = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True,
    )  # fmt: skip
    assert resampling.swap_p(_means(a), _means(b), 0) == pytest.approx(other.pvalue)


def test_drawn_swaps_come_near_all_of_them_and_are_never_zero():
    rng = np.random.default_rng(0)
    a = rng.normal(size=13)
    b = a + rng.normal(0.3, 1, 13)
    exact = resampling.swap_p(_means(a), _means(b), 0, flips=2**13)
    drawn = resampling.swap_p(_means(a), _means(b), 0, flips=2**13 - 1)
    assert exact != drawn and drawn == pytest.approx(exact, abs=0.02)
    many = np.arange(40.0)
    assert resampling.swap_p(_means(many + 5), _means(many), 0) == 1 / (resampling.FLIPS + 1)


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    found = [
        resampling.swap_p(_means(rng.normal(size=12)), _means(rng.normal(size=12)), 0)
        for _ in range(200)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_two_systems_are_compared_on_the_questions_of_both():
    first = resampling.mean_of([1.0, 2.0, 4.0], [0, 1, 2], 4)
    second = resampling.mean_of([1.5, 1.0, 9.0], [1, 2, 3], 4)
    found = resampling.compare(first, second, seed=0)
    assert found["questions"] == 2 and found["difference"] == pytest.approx(1.75)
    assert found["low"] == pytest.approx(0.5) and found["high"] == pytest.approx(3)
    assert found["p"] == 0.5  # both swapped is as far off
    nothing = resampling.compare(first, second.only(np.array([False, False, False, True])), 0)
    assert nothing == {"difference": None, "low": None, "high": None, "p": None, "questions": 0}


def test_holm_by_hand():
    found = resampling.holm([0.01, None, 0.04, 0.03, 0.9])
    np.testing.assert_allclose(
        [p for p in found if p is not None], [0.04, 0.09, 0.09, 0.9], rtol=1e-12
    )
    assert found[1] is None and resampling.holm([]) == []
