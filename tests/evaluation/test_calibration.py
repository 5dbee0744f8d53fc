import numpy as np
import pytest

from empathy_jax.evaluation import calibration


def _record(index, *answers):
    return {"question": f"q{index}", "answers": [{"text": a} | extra for a, extra in answers]}


def test_three_questions_by_hand():
    # Cosines, questions by answers; the diagonal is genuine.
    cosines = np.array([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.4, 0.4, 0.4]])
    vectors = {f"q{i}": np.eye(3)[i] for i in range(3)}
    vectors |= {f"a{j}": cosines[:, j] for j in range(3)}
    records = [_record(i, (f"a{i}", {})) for i in range(3)]
    found = calibration.calibrate(records, lambda texts: np.stack([vectors[t] for t in texts]))
    # Wins of the genuine answer: 2 of 2; 1 of 2; two ties count a half each.
    assert found["questions"] == 3
    assert found["pairwise_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["pairwise_accuracy_error"] == pytest.approx(
        np.std([1, 0.5, 0.5], ddof=1) / np.sqrt(3)
    )
    assert found["recall_at_1"] == pytest.approx(1 / 3)
    assert found["genuine_mean"] == pytest.approx(0.6)
    assert found["other_mean"] == pytest.approx((0.2 + 0.1 + 0.3 + 0.6 + 0.4 + 0.4) / 6)
    # At 0.4: all three genuine pass, three of six others are below: (1 + 1/2) / 2 = 0.75.
    # At 0.5: 2/3 pass, five of six others are below: (2/3 + 5/6) / 2 = 0.75. The lower wins.
    assert (found["threshold"], found["balanced_accuracy"]) == (0.4, pytest.approx(0.75))
    assert len(found["quantiles"]) == 101
    assert all(isinstance(v, float) for v in found["quantiles"])


def test_first_good_answer_stands_for_the_question():
    records = [
        _record(0, ("bad", {"score": 2}), ("good0", {"score": 3})),
        _record(1, ("good1", {})),
        _record(2, ("bad2", {"score": 1})),
        _record(3),
    ]
    asked = []

    def embed(texts):
        asked.append(texts)
        return np.eye(2)

    assert calibration.calibrate(records, embed)["pairwise_accuracy"] == 1
    assert asked == [["q0", "q1"], ["good0", "good1"]]


def test_one_question_cannot_calibrate():
    with pytest.raises(ValueError, match=r"1 held-out questions.*validation_fraction"):
        calibration.calibrate([_record(0, ("a", {})), _record(1)], lambda texts: None)


def test_best_threshold_by_hand():
    # At 0.6 two of three genuine pass and all others are refused: (2/3 + 1) / 2.
    genuine, other = np.array([0.8, 0.6, 0.2]), np.array([0.5, 0.3, 0.4, 0.1])
    assert calibration.best_threshold(genuine, other) == (0.6, pytest.approx(5 / 6))
    # Separable: the lowest genuine value.
    assert calibration.best_threshold(np.array([0.9, 0.7]), np.array([0.1])) == (0.7, 1.0)
    # A value equal to the threshold passes, genuine or not.
    assert calibration.best_threshold(np.array([0.5]), np.array([0.5])) == (0.5, 0.5)


def test_best_threshold_equals_trying_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        genuine = random.integers(0, 9, 7) / 10 + 0.1
        other = random.integers(0, 9, 11) / 10
        tried = {
            t: ((genuine >= t).mean() + (other < t).mean()) / 2 for t in np.union1d(genuine, other)
        }
        threshold, balanced = calibration.best_threshold(genuine, other)
        assert balanced == pytest.approx(max(tried.values()))
        assert threshold == min(t for t, v in tried.items() if v == pytest.approx(balanced))


def test_mixed_quantiles_weigh_both_samples_alike():
    # Weights: 1/2 on 1.0; 1/6 each on 0.0, 0.2, 0.4. Middle ranks: 1/12, 3/12, 5/12, 3/4.
    found = calibration.mixed_quantiles(np.array([1.0]), np.array([0.0, 0.4, 0.2]))
    assert found.shape == (101,)
    assert found[0] == 0 and found[100] == 1
    assert found[25] == pytest.approx(0.2)
    assert found[75] == pytest.approx(1.0)
    # Between the ranks 5/12 and 3/4, at 0.5: 0.4 + 0.6 * (0.5 - 5/12) / (3/4 - 5/12).
    assert found[50] == pytest.approx(0.4 + 0.6 * 0.25)
    assert np.all(np.diff(found) >= 0)
