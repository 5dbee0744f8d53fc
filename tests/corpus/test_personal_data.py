"""Personal data: what is replaced, what looks like it and stays, on hand-checked sentences too."""

import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax.corpus.rules import contacts, personal_data

SENTENCES = [
    json.loads(line)
    for line in (Path(__file__).parent / "hand_checked.jsonl").read_text("utf-8").splitlines()
]
RULES = {name: rule for name, rule, _ in personal_data.RULES}


def replaced(text):
    for _, rule, _ in personal_data.RULES:
        text, _ = rule(text)
    return text


def test_there_are_more_than_three_hundred_sentences_and_a_third_is_innocent():
    innocent = [row for row in SENTENCES if not row["personal"] and not row["advertising"]]
    assert len(SENTENCES) == 427
    assert 3 * len(innocent) >= len(SENTENCES)
    assert len({row["text"] for row in SENTENCES}) == len(SENTENCES)


def test_precision_and_recall_of_the_hand_checked_sentences_hold():
    names = {"user_url": "url", "full_name": "name"}
    hits = truths = alarms = 0
    for row in SENTENCES:
        if row["set"] == "challenge":
            continue
        text, found = row["text"], set()
        for name, rule in RULES.items():
            text, count = rule(text)
            found |= {names.get(name, name)} if count else set()
        hits += len(found & set(row["personal"]))
        truths += len(row["personal"])
        alarms += len(found - set(row["personal"]))
    assert alarms == 0
    assert hits >= 0.98 * truths


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("phone", "电话13812345678。", "电话[PHONE]。"),
        ("phone", "+86 139-1111-2222", "[PHONE]"),
        ("phone", "一三八零零一三八零零零", "[PHONE]"),
        ("phone", "１３５６６７７８８９９", "[PHONE]"),
        ("phone", "1 3 9 0 0 1 1 2 2 3 3", "[PHONE]"),
        ("phone", "call 415-555-0137", "call [PHONE]"),
        ("phone", "打13812345678一直没人接", "打[PHONE]一直没人接"),
        ("phone", "快递电话13812345678", "快递电话[PHONE]"),
        ("phone", "合同上的联系方式13812345678", "合同上的联系方式[PHONE]"),
        ("phone", "订单里那个手机 13812345678", "订单里那个手机 [PHONE]"),
        ("id_card", "证号11010519491231002X，", "证号[ID_CARD]，"),
        ("bank_card", "卡号4111 1111 1111 1111", "卡号[BANK_CARD]"),
        ("email", "写信到a.b@c.com。", "写信到[EMAIL]。"),
        ("email", "hr＠corp．com", "[EMAIL]"),
        ("wechat", "薇信 heartdoc2019", "薇信 [WECHAT]"),
        ("wechat", "V❤️信：abc_mind01", "V❤️信：[WECHAT]"),
        ("qq", "裙号：728193046", "裙号：[QQ]"),
        ("qq", "扣扣 458 392 017", "扣扣 [QQ]"),
        ("user_url", "看https://weibo.com/u/12345。", "看[URL]。"),
        ("full_name", "我叫欧阳雪，", "我叫[NAME]，"),
        ("full_name", "My name is Jane Doe.", "My name is [NAME]."),
    ],
)
def test_each_rule_replaces_its_own(rule, text, expected):
    assert RULES[rule](text) == (expected, 1)


@pytest.mark.parametrize(
    "text",
    [
        "拨打12356、110、120或4001619995，北京心理援助热线010-82951332。",
        "call 1-800-273-8255 or 988, text HOME to 741741",
        "订单号202011051234567890，快递SF1234567890123，合同编号13812345678",
        "证号110105194912310021，卡号4111111111111112",
        "2019-03-15到2021-08-20，房价1380000元，圆周率3.14159265358979",
        "他加我微信，我叫他别走，我叫苦连天，老师高兴，QQ2020年",
        "见https://www.who.int/health-topics/depression",
    ],
)
def test_look_alikes_stay(text):
    assert replaced(text) == text


@pytest.mark.parametrize(
    "number",
    ["110101200102290018", "11010519491231002x"],
)
def test_an_id_card_needs_a_real_date_and_the_right_checksum(number):
    """The first is a 29 February of a common year; the second is the example of GB 11643."""
    assert personal_data.is_id_card(number) == number.endswith("x")


@hypothesis.given(st.integers(0, 10**17 - 1), st.integers(0, 16), st.integers(1, 9))
def test_one_wrong_digit_of_a_card_fails_luhn(body, place, change):
    digits = f"{body:017d}"
    check = next(d for d in "0123456789" if personal_data.luhn(digits + d))
    wrong = digits[:place] + str((int(digits[place]) + change) % 10) + digits[place + 1 :]
    assert not personal_data.luhn(wrong + check)


PIECES = st.lists(
    st.sampled_from(
        ["13812345678", "11010519491231002X", "微信", "abc_12345", "扣扣", "834561207", "a@b.com",
         "，", " ", "：", "我叫", "李晓明", "https://weibo.com/u/1", "[PHONE]", "一三八", "V", "加"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@hypothesis.given(st.one_of(st.text(), PIECES))
def test_placeholders_survive_a_second_pass(text):
    for _ in range(6):
        text = replaced(text)
    once = replaced(text)
    assert once == text
    for placeholder in personal_data.PLACEHOLDERS.values():
        marked = f"前{placeholder}后"
        assert replaced(marked) == marked


@hypothesis.given(st.text())
def test_views_have_the_length_of_the_text(text):
    assert len(contacts.folded(text)) == len(contacts.folded_numbers(text)) == len(text)
