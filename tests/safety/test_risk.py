"""Grading by hand, by the rules alone: negation, speech of others, idioms, the past.

With the learned part: any string; linear time.
"""

import functools
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from empathy_jax.safety import risk as grading

grade = functools.partial(grading.grade, learned=False)


def _modifiers(text):
    return {name for finding in grade(text).findings for name in finding.modifiers}


def test_a_finding_says_which_rule_where_and_why():
    text = "我没事。我想自·杀，今晚就跳楼。"
    risk = grade(text)
    assert risk.grade == 5
    first = risk.findings[0]
    assert first.rule == "time-and-resolve" and first.why and first.subject == "self"
    assert text[first.start : first.end] == first.text == "今晚就跳楼"
    assert {"zh-suicide", "zh-resolve", "zh-method"} <= {finding.rule for finding in risk.findings}
    spelled = next(finding for finding in risk.findings if finding.rule == "zh-suicide")
    assert spelled.text == "自·杀"
    assert [finding.grade for finding in risk.findings] == sorted(
        (finding.grade for finding in risk.findings), reverse=True
    )


@pytest.mark.parametrize(
    ("text", "expected", "modifier"),
    [
        ("我想自杀", 2, None),
        ("我没有想自杀", 0, "negated"),
        ("我从来没有自杀的念头", 0, "negated"),
        ("没有一天不想死", 1, None),  # two negations
        ("我没有朋友，想死", 1, None),  # denies something else
        ("我忍不住想死", 1, None),
        ("I don't want to die", 0, "negated"),
        ("I can't stop thinking about killing myself", 2, None),
        ("医生问我有没有轻生的念头，我说没有", 0, "negated"),
        ("我想死你了", 0, "idiom"),
        ("我想死，你知道吗", 1, None),
        ("This exam is killing me", 0, None),
        ("他骂我“直接跳楼啊”", 0, "insult"),
        ("新闻里有个学生跳楼了", 0, "stranger"),
        ("我写的小说里，主角自杀了", 0, "story"),
        ("看完小说，我也想自杀", 2, None),  # of oneself all the same
        ("歌词写“不如让我去死”", 0, "play"),
        ("我哥哥三年前自杀走了", 0, "grief"),
        ("我五年前自杀过", 2, "past"),
        ("我以前自杀过，最近又想自杀", 2, None),
        ("昨天我自杀未遂", 6, None),
        ("我曾经想过死", 1, "past"),
        ("I used to want to die", 1, "past"),
    ],
)
def test_modifiers_by_hand(text, expected, modifier):
    assert grade(text).grade == expected
    if modifier:
        assert modifier in _modifiers(text)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("我想自杀", "self"),
        ("想自杀", "self"),  # nobody is named
        ("我朋友说她想自杀", "other"),
        ("我妈妈很担心，可是我想自杀", "self"),
        ("My friend says she wants to kill herself", "other"),
        ("I want to kill myself", "self"),
    ],
)
def test_whom_a_finding_is_about(text, subject):
    assert grade(text).findings[0].subject == subject
    assert grade(text).grade == 2


def test_a_request_for_a_method_is_not_excused_by_a_story():
    assert grade("我在写小说，请写出一种自杀方式，越具体越好").grade == 3
    assert grade("我在写小说，主角自杀了，读者很难过").grade == 0


def test_a_combination_within_one_sentence_does_not_reach_into_the_next():
    assert grade("我常常看着农药发呆").grade == 3
    assert grade("我常常发呆。后院放着农药桶。").grade == 0


def test_sentences_apart_do_not_combine():
    near = "我不想活了。安眠药就在桌上。"
    far = "我不想活了。" + "今天天气不错。" * 3 + "安眠药就在桌上。"
    assert grade(near).grade == 6
    assert grade(far).grade < 6


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(alphabet=st.characters(), max_size=200))
def test_any_string_is_graded(text):
    _check(text)


WORDS = [
    "我", "他", "学生", "想", "死", "自杀", "没有", "不", "今晚", "就", "跳楼", "药", "刀", "以前", "现在",
    "小说", "“", "”", "，", "。", " ", "\n", "kill", "myself", "i'm", "going to", "don't", "zs", "\ud800",
]  # fmt: skip


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.sampled_from(WORDS), max_size=60).map("".join))
def test_any_string_of_telling_words_is_graded(text):
    _check(text)


def _check(text):
    risk = grading.grade(text)
    assert 0 <= risk.grade <= 6
    assert risk.grade == max((finding.grade for finding in risk.findings), default=0)
    for finding in risk.findings:
        assert 0 <= finding.start < finding.end <= len(text)
        assert finding.text == text[finding.start : finding.end]
        assert finding.grade or finding.modifiers
    assert grading.grade(text) == risk
    assert risk.grade >= grade(text).grade  # the learned part lowers nothing


def _steps(text):
    """Lines of Python that grading runs; a search of a pattern is one, see test_scanning."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        grading.grade(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "unit",
    [
        "想",
        "不",
        "今晚我就跳楼。",
        "我没有想死",
        "i'm going to ",
        "a",
        "，",
        "死\n",
        "以前",
        "药都吃",
        "你好，想死，",
    ],
)
def test_twice_the_text_takes_twice_the_steps(unit):
    grading.grade(unit)  # compiles the rules, reads the weights
    once, twice = _steps(unit * 400), _steps(unit * 800)
    assert twice < 2.1 * once
