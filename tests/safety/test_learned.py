"""The learned part by hand: features, windows, scores, what a finding tells, and how it yields to rules."""

import itertools
import math

import pytest

from empathy_jax.safety import learned, risk
from empathy_jax.safety.learned import ELEMENT_VALUE, Mark, Weights


def _only(text, marks=()):
    (window,) = learned.windows(text, [0], list(marks))
    return window


def test_features_by_hand():
    window = _only("想死,i can't")
    assert list(window.values) == ["想", "想死", "死", "i", "i can't", "can't"]
    assert set(window.values.values()) == {1 / math.sqrt(learned.FEWEST)}
    assert window.places["想死"] == (0, 2) and window.places["can't"] == (5, 10)
    many = _only("一二三四五六")  # 6 + 5 + 4 n-grams
    assert set(many.values.values()) == {1 / math.sqrt(15)}


def test_numbers_are_one_feature():
    assert _only("12 days").values == _only("7 days").values


def test_what_a_rule_took_back_is_not_read():
    window = _only("我没有想自杀", [Mark("suicide", 4, 6, "negated")])
    assert not any("自" in name or "杀" in name for name in window.values)
    assert window.places["有想<negated>"] == (2, 6)
    assert window.values["[suicide negated]"] == ELEMENT_VALUE


def test_elements_stand_alone_and_in_pairs():
    marks = [Mark("time", 0, 1, ""), Mark("means", 1, 2, ""), Mark("means", 2, 3, "")]
    names = {name for name in _only("今晚药", marks).values if name.startswith("[")}
    assert names == {"[time]", "[means]", "[means][time]"}


def test_windows_hold_every_token_and_overlap():
    sentences = [f"第{chr(0x4E00 + 20 * index)}个句子写在这里。" for index in range(60)]
    text = "".join(sentences)
    starts = [index * len(sentences[0]) for index in range(60)]
    found = learned.windows(text, starts, [])
    assert len(found) > 5
    for before, after in itertools.pairwise(found):
        assert before.start < after.start <= before.end < after.end  # no gap, nothing twice
    assert all(one.end - one.start <= 1.3 * learned.WINDOW for one in found)
    assert {start for start in starts} <= {
        place for one in found for place in range(one.start, one.end)
    }
    assert len(learned.windows(text[:60], starts[:6], [])) == 1


@pytest.mark.parametrize("text", ["", "。。。", "\n"])
def test_a_text_without_words_is_read(text):
    model = Weights({}, (-1.0, -2.0), (0.0, 0.0))
    assert [one.score for one in learned.read(model, text, [0], [])] == [-1.0, -2.0]
    assert risk.grade(text) == (0, ())


def test_scores_by_hand():
    model = Weights({"死": (2.0, -3.0), "[means]": (0.0, 5.0)}, (0.5, 1.0), (0.0, 0.0))
    value = 1 / math.sqrt(10)
    noticed, urgent = learned.read(model, "死了", [0], [Mark("means", 0, 1, "")])
    assert noticed.score == pytest.approx(0.5 + 2 * value)
    assert urgent.score == pytest.approx(1.0 - 3 * value + 5 * ELEMENT_VALUE)
    assert [name for name, _ in urgent.named] == ["[means]", "死"]
    assert (urgent.start, urgent.end) == (0, 1)


def test_the_highest_window_counts():
    model = Weights({"药": (0.0, 4.0)}, (0.0, 0.0), (0.0, 0.0))
    calm = "今天天气很好我们去散步。" * 20
    starts = list(range(0, len(calm) + 1, 12))
    alone = learned.read(model, "药", [0], [])[1].score
    inside = learned.read(model, calm + "药", starts, [])[1]
    assert 0.3 * alone < inside.score < alone
    assert inside.start == len(calm)


def _plant(monkeypatch, weights, thresholds=(9.0, 1.0)):
    monkeypatch.setattr(learned, "weights", lambda: Weights(weights, (0.0, 0.0), thresholds))


def test_a_planted_word_makes_a_finding(monkeypatch):
    _plant(monkeypatch, {"桂花": (0.0, 9.0)})
    text = "我说，桂 花开了，我朋友高兴。"
    assert risk.grade(text, learned=False) == (0, ())
    (found,) = risk.grade(text).findings
    assert (found.rule, found.grade, found.text, found.subject) == ("learned", 3, "桂 花", "self")
    assert found.score == pytest.approx(9 / math.sqrt(len(risk.windows(text)[0].places)), abs=1e-3)
    assert "桂花 +" in found.why and found.modifiers == ()


def test_only_the_gravest_target_is_told(monkeypatch):
    _plant(monkeypatch, {"桂花": (9.0, 9.0)}, (1.0, 1.0))
    assert [found.grade for found in risk.grade("桂花").findings] == [3]
    _plant(monkeypatch, {"桂花": (9.0, 0.0)}, (1.0, 1.0))
    assert [found.grade for found in risk.grade("桂花").findings] == [1]


def test_a_negation_hides_words_from_the_model(monkeypatch):
    _plant(monkeypatch, {"自杀": (9.0, 9.0), "[suicide]": (9.0, 9.0)}, (1.0, 1.0))
    assert risk.grade("我想自杀").grade == 3
    assert risk.grade("我没有想自杀").grade == 0


@pytest.mark.parametrize(
    "text",
    [
        "我没有想自杀",
        "我不会自杀的，别担心。",
        "I don't want to kill myself",
        "我想死你了",
        "累死了",
        "笑死我了",
    ],
)
def test_denials_and_idioms_stay_innocent(text):
    assert risk.grade(text).grade == 0


def test_the_model_hears_what_the_rules_do_not():
    text = "鞋脱在岸上了，江水好凉，你们保重。"
    assert risk.grade(text, learned=False).grade < 3 <= risk.grade(text).grade
