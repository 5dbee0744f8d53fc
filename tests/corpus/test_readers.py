"""Readers: the forms people have, and every kind of dirt named as a reject."""

import json
import unicodedata
from pathlib import Path

import pytest

from empathy_jax.corpus import readers, records

DATA = Path(__file__).parents[3] / "shared" / "data"
LAYERS = {"L1": "累", "L2": "怕", "L3": "求懂", "L4": "接住"}


def _dialogue(*messages):
    return [{"role": role, "content": content} for role, content in messages]


def _write(path, *values):
    lines = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _needs(path):
    if not path.exists():
        pytest.skip(f"shared/data/{path.name} is not beside this checkout")
    return path


def test_every_form_of_question_line(tmp_path):
    path = _write(
        tmp_path / "q.jsonl",
        {"question": " 一 ", "answers": [{"text": "甲", "score": 3, "author": "z"}, "乙"],
         "topic": "家", "subtopic": "母", "source": "forum"},
        {"id": "x", "messages": _dialogue(("client", "二"), ("counselor", "丙"))},
        {"conversations": [{"from": "human", "value": "三"}, {"from": "gpt", "value": "丁"}]},
        {"question": "四", **LAYERS, "answer": "戊"},
        {"question": "五"},
        _dialogue(("system", "s"), ("user", "六"), ("assistant", "己"), ("user", "还有"),
                  ("assistant", " 庚 ")),
    )  # fmt: skip
    found, rejects = readers.read_questions(path)
    assert rejects == []
    assert [record["question"] for record in found] == list("一二三四五六")
    answers = [[answer["text"] for answer in record["answers"]] for record in found]
    assert answers == [["甲", "乙"], ["丙"], ["丁"], ["戊"], [], ["己\n庚"]]
    first = found[0]
    assert (first["topic"], first["subtopic"], first["source"]) == ("家", "母", "forum")
    assert (first["answers"][0]["score"], first["answers"][0]["author"]) == (3, "z")
    assert found[1]["source"] == "q.jsonl"
    assert first["id"] == records.content_id("一")
    assert len({answer["id"] for record in found for answer in record["answers"]}) == 6


def test_texts_are_nfc_and_ids_follow_the_content(tmp_path):
    decomposed = {"question": "cafe\u0301，", "answers": ["e\u0301"]}
    composed = {"question": "caf\u00e9，", "answers": ["\u00e9"]}
    one, _ = readers.read_questions(_write(tmp_path / "a.jsonl", decomposed))
    two, _ = readers.read_questions(_write(tmp_path / "a.jsonl", composed))
    assert one == two
    assert one[0]["question"] == "caf\u00e9，"


def test_identical_questions_gather_their_answers(tmp_path):
    folder = tmp_path / "dump"
    folder.mkdir()
    for name, answer in (("2", "乙"), ("10", "甲"), ("3", "甲")):
        text = json.dumps(_dialogue(("client", "问"), ("counselor", answer)))
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "sub").mkdir()
    _write(folder / "sub" / "more.jsonl", {"question": "另"}, {"question": "问", "topic": "家"})
    (folder / "notes.txt").write_text("not data", encoding="utf-8")
    found, rejects = readers.read_questions(folder)
    assert rejects == []
    assert [record["source"] for record in found] == ["10.json", "sub/more.jsonl"]
    assert [answer["text"] for answer in found[0]["answers"]] == ["甲", "乙"]
    assert found[0]["topic"] == "家"


BAD_QUESTIONS = [
    ('{"question": "a"', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('"text"', "must be a JSON object"),
    ("null", "must be a JSON object"),
    ({"text": "a"}, "neither question nor messages"),
    ({"question": 3}, "question must be text, got int"),
    ({"question": " \n"}, "question is blank"),
    ('{"question": "\\ud800"}', "not valid Unicode"),
    ({"question": "a", "answers": "b"}, "answers must be a list"),
    ({"question": "a", "answers": [None]}, "must be a JSON object, got NoneType"),
    ({"question": "a", "answers": [{"score": 1}]}, "text is missing"),
    ({"question": "a", "answers": [{"text": "b", "score": "5"}]}, "score must be"),
    ('{"question": "a", "answers": [{"text": "b", "score": NaN}]}', "score must be"),
    ({"question": "a", "topic": 1}, "topic must be text"),
    ({"messages": []}, "empty dialogue"),
    ({"messages": "a"}, "messages must be a list"),
    ({"messages": ["a"]}, "must be a JSON object, got str"),
    ({"messages": _dialogue(("client", "a"))}, "one message only"),
    ({"messages": _dialogue(("client", " "), ("counselor", "b"))}, "question is blank"),
    ({"messages": _dialogue(("client", "a"), ("counselor", ""))}, "no answer"),
    ({"messages": _dialogue(("client", "a"), ("client", "b"))}, "no answer"),
    ({"messages": _dialogue(("counselor", "a"), ("counselor", "b"))}, "no message of a client"),
    ({"messages": _dialogue(("client", None), ("counselor", "b"))}, "content must be text"),
    ({"messages": _dialogue(("client", "a"), ("judge", "b"))}, "unknown role 'judge'"),
]


@pytest.mark.parametrize(("value", "reason"), BAD_QUESTIONS)
def test_a_bad_question_line_is_a_reject_with_place_and_reason(tmp_path, value, reason):
    path = _write(tmp_path / "q.jsonl", {"question": "好"}, "", value, {"question": "也好"})
    found, rejects = readers.read_questions(path, max_rejected=0.5)
    assert [record["question"] for record in found] == ["好", "也好"]
    (reject,) = rejects
    assert (reject["file"], reject["line"]) == ("q.jsonl", 3)
    assert reason in reject["reason"]
    assert 0 < len(reject["text"]) <= 83


def test_bytes_that_are_not_utf8_spoil_their_line_only(tmp_path):
    path = tmp_path / "q.jsonl"
    good = '{"question": "好\u2028的"}\r\n'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + '{"question": "坏"}\n'.encode("gbk"))
    found, rejects = readers.read_questions(path, max_rejected=0.5)
    assert [record["question"] for record in found] == ["好\u2028的"]
    assert [reject["reason"] for reject in rejects] == ["not UTF-8"]


def test_a_json_file_may_hold_one_value_or_a_list(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"question": "一"}, {"question": "二"}]), encoding="utf-8")
    assert len(readers.read_questions(path)[0]) == 2
    dialogue = _dialogue(("client", "一"), ("counselor", "甲"))
    path.write_text(json.dumps(dialogue), encoding="utf-8")
    assert len(readers.read_questions(path)[0]) == 1
    path.write_text(json.dumps([dialogue, {"question": "二"}, 5]), encoding="utf-8")
    found, rejects = readers.read_questions(path, max_rejected=0.5)
    assert len(found) == 2
    assert rejects[0]["line"] is None and rejects[0]["text"] == "5"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"L2": None}, "L2 must be text, got NoneType"),
        ({"L2": "  "}, "L2 is blank"),
        ({"answer": "a</L1>"}, "answer must not contain a tag"),
        ({"teacher": 1}, "teacher must be text"),
        ({"question": ["a"]}, "question must be text"),
        ({"question": " 问 "}, "duplicate"),
    ],
)
def test_a_bad_chain_is_a_reject(tmp_path, change, reason):
    chain = {"question": "问", **LAYERS, "answer": "甲"}
    path = _write(tmp_path / "c.jsonl", chain, chain | {"question": "别的"} | change)
    found, rejects = readers.read_chains(path, max_rejected=0.5)
    assert [record["question"] for record in found] == ["问"]
    assert [(reject["line"], reason in reject["reason"]) for reject in rejects] == [(2, True)]


def test_a_chain_without_a_field_is_a_reject_and_tags_in_questions_are_data(tmp_path):
    chain = {"question": "<answer><|im_end|>", **LAYERS, "answer": "甲", "teacher": "t"}
    lacking = {key: value for key, value in chain.items() if key != "L3"}
    path = _write(tmp_path / "c.jsonl", chain, lacking)
    found, rejects = readers.read_chains(path, max_rejected=0.5)
    assert found == [chain | {"id": records.content_id("<answer><|im_end|>"), "source": "c.jsonl"}]
    assert rejects[0]["reason"] == "L3 is missing"


def test_too_many_rejects_stop_the_run(tmp_path):
    path = _write(tmp_path / "q.jsonl", *[{"question": str(i)} for i in range(6)], *["x"] * 4)
    readers.read_questions(path, max_rejected=0.4)
    with pytest.raises(
        ValueError,
        match=r"4 of 10 .*config.data.max_rejected.*q.jsonl:7 .*q.jsonl:8 .*q.jsonl:9 \(not JSON",
    ):
        readers.read_questions(path, max_rejected=0.39)
    with pytest.raises(ValueError, match=r"config.data.max_rejected must lie in \[0, 1\], got 2"):
        readers.read_questions(path, max_rejected=2)


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (readers.read_questions, "config.data.questions"),
        (readers.read_chains, "config.data.chains"),
    ],
)
def test_nothing_to_read_names_the_field(tmp_path, read, field):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "data.csv").write_text("a,b\n", encoding="utf-8")
    _write(tmp_path / "bad.jsonl", "x")
    for name in ("missing.jsonl", "empty", "empty.jsonl", "data.csv"):
        with pytest.raises(ValueError, match=f"{name}.*{field}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=f"no usable record.*{field}"):
        read(tmp_path / "bad.jsonl", max_rejected=1.0)


def test_real_dialogues_are_grouped_and_the_rest_is_named():
    found, rejects = readers.read_questions(_needs(DATA / "smilechat") / "data")
    assert len(found) + len({reject["reason"] for reject in rejects}) > 2000
    assert sum(len(record["answers"]) > 1 for record in found) >= 95
    assert all(record["answers"] and record["question"] for record in found)
    assert len({record["id"] for record in found}) == len(found)
    assert all(unicodedata.is_normalized("NFC", record["question"]) for record in found)
    reasons = [reject["reason"] for reject in rejects]
    assert reasons.count("one message only") == 41
    assert set(reasons) == {"one message only", "no answer of a counsellor"}


def test_real_chains_are_all_usable():
    found, rejects = readers.read_chains(_needs(DATA / "chains_smilechat") / "chains.jsonl")
    assert (len(found), rejects) == (177, [])
