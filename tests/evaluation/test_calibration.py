"""Calibration: small tables of cosines by hand, and oracles that count one by one."""

import json

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest

from empathy_jax.data import corruptions
from empathy_jax.evaluation import calibration

COSINES = st.floats(-1, 1, width=16)


class _Scorer:
    """Cosines by a table: text to vector; unknown texts get the zero vector."""

    has_head = False

    def __init__(self, vectors):
        self.vectors, self.calls = vectors, []

    def _embed(self, texts):
        self.calls.append(list(texts))
        zero = np.zeros_like(next(iter(self.vectors.values())))
        return np.stack([self.vectors.get(text, zero) for text in texts])

    embed_questions = embed_answers = _embed

    def similarity(self, questions, answers):
        return np.einsum("nd,nd->n", self._embed(questions), self._embed(answers))


def _record(index, *answers):
    return {"question": f"q{index}", "answers": [{"text": a} | extra for a, extra in answers]}


def _calibrate(records, scorer, **changes):
    settings = {"pass_rate": 0.9, "language": "zh", "max_characters": 100, "seed": 0, "limit": 50}
    return calibration.calibrate(records, scorer, **(settings | changes))


def _three():
    # Cosines, questions by answers; the diagonal is genuine.
    cosines = np.array([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.4, 0.4, 0.4]])
    vectors = {f"q{i}": np.eye(3)[i] for i in range(3)}
    vectors |= {f"a{j}": cosines[:, j] for j in range(3)}
    return [_record(i, (f"a{i}", {})) for i in range(3)], _Scorer(vectors)


def test_three_questions_by_hand():
    found = _calibrate(*_three(), pass_rate=0.5)
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
    # Half of three genuine answers is two of them.
    assert (found["pass_rate"], found["pass_rate_threshold"]) == (0.5, 0.5)
    assert len(found["quantiles"]) == 101
    assert all(isinstance(v, float) for v in found["quantiles"])
    # All three are candidates of each other: ranks 1, 2, 3 (both ties count against it).
    for name in ("random", "nearest"):
        assert found[name]["answers"] == 3
        assert found[name]["recall_at_1"] == pytest.approx(1 / 3)
        assert found[name]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
        assert found[name]["mrr_error"] == pytest.approx(np.std([1, 1 / 2, 1 / 3], ddof=1) / 3**0.5)
    assert found["negatives"]["random"]["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert json.loads(json.dumps(found)) == found


def test_every_kind_of_negative_is_measured_and_each_text_embedded_in_one_call(monkeypatch):
    records, scorer = _three()
    scorer.vectors["two1"] = np.array([0.0, 0.7, 0.0])
    made = []

    def corrupt(kind, rng, question, answer, other, max_characters, language):
        made.append((kind, question, answer, other, max_characters, language))
        return kind + question[1]

    monkeypatch.setattr(corruptions, "KINDS", ("one", "two"))
    monkeypatch.setattr(corruptions, "corrupt", corrupt)
    found = _calibrate(records, scorer, limit=2)["negatives"]
    assert made == [
        (kind, f"q{i}", f"a{i}", f"a{i + 1}", 100, "zh") for kind in ("one", "two") for i in (0, 1)
    ]
    assert list(found) == ["random", "same_topic", "one", "two"]
    # One worse text of question 1 is nearer than its genuine answer.
    assert found["one"] == {"accuracy": 1, "error": 0, "questions": 2}
    assert found["two"] == {"accuracy": 0.5, "error": 0.5, "questions": 2}
    assert found["same_topic"]["questions"] == 3
    assert scorer.calls == [["q0", "q1", "q2"], ["a0", "a1", "a2", "one0", "one1", "two0", "two1"]]
    assert list(_calibrate(records, scorer, limit=0)["negatives"]) == ["random", "same_topic"]


def test_the_same_seed_gives_the_same():
    random = np.random.default_rng(3)
    vectors = random.normal(size=(60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"q{i}" for i in range(30)] + [f"a{i}" for i in range(30)]
    scorer = _Scorer(dict(zip(names, vectors, strict=True)))
    records = [_record(i, (f"a{i}", {})) for i in range(30)]
    assert _calibrate(records, scorer) == _calibrate(records, scorer)


def test_first_good_answer_stands_for_the_question_and_a_shared_one_for_the_first():
    records = [
        _record(0, ("bad", {"score": 2}), ("good0", {"score": 3})),
        _record(1, ("good1", {})),
        _record(2, ("bad2", {"score": 1})),
        _record(3),
        _record(4, ("good1", {})),
    ]
    assert [(r["question"], a) for r, a in calibration.answered(records)] == [
        ("q0", "good0"),
        ("q1", "good1"),
    ]


def test_one_question_cannot_calibrate():
    with pytest.raises(ValueError, match=r"1 held-out questions.*validation_fraction"):
        _calibrate([_record(0, ("a", {})), _record(1)], None)


def test_nearest_and_drawn_others_by_hand():
    angles = np.array([0.0, 0.1, 0.3, 3.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert calibration.nearest(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    allowed = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]], bool)
    assert calibration.nearest(vectors, 1, allowed).tolist() == [[2], [0], [0], [0]]
    drawn = calibration.draw_others(6, 3, seed=0)
    assert all(len({*row, i}) == 4 and set(row) <= set(range(6)) for i, row in enumerate(drawn))
    # Each other is as likely as the next: 5 of 9 places over many draws.
    counts = np.zeros(10)
    for seed in range(300):
        counts += np.bincount(calibration.draw_others(10, 5, seed)[0], minlength=10)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] / 300 - 5 / 9) < 0.1)


@hypothesis.given(arrays.arrays(np.float64, (5, 4), elements=COSINES))
def test_ranks_equal_sorting(cosines):
    genuine, others = cosines[:, 0], cosines[:, 1:]
    found = calibration.ranks(genuine, others)
    placed = [
        sorted([(-x, 0) for x in row] + [(-g, 1)]).index((-g, 1)) + 1
        for g, row in zip(genuine.tolist(), others.tolist(), strict=True)
    ]
    assert found["recall_at_1"] == pytest.approx(np.mean([p == 1 for p in placed]))
    assert found["mrr"] == pytest.approx(np.mean([1 / p for p in placed]))
    # What is far above all others is always first.
    assert calibration.ranks(genuine + 3, others)["mrr"] == 1


def test_threshold_at_by_hand():
    genuine = np.array([0.1, 0.5, 0.2, 0.4, 0.3])
    assert calibration.threshold_at(genuine, 1.0) == 0.1
    assert calibration.threshold_at(genuine, 0.6) == 0.3
    assert calibration.threshold_at(genuine, 0.61) == 0.2
    assert calibration.threshold_at(genuine, 0.01) == 0.5
    assert calibration.threshold_at(np.arange(10), 0.3) == 7
    for rate in (0, 1.5, -1):
        with pytest.raises(ValueError, match=rf"config\.reward_model\.pass_rate is {rate}"):
            calibration.threshold_at(genuine, rate)


@hypothesis.given(
    arrays.arrays(np.float64, st.integers(1, 20), elements=COSINES), st.floats(0.01, 1)
)
def test_threshold_at_lets_the_wanted_share_pass_and_no_higher_value_does(genuine, rate):
    threshold = calibration.threshold_at(genuine, rate)
    assert (genuine >= threshold).mean() >= rate - 1e-6
    higher = genuine[genuine > threshold]
    assert higher.size == 0 or (genuine >= higher.min()).mean() < rate


def test_reliability_by_hand():
    # Scaled by this table the score is the cosine itself.
    table = np.linspace(0, 1, 101)
    found = calibration.reliability(np.array([0.95, 0.55]), np.array([0.05, 0.51, 0.15]), table)
    bins = found["bins"]
    assert [b["mass"] for b in bins] == pytest.approx([1 / 6, 1 / 6, 1 / 4 + 1 / 6, 1 / 4])
    assert [b["genuine"] for b in bins] == pytest.approx([0, 0, 0.6, 1])
    middle = (0.55 / 4 + 0.51 / 6) / (1 / 4 + 1 / 6)
    assert [b["score"] for b in bins] == pytest.approx([0.05, 0.15, middle, 0.95])
    error = 0.05 / 6 + 0.15 / 6 + abs(0.6 - middle) * (5 / 12) + 0.05 / 4
    assert found["expected_calibration_error"] == pytest.approx(error)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_reliability_of_a_blind_and_of_a_perfect_model(shift):
    random = np.random.default_rng(0)
    genuine, other = random.normal(size=2000) + 2 * shift, random.normal(size=6000)
    quantiles = calibration.mixed_quantiles(genuine, other)
    found = calibration.reliability(genuine, other, quantiles)
    assert [b["mass"] for b in found["bins"]] == pytest.approx([0.1] * 10, abs=0.005)
    expected = [0.5] * 10 if shift == 0 else [0] * 5 + [1] * 5
    assert [b["genuine"] for b in found["bins"]] == pytest.approx(expected, abs=0.05)
    assert found["expected_calibration_error"] == pytest.approx(0.25, abs=0.02)


class _Graded(_Scorer):
    """A head that likes long answers."""

    has_head = True

    def quality(self, questions, answers):
        return np.array([len(a) for a in answers], np.float32)


def test_a_head_is_measured_on_graded_answers():
    records = [
        _record(0, ("aaaa", {"score": 5}), ("bb", {"score": 3}), ("ccccc", {"score": 3})),
        _record(1, ("dd", {"score": 4}), ("e", {"score": 1}), ("f", {})),
        _record(2, ("g", {})),
        _record(3),
    ]
    texts = ["aaaa", "bb", "ccccc", "dd", "e", "f", "g"]
    cosines = [0.9, 0.1, 0.2, 0.3, 0.4, 0.0, 0.5]
    vectors = {f"q{i}": np.ones(1) for i in range(4)}
    vectors |= {text: np.full(1, c) for text, c in zip(texts, cosines, strict=True)}
    found = _calibrate(records, _Graded(vectors))
    # Of question 0 the better one wins by length once of twice, by cosine twice; of question 1
    # once and never.
    assert found["graded"] == {
        "questions": 2, "pairs": 3, "quality": 0.75, "quality_error": 0.25,
        "cosine": 0.5, "cosine_error": 0.5,
    }  # fmt: skip
    assert found["quality_quantiles"][0] == 1 and found["quality_quantiles"][100] == 5
    assert found["quality_quantiles"][50] == 2
    ungraded = [_record(i, (t, {})) for i, t in enumerate(texts[:3])]
    assert _calibrate(ungraded, _Graded(vectors))["graded"] is None
    assert "graded" not in _calibrate(records, _Graded(vectors), limit=0)


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


def test_the_scale_reaches_down_to_corrupted_answers():
    # Shares: 1/3 on 1.0; 1/6 each on 0.4, 0.6; 1/3 on 0.0. Middle ranks: 1/6, 5/12, 7/12, 5/6.
    samples = (np.array([1.0]), np.array([0.6, 0.4]), np.array([0.0]))
    found = calibration.mixed_quantiles(*samples)
    np.testing.assert_allclose(found[[0, 16, 84, 100]], [0, 0, 1, 1])
    assert found[50] == pytest.approx(0.5)
    without = calibration.mixed_quantiles(*samples[:2], np.zeros(0))
    np.testing.assert_array_equal(without, calibration.mixed_quantiles(*samples[:2]))
    assert found[25] < without[25]


def test_calibration_scales_by_corrupted_answers_too():
    records = [_record(i, (f"a{i}" * 30, {})) for i in range(3)]
    random = np.random.default_rng(0)

    class Scorer:
        has_head = False

        def embed_questions(self, texts):
            return np.eye(4)[: len(texts)]

        def embed_answers(self, texts):
            # Answers are near every question, what is made of them lies off.
            good = {record["answers"][0]["text"] for record in records}
            return np.stack(
                [random.uniform(0.4, 0.6, 4) * (1 if text in good else -1) for text in texts]
            )

    arguments = {"pass_rate": 0.5, "language": "zh", "max_characters": 60, "seed": 0}
    with_them = calibration.calibrate(records, Scorer(), **arguments, limit=3)["quantiles"]
    without = calibration.calibrate(records, Scorer(), **arguments, limit=0)["quantiles"]
    assert min(with_them) < 0 < min(without)


def test_mean_and_standard_error_by_hand():
    assert calibration.mean_and_error([1, 2, 3, 6]) == (3, pytest.approx(np.sqrt(14 / 3) / 2))
    assert calibration.mean_and_error([4]) == (4, 0)
