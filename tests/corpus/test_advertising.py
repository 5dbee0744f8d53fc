"""Advertising: sentences that solicit, stories that only sound like it, and what becomes of both."""

import json
from pathlib import Path

import pytest

from empathy_jax.corpus.rules import advertising, personal_data

SENTENCES = [
    json.loads(line)
    for line in (Path(__file__).parent / "hand_checked.jsonl").read_text("utf-8").splitlines()
]
ANSWER = "听起来你这段时间很累。" * 8


def test_precision_and_recall_of_the_hand_checked_sentences_hold():
    rows = [row for row in SENTENCES if row["set"] != "challenge"]
    found = [bool(advertising.solicitations(row["text"])) for row in rows]
    alarms = [row["text"] for row, f in zip(rows, found, strict=True) if f > row["advertising"]]
    missed = [row["text"] for row, f in zip(rows, found, strict=True) if f < row["advertising"]]
    assert alarms == []
    assert len(missed) <= 0.02 * sum(row["advertising"] for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        "他从不关注我的感受。",
        "她私信我说对不起。",
        "我在淘宝买了很多东西。",
        "他加我微信只是为了借钱。",
        "我想有自己的隐私我该怎么办？",
        "超过了自我承受的极限时，学习课程也没用。",
        "网上刷单被骗了六千多。",
    ],
)
def test_everyday_words_are_innocent(text):
    assert advertising.solicitation(ANSWER + text) == (ANSWER + text, 0)
    assert not advertising.is_advertising(text)


def test_a_long_answer_loses_the_sentence_alone():
    text = ANSWER + "有困惑可以私信我。祝好！"
    assert advertising.solicitation(text) == (ANSWER + "祝好！", 1)
    assert not advertising.is_advertising(text)


def test_a_text_that_mostly_solicits_stays_whole_and_is_rejected():
    text = "你好。加我微信：xinli_liu88，免费咨询。扫描下方二维码进群。"
    assert advertising.solicitation(text) == (text, 0)
    assert advertising.is_advertising(text)


def test_the_verdict_is_the_same_before_and_after_personal_data_is_replaced():
    for row in SENTENCES:
        text = row["text"]
        for _, rule, _ in personal_data.RULES:
            text, _ = rule(text)
        before = bool(advertising.solicitations(row["text"]))
        assert bool(advertising.solicitations(text)) == before, row["text"]


def test_english_sentences_are_cut_one_by_one():
    text = (
        "I hear how tired you are. Give it time. You may reach me at 787-466-5478 to schedule an "
        "appointment. Be kind to yourself and rest as much as you can this week, as it helps more "
        "than we tend to think."
    )
    cut, count = advertising.solicitation(text)
    assert count == 1
    assert "reach me" not in cut
    assert cut.startswith("I hear how tired you are. Give it time. ")
