"""Cleaning: each rule by its name, the switches, idempotence, linear time, real dumps."""

import csv
import dataclasses
import json
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from empathy_jax.corpus import cleaning
from empathy_jax.corpus.cleaning import Rules, clean_text, reject_reason

SHARED = Path(__file__).parents[3] / "shared" / "data"
ANSWER = "听到你这样说，我能感觉到这段日子你一个人撑了很久，既想被理解，又怕麻烦别人。" * 4


@pytest.mark.parametrize(
    ("rule", "part", "text", "expected"),
    [
        ("mojibake", "answer", "ä½ å¥½ï¼Œæˆ‘å¾ˆéš¾è¿‡".replace("½ ", "½\xa0"), "你好，我很难过"),
        ("mojibake", "answer", "我很难过，睡不着".encode().decode("gb18030"), "我很难过，睡不着"),
        ("markup", "answer", "<p>一</p><p>二&nbsp;三<br>四</p>", "一\n\n二 三\n四"),
        ("markup", "answer", '前<img src="data:image/png;base64,iVBOR/+=" alt="x">后', "前后"),
        (
            "markup",
            "answer",
            "<!--[if gte mso 9]><xml><w:View>0</w:View></xml><![endif]-->好<o:p></o:p>",
            "好",
        ),
        ("markup", "answer", "&amp;lt;3 &amp;amp; 你", "<3 & 你"),
        ("invisible", "answer", "为什\u200b么\ufeff\ue001：\ufe0f好", "为什么：好"),
        ("whitespace", "answer", "一\r\n\r\n\r\n\r\n二\u3000\u3000三 \n四", "一\n\n二 三\n四"),
        ("speaker_label", "question", "求助者：我很累。支持者：抱抱你。", "我很累。"),
        ("speaker_label", "answer", "抱抱你。求助者：谢谢。\n不客气。", "抱抱你。\n不客气。"),
        ("speaker_label", "answer", "慢慢来。（求助者：好的。）再见。", "慢慢来。再见。"),
        ("speaker_label", "question", "好累。求助者：支持者：抱抱。", "好累。"),
        ("platform_mask", "answer", "很难受。******新的一段", "很难受。\n新的一段"),
        ("platform_mask", "answer", "加油[捂脸哭]！[图片]", "加油！"),
        ("platform_mask", "answer", "他骂我***，别管TA人", "他骂我XX，别管他人"),
        ("platform_mask", "answer", "这是**重点**。", "这是重点。"),
        ("repeated_characters", "answer", "啊啊啊啊啊啊啊啊！！！！！！！！", "啊啊啊！！！"),
        ("solicitation", "answer", ANSWER + "有困惑可以私信我。", ANSWER),
        ("boilerplate", "answer", "慢慢来。世界和我爱着你！", "慢慢来。"),
        ("boilerplate", "answer", "Rest well. Robin J. Smith, DBH, LPC, NCC", "Rest well."),
        ("phone", "question", "电话13812345678", "电话[PHONE]"),
    ],
)
def test_each_repair(rule, part, text, expected):
    cleaned, counts = clean_text(text, part, Rules())
    assert counts.get(rule, 0) >= 1
    assert cleaned == expected
    off = dataclasses.replace(Rules(), **{rule: False})
    assert rule not in clean_text(text, part, off)[1]


def test_script_is_kept_or_converted():
    text = "我想要媽媽早點回來"
    assert clean_text(text, "question", Rules())[0] == text
    simplified = clean_text(text, "question", Rules(script="simplified"))
    assert simplified == ("我想要妈妈早点回来", {"script": 1})
    assert clean_text("头发", "question", Rules(script="traditional"))[0] == "頭髮"


@pytest.mark.parametrize(
    "text",
    [
        "“你好”，他说：（真的）……１２３％～【爱】！？；",
        "我在<<标题>>里写 a < b && c，心情 <3，还有 <answer> 和 <|im_start|>",
        "二〇〇八年，口口声声，10°～20°，café，能力*热情*思维",
        "👨‍👩‍👧 ❤️ 1️⃣ (●°u°●) (*^ω^*) ……",
        "用户体验：很好。他说：别管我。医生：这个职业很累。",
        "涓涓细流，浣熊，联通",
    ],
)
def test_what_is_meant_stays(text):
    assert clean_text(text, "answer", Rules()) == (text, {})


@pytest.mark.parametrize(
    ("reason", "part", "text", "question"),
    [
        ("broken_encoding", "answer", ANSWER + "锟斤拷" * 9, None),
        ("advertising", "answer", "加我微信：xinli_liu88，免费咨询。", None),
        ("too_short", "answer", "抱抱你。", None),
        ("too_short", "question", "累", None),
        ("too_long", "answer", "".join(map(chr, range(0x4E00, 0x4E00 + 10_001))), None),
        ("symbol_soup", "answer", "？！～*" * 30 + "好", None),
        ("language", "answer", "Nobody here writes in the language that was asked for. " * 3, None),
        ("repetition", "answer", "你要加油，相信自己一定可以的。" * 12, None),
        (
            "copied_question",
            "answer",
            "好的。" + "".join(map(chr, range(0x5000, 0x5100))),
            "".join(map(chr, range(0x5000, 0x5100))),
        ),
    ],
)
def test_each_reason_to_reject(reason, part, text, question):
    assert reject_reason(text, part, Rules(), question) == reason
    off = dataclasses.replace(Rules(), **{reason: "any" if reason == "language" else False})
    assert reject_reason(text, part, off, question) != reason


def test_good_texts_pass():
    good = "".join(chr(0x4E00 + 7 * i) for i in range(150))
    assert reject_reason(good, "answer", Rules(), "我为什么总是睡不着？") is None
    mixed = "我很累，" * 9 + "I have been so busy that I could not sleep at all that night, again"
    assert reject_reason(mixed, "question", Rules(repetition=False)) is None
    assert reject_reason("救我！！！救我！！！", "question", Rules()) is None


def test_every_rule_has_its_switch_and_its_description():
    fields = {field.name for field in dataclasses.fields(Rules)}
    names = [name for name, _, _ in cleaning.RULES]
    assert len(set(names)) == len(names)
    assert fields - set(names) == {
        f"{end}_{part}_characters" for end in ("min", "max") for part in ("question", "answer")
    }
    assert all(description for _, _, description in cleaning.RULES)


@pytest.mark.parametrize(
    "change",
    [
        {"script": "latin"},
        {"language": "fr"},
        {"min_answer_characters": 20_000},
        {"min_question_characters": -1},
    ],
)
def test_bad_rules_name_the_field_to_change(change):
    with pytest.raises(ValueError, match=rf"corpus\.clean\.{next(iter(change))}"):
        Rules(**change)


PIECES = [
    "<p>",
    "</p>",
    "<br/>",
    "&nbsp;",
    "&amp;",
    "amp;",
    "lt;",
    "&lt;",
    "<!--",
    "-->",
    "<style>",
    "</style>",
    "*",
    "**",
    "@",
    "：",
    "求助者：",
    "支持者",
    "（",
    "）",
    "。",
    "\n",
    " ",
    "\u3000",
    "\u200b",
    "\ufe0f",
    "TA",
    "其",
    "人",
    "世界和我爱着你",
    "私信我",
    "有困惑可以",
    "加我微信",
    "abc_123",
    "13812345678",
    "啊啊啊啊",
    "！！！！",
    "[图片]",
    "[PHONE]",
    "我叫李晓明",
    "\r",
    "a\u0301",
    "â€",
    "锛",
    "data:a/b;base64,",
    "Dr. Jane Doe, LPC",
    "以上仅供参考",
    "想睡觉，",
    "[b]",
    "q：",
    "一三八",
]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)),
    st.sampled_from(["question", "answer"]),
)
def test_cleaning_is_idempotent_and_never_raises(text, part):
    rules = Rules()
    cleaned, _ = clean_text(text, part, rules)
    assert clean_text(cleaned, part, rules) == (cleaned, {})
    for other in (None, "", text, cleaned):
        reject_reason(cleaned, part, rules, other)
        reject_reason(text, part, rules, other)


# Rules look for a word first and leave at once without it; this tail makes all of them work.
OPENS_EVERY_GATE = (
    "x<&;[【*@TA锛â€ 私信 13812345678 a@b.com 微信 http://a 我叫 老师 姓名 name is, 以上 世界和我 "
    "求助者："
)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1",
        "1天",
        "戳www.",
        "a,",
        "Aa",
        "A",
        "A-",
        "我叫",
        "q ",
        "1,",
        "0",
        "-",
        "1 ",
        "a@",
        "a.",
        " ",
        " \n",
        "<",
        "<p ",
        "<!--",
        "<style>",
        "&amp;",
        "&",
        "&#112;",
        "[",
        "*",
        "**a",
        "http://",
        "www.",
        "微信",
        "加我微信，",
        "q",
        "求助者：。",
        "（求助者：",
        "我叫李",
        "Aa Bb, ",
        "。",
        "世界和我",
        "以上，",
        "6222 ",
        "一三八",
        "\ufe0f",
        "â€",
        "锛",
        "欢迎关注",
        "可以",
        "推荐",
        "call me ",
        "免费课程，",
        "[url=",
        "群",
        "他加我微信abc_12345，",
    ],
)
def test_time_is_linear_in_adversarial_texts(piece):
    text = piece * (100_000 // len(piece)) + OPENS_EVERY_GATE
    start = time.process_time()
    cleaned, _ = clean_text(text, "answer", Rules())
    reject_reason(cleaned, "answer", Rules(), text)
    assert time.process_time() - start < 3  # seconds; quadratic rules need minutes


def test_real_html_leaves_no_markup():
    path = SHARED / "counsel_chat" / "counselchat-data.csv"
    if not path.exists():
        pytest.skip(f"real data not at {path}")
    csv.field_size_limit(10**7)
    rules = Rules(language="en")
    with path.open(encoding="utf-8-sig", newline="") as file:
        answers = [row["answerText"] for row in csv.DictReader(file)]
    dirty = [text for text in answers if "<" in text]
    assert len(dirty) > 1400
    largest = max(dirty, key=len)
    for text in [*dirty[:150], largest, *(text for text in dirty if "mso" in text)]:
        cleaned, counts = clean_text(text, "answer", rules)
        assert counts["markup"]
        for left in ("<p", "</", "<span", "&nbsp;", "base64", "mso-", "\xa0"):
            assert left not in cleaned
    assert len(largest) > 200_000 > 100 * 200 > len(clean_text(largest, "answer", rules)[0])


def test_real_speaker_labels_are_found():
    folder = SHARED / "smilechat"
    if not folder.exists():
        pytest.skip(f"real data not at {folder}")
    lines = (folder / "selection.tsv").read_text("utf-8").splitlines()
    names = [line.split("\t")[0] for line in lines if "speaker_label_inside_text" in line]
    assert len(names) == 25
    for name in names:
        turns = json.loads((folder / name).read_text("utf-8"))
        found = 0
        for turn in turns:
            part = "question" if turn["role"] == "client" else "answer"
            found += clean_text(turn["content"], part, Rules())[1].get("speaker_label", 0)
        assert found, name
