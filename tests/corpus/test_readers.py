"""Readers: the forms people have, and every kind of dirt named as a reject."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from empathy_jax.corpus import readers, records
from empathy_jax.corpus.reading import formats

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
        pytest.skip("the real dumps are absent")
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
    (folder / "notes.md").write_text("not data", encoding="utf-8")
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
    ({"messages": []}, "empty dialogue"),
    ({"messages": "a"}, "messages must be a list"),
    ({"messages": ["a"]}, "must be a JSON object, got str"),
    ({"messages": _dialogue(("client", "a"))}, "one message only"),
    ({"messages": _dialogue(("client", " "), ("counselor", "b"))}, "question is blank"),
    ({"messages": _dialogue(("client", "a"), ("counselor", ""))}, "no answer"),
    ({"messages": _dialogue(("client", "a"), ("client", "b"))}, "no answer"),
    ({"messages": _dialogue(("counselor", "a"), ("counselor", "b"))}, "no message of a client"),
    ({"messages": _dialogue(("client", None), ("counselor", "b"))}, "content must be text"),
    ({"messages": _dialogue(("client", "a"), ("judge", "b"))}, "unknown role: 'judge'"),
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


def test_several_chains_of_a_question_are_several_records(tmp_path):
    chain = {"question": "问", **LAYERS, "answer": "甲"}
    others = [chain | {"answer": "乙"}, chain | {"L2": "丙"}, chain | {"question": "别的"}]
    again = [chain | {"question": " 问 ", "teacher": "t"}, others[0]]
    path = _write(tmp_path / "c.jsonl", chain, *others, *again)
    found, rejects = readers.read_chains(path, max_rejected=0.0)
    assert rejects == []
    assert [(r["question"], r["L2"], r["answer"]) for r in found] == [
        ("问", "怕", "甲"), ("问", "怕", "乙"), ("问", "丙", "甲"), ("别的", "怕", "甲"),
    ]  # fmt: skip
    ids = [record["id"] for record in found]
    assert ids[0] == records.content_id("问") and ids[3] == records.content_id("别的")
    assert len(set(ids)) == 4
    more = _write(tmp_path / "c.jsonl", chain, chain | {"L4": "丁"}, *others)
    later = [record["id"] for record in readers.read_chains(more)[0]]
    assert [later[0], *later[2:]] == ids


def test_copies_of_a_chain_count_as_read(tmp_path):
    chain = {"question": "问", **LAYERS, "answer": "甲"}
    path = _write(tmp_path / "c.jsonl", *[chain] * 9, "x")
    found, rejects = readers.read_chains(path, max_rejected=0.1)
    assert len(found) == 1 and len(rejects) == 1


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
    (tmp_path / "data.doc").write_text("a,b\n", encoding="utf-8")
    _write(tmp_path / "bad.jsonl", "x")
    for name in ("missing.jsonl", "empty", "empty.jsonl", "data.doc"):
        with pytest.raises(ValueError, match=f"{name}.*{field}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=f"no usable record.*{field}"):
        read(tmp_path / "bad.jsonl", max_rejected=1.0)


FORMS = [
    ({"prompt": "问", "completion": "答"}, "问", ["答"]),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "问"}],
      "completion": [{"role": "assistant", "content": "答"}]}, "问", ["答"]),
    ({"prompt": [{"role": "user", "content": "问"}], "completion": "答"}, "问", ["答"]),
    ({"Context": "问", "Response": "答"}, "问", ["答"]),
    ({"context": "[supporter]在[seeker]问[supporter]嗯[seeker]对", "response": "[supporter]答"},
     "问", ["在\n嗯\n答"]),
    ({"context": "[求助]问", "response": "答"}, "[求助]问", ["答"]),
    ({"instruction": "任务", "input": "问", "output": "答"}, "任务\n问", ["答"]),
    ({"instruction": "问", "input": "", "output": "答"}, "问", ["答"]),
    ({"title": "标题", "text": "正文", "answer": "答"}, "标题\n正文", ["答"]),
    ({"title": "正文太…", "content": "正文太长了", "answer": "答"}, "正文太长了", ["答"]),
    ({"questionTitle": "标题", "questionText": " ", "answerText": "答"}, "标题", ["答"]),
    ({"question": "问", "description": "详情", "text": "别的"}, "问\n详情", []),
    ({"标题": "标题", "问题内容": "正文", "回答内容": "答"}, "标题\n正文", ["答"]),
    ({"title": "标题", "selftext": "正文", "comments": [{"body": "一"}, {"body": "二"}]},
     "标题\n正文", ["一", "二"]),
    ({"question": "问", "answers": [{"answer_text": "一"}, "一"]}, "问", ["一", "一"]),
    ({"question": "问", "answer": None, "messages": None}, "问", []),
    ({"dialog": [{"speaker": "seeker", "content": "问"}, {"speaker": "supporter", "text": "答"}]},
     "问", ["答"]),
    ({"conversation": [{"system": "s", "input": "问", "output": "答"}, {"input": "", "output": "呢"}]},
     "问", ["答\n呢"]),
    ([{"role": "来访者", "content": "问"}, {"role": "咨询师", "content": "答"}], "问", ["答"]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "question", "answers"), FORMS)
def test_every_form_has_its_question_and_answers(tmp_path, value, question, answers):
    (chunk,) = formats.chunks(_write(tmp_path / "q.jsonl", value), "f")
    (record,), rejects, encodings, *_ = readers.parse(chunk)
    assert (rejects, encodings) == ([], {})
    assert record["question"] == question
    assert [answer["text"] for answer in record["answers"]] == answers


def test_names_of_topics_scores_and_authors(tmp_path):
    row = {"question": "问", "answer": "答", "subject_name": "家庭", "二级主题": "母亲",
           "upvotes": "7", "therapistInfo": "A"}  # fmt: skip
    tagged = {"question": "二", "tags": ["a", "b"], "answers": [{"text": "x", "like_count": 4}]}
    (chunk,) = formats.chunks(_write(tmp_path / "q.jsonl", row, tagged), "f")
    first, second = readers.parse(chunk).questions
    assert (first["topic"], first["subtopic"]) == ("家庭", "母亲")
    assert (first["answers"][0]["score"], first["answers"][0]["author"]) == (7, "A")
    assert second["topic"] == "a, b"
    assert second["answers"][0]["score"] == 4


METADATA = [
    ({"category": 3}, {"topic": "3"}, None),
    ({"tags": ["a", 3, "b"]}, {"topic": "a, 3, b"}, None),
    ({"tags": [{"name": "a"}]}, {}, "topic_left_out"),
    ({"topic": True}, {}, "topic_left_out"),
    ({"topic": "\ud800"}, {}, "topic_left_out"),
    ({"topic": " ", "subtopic": None}, {}, None),
    ({"subtopic": 1.5}, {}, "subtopic_left_out"),
    ({"source": 7}, {"source": "7"}, None),
    ({"source": {"a": 1}}, {}, "source_left_out"),
    ({"author": 12}, {"author": "12"}, None),
    ({"author": {"id": 12}}, {}, "author_left_out"),
    ({"score": "5"}, {"score": 5}, None),
    ({"score": "1,024"}, {"score": 1024}, None),
    ({"score": "nan"}, {}, None),
    ({"score": "1.2k"}, {}, "score_left_out"),
    ({"score": "1e999"}, {}, "score_left_out"),
    ({"score": float("nan")}, {}, "score_left_out"),
    ({"score": 10**400}, {}, "score_left_out"),
    ({"score": True}, {}, "score_left_out"),
    ({"score": [5]}, {}, "score_left_out"),
]


@pytest.mark.parametrize("form", ["row", "nested", "dialogue"])
@pytest.mark.parametrize(("given", "kept", "note"), METADATA)
def test_bad_metadata_costs_itself_only(tmp_path, form, given, kept, note):
    own = given if given.keys() & {"score", "author"} else {}
    value = {
        "row": {"question": "问", "answer": "答", **given},
        "nested": {"question": "问", "answers": [{"text": "答", **own}], **({} if own else given)},
        "dialogue": {"messages": _dialogue(("client", "问"), ("counselor", "答")), **given},
    }[form]
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
    (chunk,) = formats.chunks(path, "f")
    parsed = readers.parse(chunk)
    assert parsed.rejects == []
    (record,) = parsed.questions
    (answer,) = record["answers"]
    assert (record["question"], answer["text"]) == ("问", "答")
    found = {**record, **answer}
    names = ("topic", "subtopic", "source", "author", "score")
    expected = {"source": "q.jsonl", **kept}
    assert {name: found[name] for name in names if name in found} == expected
    assert +parsed.notes == ({note: 1} if note else {})


@pytest.mark.parametrize("score", [10**400, -(10**400), float("nan"), float("-inf"), "5", True])
def test_a_record_takes_no_score_that_a_float_cannot_hold(score):
    with pytest.raises(records.BadRecord, match="score must be a finite number: "):
        records.question_record("问", [{"text": "答", "score": score}], "s")


@pytest.mark.parametrize("name", ["replies", "comments", "responses"])
def test_a_number_of_answers_does_not_hide_the_answer(tmp_path, name):
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer,{name}\n问,答,5\n", encoding="utf-8")
    found, rejects = readers.read_questions(path)
    assert ([answer["text"] for answer in found[0]["answers"]], rejects) == (["答"], [])


def test_pairs_count_equal_answers_and_each_bad_one(tmp_path):
    value = {
        "question": "问",
        "answers": ["一", " ", "一", {"text": 3}, {"texts": "二"}],
    }
    (chunk,) = formats.chunks(_write(tmp_path / "q.jsonl", value, {"question": "只问"}), "f")
    parsed = readers.parse(chunk)
    assert [len(record["answers"]) for record in parsed.questions] == [2, 0]
    assert [reject["reason"] for reject in parsed.rejects] == [
        "answer is blank", "answer must be text, got int", "text is missing",
    ]  # fmt: skip
    found, _ = readers.read_questions(tmp_path / "q.jsonl", max_rejected=0.5)
    assert [len(record["answers"]) for record in found] == [1, 0]
    with pytest.raises(ValueError, match="3 of 6 records"):
        readers.read_questions(tmp_path / "q.jsonl", max_rejected=0.49)


def test_odd_dialogues_are_noted(tmp_path):
    twice = _dialogue(("client", "a"), ("client", "b"), ("counselor", "c"))
    blank = _dialogue(("client", "d"), ("counselor", " "), ("client", "e"), ("counselor", "f"))
    plain = _dialogue(("client", "g"), ("system", ""), ("counselor", "h"))
    (chunk,) = formats.chunks(_write(tmp_path / "q.jsonl", twice, blank, plain[::2]), "f")
    assert readers.parse(chunk).notes == {"same_role_twice": 1, "blank_message": 1}


TALK = "来访者：我最近总是失眠。\n真的很累\n咨询师1：愿意多说说吗？"
TEXTS = [
    (TALK, [("我最近总是失眠。\n真的很累", "愿意多说说吗？")]),
    ("Client: a\n\nTherapist: b\n\nClient: c\n\nTherapist: d\n", [("a", "b\nd")]),
    ("Client: a\nTherapist: b\n\nmore\n\nClient: c\nTherapist: d", [("a", "b\n\nmore"), ("c", "d")]),
    ("\n\n问：a\r\n\r\n答: b\r\n---\r\n【求助者】c\r\n[SUPPORTER] d\r\n=====\r\n",
     [("a", "b"), ("c", "d")]),
    ("题主：他说：走吧\n答主：原因：累\n建议：睡", [("他说：走吧", "原因：累\n建议：睡")]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_text_with_speaker_labels(tmp_path, text, expected):
    path = tmp_path / "talk.txt"
    path.write_bytes(text.encode("utf-8"))
    found, rejects = readers.read_questions(path)
    assert rejects == []
    assert [(r["question"], r["answers"][0]["text"]) for r in found] == expected


def test_a_bad_dialogue_in_a_text_names_its_line(tmp_path):
    path = tmp_path / "talk.txt"
    path.write_text(
        f"{TALK}\n----\n来访者：a\n旁白：b\n咨询师：c\n----\n随便写写\n", encoding="utf-8"
    )
    found, rejects = readers.read_questions(path, max_rejected=0.9)
    assert len(found) == 1
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (5, "unknown role: '旁白：'"), (9, "no known speaker label: '随便写写'"),
    ]  # fmt: skip


def _parse_all(path):
    parsed = [readers.parse(chunk) for chunk in formats.chunks(path, "f")]
    questions = [record for part in parsed for record in part.questions]
    return questions, [reject for part in parsed for reject in part.rejects], parsed


def test_smilechat_is_what_its_source_says():
    questions, rejects, parsed = _parse_all(_needs(DATA / "smilechat") / "data")
    assert len(questions) + len(rejects) == 2534  # files
    # 2,099 distinct first messages: 47 stand in rejects alone.
    assert len({record["id"] for record in questions}) == 2099 - 47
    reasons = Counter(reject["reason"] for reject in rejects)
    # The 7 are 4 of the "two_message" files, 2 "same_role_twice", 1 "speaker_label_inside_text".
    assert reasons == {"one message only": 41, "no answer of a counsellor": 7}
    # Of 25, 2 are rejects above; 13 more are listed under other reasons.
    assert sum((part.notes for part in parsed), Counter()) == {
        "same_role_twice": 36, "blank_message": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kept", "rejected", "distinct"),
    [
        ("counsel_chat/20200325_counsel_chat.csv", 2129, {}, 824),
        ("counsel_chat/counselchat-data.csv", 1480, {"question is blank": 2}, 779),
        ("cpsyexam/cpsyexam_qa.zip", 3404, {"answer is blank": 39, "question is blank": 1}, None),
        ("dialogue_safety/test.json", 800, {}, None),
    ],
)
def test_other_real_dumps_are_read_whole(name, kept, rejected, distinct):
    folder, _, file = name.partition("/")
    questions, rejects, _ = _parse_all(_needs(DATA / folder) / file)
    assert len(questions) == kept
    assert Counter(reject["reason"] for reject in rejects) == rejected
    assert all(len(record["answers"]) == 1 for record in questions)
    if distinct is not None:
        assert len({record["id"] for record in questions}) == distinct
        assert all({"score", "author"} <= r["answers"][0].keys() for r in questions)
    assert not any(r["question"].startswith("[seeker]") for r in questions)


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
