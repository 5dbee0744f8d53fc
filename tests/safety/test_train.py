"""Training of the learned part: it repeats, learns what is there, and is tested on groups it has not seen."""

import json

import numpy as np
import pytest
import sklearn.linear_model

from empathy_jax.safety import learned, risk, train
from empathy_jax.safety.learned import TARGETS, Window
from empathy_jax.safety.train import Text

CHOSEN = train.texts()


def _window(*names):
    return Window(0, 1, dict.fromkeys(names, 1.0), {})


def test_texts_are_well_formed_and_enough():
    written = [one for one in CHOSEN if one.group not in train.PARTS]
    assert len(written) >= 1200 and len({one.text for one in CHOSEN}) == len(CHOSEN)
    assert all(one.language in ("zh", "en") and one.grade in range(7) for one in CHOSEN)
    innocent = sum(one.grade == 0 for one in written) / len(written)
    chinese = sum(one.language == "zh" for one in written) / len(written)
    assert 0.4 < innocent < 0.6 and 0.5 < chinese < 0.7
    assert all(one.text.strip() == one.text for one in CHOSEN)


def test_weights_are_of_these_texts():
    """`python -m empathy_jax.safety.train` makes them anew."""
    path = train.Path(train.__file__).with_name("weights.json")
    assert json.loads(path.read_text(encoding="utf-8"))["made_from"] == train.fingerprint(CHOSEN)
    assert learned.weights().features["自"]


def test_training_repeats_to_the_byte(tmp_path):
    some = [one for one in CHOSEN if one.group in ("zh_long", "en_requests_fiction")]
    read = [risk.windows(one.text) for one in some]
    grades = np.array([one.grade for one in some])
    for name in ("a", "b"):
        train.write(tmp_path / name, train.fit(read, grades), train.fingerprint(some))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    document = json.loads((tmp_path / "a").read_bytes())
    assert document["targets"] == list(TARGETS) and len(document["features"]) > 500


def test_a_word_of_risk_gets_weight_for_the_targets_it_meets():
    read = [[_window("wish")], [_window("rope")], [_window("tea")]] * 5
    model = train.fit(read, np.array([1, 6, 0] * 5))
    noticed, urgent = range(2)
    assert model.features["wish"][noticed] > 0 > model.features["wish"][urgent]
    assert min(model.features["rope"]) > 0 > max(model.features["tea"])


def test_a_feature_of_one_text_has_no_weight():
    read = [[_window("often", "once")], [_window("often")], [_window("tea")], [_window("tea")]]
    assert set(train.fit(read, np.array([5, 5, 0, 0])).features) == {"often", "tea"}


def test_of_a_long_text_the_telling_window_is_learned_from():
    calm, telling = _window("calm", "day"), _window("rope", "knot")
    read = [[telling], [calm], [calm, telling], [calm, calm]] * 4
    model = train.fit(read, np.array([6, 0, 6, 0] * 4))
    assert model.features["rope"][1] > 0 > model.features["calm"][1]
    # As if the calm windows of long texts were not there: 8 telling ones against 4 + 8 calm ones.
    alone = train.fit(
        [[telling], [telling], [calm], [calm], [calm]] * 4, np.array([6, 6, 0, 0, 0] * 4)
    )
    assert model.features["rope"] == pytest.approx(alone.features["rope"], abs=2e-3)


def test_logistic_regression_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    matrix, met = rng.normal(size=(80, 6)), rng.random(80) < 0.4
    sparse = train.scipy.sparse.csr_matrix(np.hstack([matrix, np.ones((80, 1))]))
    ours = train._logistic(sparse, met, np.zeros(7))
    oracle = sklearn.linear_model.LogisticRegression(C=1 / train.PENALTY, tol=1e-10, max_iter=5000)
    oracle.fit(matrix, met)
    np.testing.assert_allclose(ours, [*oracle.coef_[0], oracle.intercept_[0]], atol=1e-4)


def test_cross_validation_does_not_see_the_group():
    """A word that means risk in one group only gets no weight where that group is tested."""
    words = {"a": "rope", "b": "knife", "c": "bridge"}
    chosen = [Text(f"{group}{i}", "en", 6 * (i % 2), group) for group in words for i in range(8)]
    read = [[_window(words[one.group] if one.grade else "tea")] for one in chosen]
    scores = train.cross_validate(chosen, read)
    seen = train.fit(read, np.array([one.grade for one in chosen]))
    for one, windows, row in zip(chosen, read, scores, strict=True):
        if one.grade:
            assert learned.scores(seen, windows[0])[1] > row[1] + 1


def test_thresholds_by_hand():
    scores = np.stack([np.arange(20.0), np.arange(20.0)], axis=1)
    none = np.zeros(20, int)

    def alarms(rules):
        return (scores >= train.thresholds(scores, none, rules)).sum(axis=0).tolist()

    assert alarms(none) == [2, 1]  # 10 %, 5 %
    # What the rules take for danger is counted, whatever its score.
    assert alarms(np.array([3] + [0] * 19)) == [1, 0]
    assert alarms(np.array([0] * 19 + [3])) == [2, 1]
    assert alarms(np.array([1] + [0] * 19)) == [1, 1]
    assert alarms(np.array([3, 3, 3] + [0] * 17)) == [0, 0]
