"""The whole build: nothing is lost, sides are stable, the same bytes come out again."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import psutil
import pytest
from hypothesis import strategies as st

from benchmarks import corpus_build
from empathy_jax import files
from empathy_jax.corpus import build, cleaning, collect, duplicates, splits
from empathy_jax.corpus.build import Settings, Source
from empathy_jax.corpus.reading import formats
from tests.conftest import ROOT
from tests.corpus import dumps

SMILECHAT = Path(__file__).parents[3] / "shared" / "data" / "smilechat"

ALONE = Settings(workers=1, validation_fraction=0.25, test_fraction=0.25)

# Letters of which every third is a near copy of the one before it.
LETTERS = [
    dumps.near_copy(dumps.letter(i - 1), i) if i % 3 == 2 else dumps.letter(i) for i in range(18)
]
ANSWERS = [dumps.answer(i) for i in range(8)]
ANSWERS += [
    dumps.near_copy(ANSWERS[0], 3),
    "太短了",
    "",
    "加我微信abc12345，限时优惠，扫码报名课程！" * 6,
]

values = st.one_of(
    st.builds(dumps.dialogue, st.sampled_from(LETTERS), st.sampled_from(ANSWERS)),
    st.builds(
        lambda question, answers: {"question": question, "answers": answers},
        st.sampled_from([*LETTERS, "短", ""]),
        st.lists(st.sampled_from(ANSWERS), max_size=4),
    ),
    st.sampled_from(['{"question": ', "[]", "7", '{"text": "无"}']),
)


# Indices of LETTERS, each of which gets an answer of its own.
letters = st.lists(st.sampled_from(range(len(LETTERS))), min_size=1, max_size=18)


def _of_letters(folder, chosen):
    return _assemble(folder, [dumps.dialogue(LETTERS[i], dumps.answer(100 + i)) for i in chosen])


def _assemble(folder, values, settings=ALONE):
    return build.assemble([Source(dumps.write(folder / "dump.jsonl", values))], settings)


def _sides(corpus):
    return {r["question"]: side for side, part in corpus.by_side.items() for r in part}


def _pairs(value):
    """Pairs in a value as it was written; without a question it cannot be read at all."""
    if isinstance(value, str) or "messages" in value or not value["question"]:
        return 1
    return max(1, len(value["answers"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(values=st.lists(values, min_size=1, max_size=25), answered=st.booleans())
def test_read_is_kept_and_rejected(folder, values, answered):
    settings = Settings(workers=1, require_answer=answered)
    values = [*values, dumps.dialogue(dumps.letter(99), dumps.answer(99))]
    corpus = _assemble(folder, values, settings)
    pairs = corpus.stats["pairs"]
    assert pairs["read"] == sum(map(_pairs, values)) == pairs["kept"] + pairs["rejected"]
    assert pairs["kept"] == sum(len(r["answers"]) or 1 for r in corpus.records)
    assert pairs["rejected"] == len(corpus.rejected)
    by_rule = corpus.stats["rejected"].values()
    assert sum(sum(counts.values()) for counts in by_rule) == len(corpus.rejected)
    assert not answered or all(record["answers"] for record in corpus.records)
    questions = [record["question"] for record in corpus.records]
    answers = [answer["text"] for record in corpus.records for answer in record["answers"]]
    assert len(set(questions)) == len(questions) and len(set(answers)) == len(answers)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(old=letters, new=letters)
def test_added_data_moves_no_question(folder, old, new):
    before, after = _sides(_of_letters(folder, old)), _sides(_of_letters(folder, old + new))
    for text, side in (before | after).items():
        assert side == splits.split_of(text, ALONE.validation_fraction, ALONE.test_fraction)
    assert all(before[text] == after[text] for text in before.keys() & after.keys())
    gone = before.keys() - after.keys()
    assert not [text for text in gone if before[text] == "test"]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(chosen=letters)
def test_no_near_copy_stands_on_another_side(folder, chosen):
    corpus = _of_letters(folder, chosen)
    sides = _sides(corpus)
    for text, side in sides.items():
        for other, other_side in sides.items():
            assert side == other_side or duplicates.jaccard(text, other) < 0.8
    lost = Counter(row["reason"] for row in corpus.rejected)[splits.ACROSS_SPLITS]
    assert len(sides) + lost == len(set(chosen))


def _bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _dump(folder):
    """A folder with a file of each kind of trouble; more than one chunk."""
    folder.mkdir()
    draw = [dumps.dialogue(LETTERS[i % 18], dumps.answer(i)) for i in range(2500)]
    dumps.write(folder / "a.jsonl", [*draw, "{", {"question": LETTERS[0]}])
    rows = "".join(f'"{dumps.letter(200 + i)}","{dumps.answer(5000 + i)}"\r\n' for i in range(5))
    (folder / "b.csv").write_bytes(("question,answer\r\n" + rows).encode("gb18030"))
    nested = {
        "question": LETTERS[3],
        "topic": "恋爱",
        "answers": [dumps.answer(0), dumps.answer(9000)],
    }
    (folder / "c.json").write_text(json.dumps([nested, 7]), encoding="utf-8")
    return str(folder)


def test_built_twice_it_is_the_same_to_the_byte_in_any_number_of_processes(tmp_path):
    source = Source(_dump(tmp_path / "dump"), "CC0-1.0")
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        build.build([source], tmp_path / name, Settings(workers=workers))
    one, two = _bytes(tmp_path / "one"), _bytes(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert {"questions.jsonl", "rejected.jsonl", "stats.json", "card.md"} <= one.keys()
    assert {f"splits/{name}.jsonl" for name in splits.SPLITS} <= one.keys()


def test_what_is_written_agrees_with_itself(tmp_path):
    stats = build.build([Source(_dump(tmp_path / "dump"))], tmp_path, Settings(workers=1))
    records = list(files.read_jsonl(tmp_path / "questions.jsonl"))
    rejected = list(files.read_jsonl(tmp_path / "rejected.jsonl"))
    assert stats == json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))
    assert stats["pairs"]["read"] == 2500 + 2 + 5 + 3
    assert stats["questions"] == len(records) and stats["pairs"]["rejected"] == len(rejected)
    parts = [list(files.read_jsonl(tmp_path / "splits" / f"{n}.jsonl")) for n in splits.SPLITS]
    assert sorted(r["id"] for part in parts for r in part) == sorted(r["id"] for r in records)
    reasons = {
        (row["file"], row["line"]): row["reason"] for row in rejected if row["stage"] == "read"
    }
    assert reasons["dump/a.jsonl", 2501].startswith("not JSON")
    (bare,) = [row for row in rejected if row["reason"] == "no_answer"]
    assert (bare["file"], bare["line"], bare["stage"]) == ("dump/a.jsonl", 2502, "clean")
    (copy,) = [row for row in rejected if row["reason"] == "exact_duplicate"]
    assert copy["file"] == "dump/c.json" and dumps.answer(0).startswith(copy["text"][:80])
    assert stats["sources"][0]["not_utf8"] == {"dump/b.csv": "gb18030"}
    assert {record["source"] for record in records} <= {
        f"dump/{n}" for n in ("a.jsonl", "b.csv", "c.json")
    }


def test_several_sources_make_one_corpus_and_the_first_of_copies_stays(tmp_path):
    first = dumps.write(tmp_path / "first.jsonl", [dumps.dialogue(LETTERS[0], ANSWERS[0])])
    second = dumps.write(
        tmp_path / "second.jsonl",
        [
            dumps.dialogue(LETTERS[0], ANSWERS[0]),
            dumps.dialogue(LETTERS[0], ANSWERS[1]),
            dumps.dialogue(LETTERS[3], ANSWERS[8]),  # a near copy of the first answer
        ],
    )
    corpus = build.assemble([Source(first), Source(second, "MIT")], ALONE)
    (record,) = corpus.records
    assert [answer["text"] for answer in record["answers"]] == ANSWERS[:2]
    assert record["source"] == "first.jsonl"
    found = Counter((row["file"], row["reason"]) for row in corpus.rejected)
    assert found == {("second.jsonl", "exact_duplicate"): 1, ("second.jsonl", "near_duplicate"): 1}
    assert [source["read"] for source in corpus.stats["sources"]] == [1, 3]


def test_of_near_copies_the_first_read_stays(tmp_path):
    """Also where a later source adds its copy to an earlier question."""
    first = [dumps.dialogue(LETTERS[0], ANSWERS[1]), dumps.dialogue(LETTERS[3], ANSWERS[0])]
    second = [dumps.dialogue(LETTERS[0], ANSWERS[8])]  # a near copy of ANSWERS[0]
    paths = [dumps.write(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((first, second))]
    corpus = build.assemble([Source(path) for path in paths], ALONE)
    kept = [answer["text"] for record in corpus.records for answer in record["answers"]]
    assert kept == [ANSWERS[1], ANSWERS[0]]
    (row,) = corpus.rejected
    assert (row["reason"], row["file"], row["line"]) == ("near_duplicate", "1.jsonl", 1)


def test_a_question_without_an_answer_stays_where_asked(tmp_path):
    values = [{"question": LETTERS[0]}, {"question": LETTERS[0]}, {"question": LETTERS[3]}]
    values += [dumps.dialogue(LETTERS[3], ANSWERS[0])]
    corpus = _assemble(tmp_path, values, Settings(workers=1, require_answer=False))
    assert [len(record["answers"]) for record in corpus.records] == [0, 1]
    assert [row["reason"] for row in corpus.rejected] == ["exact_duplicate", "exact_duplicate"]


def test_switches_reach_the_rules(tmp_path):
    values = [
        dumps.dialogue(LETTERS[0], "太短了，但也是一句话。"),
        dumps.dialogue(LETTERS[3], ANSWERS[0]),
    ]
    assert len(_assemble(tmp_path, values).records) == 1
    off = Settings(clean=cleaning.Rules(too_short=False), workers=1)
    assert len(_assemble(tmp_path, values, off).records) == 2


def test_labels_hold_no_personal_data_and_authors_are_not_kept(tmp_path):
    value = {
        "question": LETTERS[0],
        "topic": "电话13812345678",
        "subtopic": "我叫李晓明",
        "source": "写信到a.b@c.com",
        "answers": [{"text": ANSWERS[0], "author": "王小红", "score": 3}],
    }
    build.build([Source(dumps.write(tmp_path / "dump.jsonl", [value]))], tmp_path / "out", ALONE)
    (record,) = files.read_jsonl(tmp_path / "out" / "questions.jsonl")
    assert record["source"] == "写信到[EMAIL]"
    (answer,) = record["answers"]
    assert answer.keys() == {"id", "text", "score"}
    stats = json.loads((tmp_path / "out" / "stats.json").read_text(encoding="utf-8"))
    assert stats["topics"]["labels_not_understood"] == {"电话[PHONE]": 1}
    written = b"".join(_bytes(tmp_path / "out").values()).decode("utf-8", "replace")
    for personal in ("13812345678", "李晓明", "a.b@c.com", "王小红"):
        assert personal not in written
    collected = collect.clean_chunk(*_one_chunk(tmp_path / "dump.jsonl"), cleaning.Rules(), True)
    assert collected.records[0]["subtopic"] == "我叫[NAME]"


def _one_chunk(path):
    return list(formats.chunks(path, "f"))


def test_labels_and_an_encoder_give_topics(tmp_path):
    values = [
        {"question": LETTERS[0], "topic": "depression", "answer": ANSWERS[0]},
        {"question": LETTERS[3], "topic": "未知的标签", "answer": ANSWERS[1]},
    ]
    corpus = _assemble(tmp_path, values)
    assert [record["topic_by"] for record in corpus.records] == ["label", "unassigned"]
    assert corpus.records[0]["topic"] == "抑郁情绪" and "topic" not in corpus.records[1]
    assert corpus.stats["topics"]["labels_not_understood"] == {"未知的标签": 1}
    path = dumps.write(tmp_path / "dump.jsonl", values)
    corpus = build.assemble(
        [Source(path)], ALONE, lambda texts: np.ones((len(texts), 1), np.float32)
    )
    assert [record["topic_by"] for record in corpus.records] == ["label", "nearest"]
    assert corpus.records[1]["topic_similarity"] == 1.0


def test_labels_that_mean_nothing_were_understood(tmp_path):
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("其他: null\n未分类: null\n", encoding="utf-8")
    topics = ["其他", "未分类，其他", "其他，未知", "未知", "、"]
    values = [
        {"question": dumps.letter(i), "topic": topic, "answer": dumps.answer(i)}
        for i, topic in enumerate(topics)
    ]
    settings = Settings(workers=1, topic_mapping=str(mapping))
    corpus = _assemble(tmp_path, values, settings)
    assert corpus.stats["topics"]["labels_not_understood"] == {"、": 1, "其他，未知": 1, "未知": 1}


def test_a_build_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    good = [Source(dumps.write(tmp_path / "a.jsonl", [dumps.dialogue(LETTERS[0], ANSWERS[0])]))]
    more = [Source(dumps.write(tmp_path / "b.jsonl", [dumps.dialogue(LETTERS[3], ANSWERS[1])]))]

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(build.card, "render", fail)
        with pytest.raises(OSError, match="no space left"):
            build.build(good, out, ALONE)
    assert _bytes(out) == {}
    build.build(good, out, ALONE)
    before = _bytes(out)
    with monkeypatch.context() as patched:
        patched.setattr(build.figures, "draw", fail)
        with pytest.raises(OSError, match="no space left"):
            build.build(more, out, ALONE)
    assert _bytes(out) == before
    (out / ".staged").mkdir()
    (out / ".staged" / "questions.jsonl").write_text("of a build that was killed")
    build.build(more, out, ALONE)
    assert _bytes(out).keys() == before.keys() and _bytes(out) != before
    assert not (out / ".staged").exists()


BAD = {
    "no source": ([], {}, r"config\.corpus\.sources is empty"),
    "missing path": (
        ["absent.jsonl"],
        {},
        r"no file or folder 'absent\.jsonl'.*config\.corpus\.sources",
    ),
    "empty file": (["EMPTY"], {}, r"nothing is left of 0 pairs.*config\.corpus\.sources"),
    "all rejected": (
        ["SHORT"],
        {},
        r"nothing is left of 2 pairs.*rejected by clean: too_short \(2\).*config\.corpus\.clean",
    ),
    "fractions": (["SHORT"], {"test_fraction": 1.0}, r"config\.data\.test_fraction"),
    "threshold": (
        ["SHORT"],
        {"near_duplicate_threshold": 0.0},
        r"config\.corpus\.near_duplicate_threshold",
    ),
    "cosine": (["SHORT"], {"topic_threshold": 2.0}, r"config\.corpus\.topic_threshold"),
    "taxonomy": (["SHORT"], {"topics": "absent.yaml"}, r"absent\.yaml.*config\.corpus\.topics"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(tmp_path, name):
    paths, changes, words = BAD[name]
    given = {
        "EMPTY": dumps.write(tmp_path / "empty.jsonl", []),
        "SHORT": dumps.write(tmp_path / "short.jsonl", [dumps.dialogue(LETTERS[0], "短")] * 2),
    }
    sources = [Source(given.get(path, path)) for path in paths]
    with pytest.raises(ValueError, match=words) as error:
        build.build(sources, tmp_path / "out", Settings(**{"workers": 1, **changes}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_lost_pair_is_noticed():
    record = {"answers": [{}, {}]}
    collect.check_sum("stage", 3, [record], [{}])
    with pytest.raises(AssertionError, match="stage: 4 read, 2 kept, 1 rejected"):
        collect.check_sum("stage", 4, [record], [{}])


def test_a_measured_build_that_fails_leaves_no_thread(tmp_path):
    threads = threading.active_count()
    with pytest.raises(ValueError, match="no file or folder"):
        corpus_build.measure(tmp_path / "absent.jsonl", tmp_path / "out", near=False)
    assert threading.active_count() == threads


def _kill_own_process(chunk, rules, require_answer):
    os._exit(9)


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "clean_chunk", _kill_own_process)
    path = dumps.write(tmp_path / "dump.jsonl", [dumps.dialogue(LETTERS[0], ANSWERS[0])])
    with pytest.raises(OSError, match=r"one of 2 worker processes.*config\.corpus\.workers"):
        build.assemble([Source(path)], Settings(workers=2))


def test_processes_end_with_the_one_that_leads():
    program = (
        "import os, time\n"
        "from empathy_jax.corpus import collect\n"
        "if __name__ == '__main__':\n"
        "    with collect.processes(2) as (submit, _):\n"
        "        print(submit(os.getpid).result(), flush=True)\n"
        "        os._exit(0)\n"
    )
    path = ROOT / ".cache" / "lead.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    end = time.monotonic() + 20
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))


def test_the_real_dump_adds_up():
    if not SMILECHAT.is_dir():
        pytest.skip("the real dumps are absent")
    corpus = build.assemble([Source(str(SMILECHAT))], Settings(workers=1, near_duplicates=False))
    # 2,534 dialogues, and selection.tsv, a table without questions.
    assert corpus.stats["pairs"]["read"] == 2535
    reasons = Counter(row["reason"].partition(":")[0] for row in corpus.rejected)
    assert reasons["one message only"] == 41
    assert corpus.stats["sources"][0]["notes"]["blank_message"] == 2
