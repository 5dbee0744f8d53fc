"""The card says what was counted, and names from the data cannot bend its Markdown."""

import json
import re
import zipfile

import pytest

from empathy_jax.corpus import build, card, cleaning, figures, splits, statistics
from empathy_jax.corpus.build import Settings, Source
from tests.corpus import dumps


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus with some of everything, and its folder."""
    folder = tmp_path_factory.mktemp("card")
    ad = "扫码进群领取优惠名额，加我微信abc12345报名课程！"
    values = [
        *(dumps.dialogue(dumps.letter(i), dumps.answer(i)) for i in range(30)),
        {
            "question": dumps.letter(50),
            "topic": "抑郁情绪",
            "answers": [dumps.answer(50), dumps.answer(51)],
        },
        {"question": dumps.letter(60), "topic": "a|b*`<i>", "answer": dumps.answer(60)},
        dumps.dialogue(dumps.letter(61), dumps.answer(61) + "我的手机13812345678。"),
        dumps.dialogue(dumps.letter(62), ad * 6),
        dumps.dialogue(dumps.letter(63), "短"),
        dumps.dialogue(dumps.letter(64), dumps.answer(0)),
        "{",
    ]
    path = dumps.write(folder / "a|b.jsonl", values)
    stats = build.build([Source(path, "CC0-1.0")], folder, Settings(workers=1))
    return folder, stats, (folder / "card.md").read_text(encoding="utf-8")


def _rows(text, heading):
    """Cells of the table behind a heading, without its header."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_counts_stand_in_the_card(built):
    _, stats, text = built
    pairs = stats["pairs"]
    assert pairs == {"read": 38, "kept": 34, "rejected": 4}
    assert "**38 read = 34 kept + 4 rejected**" in text
    rejected = {
        (row[0], row[1].strip("`")): int(row[2]) for row in _rows(text, "What was rejected")
    }
    assert rejected == {
        ("read", "not JSON"): 1,
        ("clean", "advertising"): 1,
        ("clean", "too_short"): 1,
        ("copies", "exact_duplicate"): 1,
    }
    (source,) = _rows(text, "Sources")
    assert source[1:] == ["CC0-1.0", "38", "35", "3"]
    splits = _rows(text, "Splits")
    assert sum(int(row[1]) for row in splits) == stats["questions"] == 33


def test_rules_are_described_and_personal_data_is_counted(built):
    _, stats, text = built
    changed = {row[0].strip("`"): row[1:] for row in _rows(text, "What was repaired or replaced")}
    assert changed["phone"][:4] == ["0", "0", "1", "1"] and changed["phone"][4]
    assert stats["changed"]["phone"]["answer"] == {"texts": 1, "places": 1}
    descriptions = {name: description for name, _, description in cleaning.RULES}
    assert descriptions["advertising"] in text and build.RULES["exact_duplicate"] in text


def test_it_says_what_holds_and_what_it_is_not_for(built):
    _, stats, text = built
    assert stats["guarantee"] in text
    for line in card.NOT_FOR:
        assert f"\n- {line}\n" in text
    assert "Encodings found: all files are UTF-8." in text


def test_names_from_the_data_are_text(built):
    _, stats, text = built
    assert stats["topics"]["labels_not_understood"] == {"a|b*`<i>": 1}
    assert "a|bi (1)" in text and "<i>" not in text
    (source,) = _rows(text, "Sources")
    assert "a\\|b.jsonl" in source[0]


def test_figures_are_whole_pngs_and_all_in_the_card(built):
    folder, _, text = built
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {
        "question_lengths.png",
        "answer_lengths.png",
        "answers_per_question.png",
        "topics.png",
        "rejected.png",
    }
    for name in drawn:
        data = (folder / "figures" / name).read_bytes()
        assert data.startswith(b"\x89PNG") and data.rstrip().endswith(b"IEND\xaeB`\x82")
        assert f"(figures/{name})" in text


def test_figures_need_no_chinese_font(built, tmp_path):
    """A glyph that the font lacks is a warning, which is an error here."""
    _, stats, _ = built
    stats = {**stats, "topics": {"main": {"失恋": {"english": "失恋", "questions": 3}}}}
    stats["rejected"] = {"read": {"未知": 2}}
    assert "topics.png" in figures.draw(stats, tmp_path / "figures")


def test_figures_take_no_name_for_a_formula(built, tmp_path):
    _, stats, _ = built
    main = {"x": {"english": "$\\frac$", "questions": 3}}
    stats = {**stats, "topics": {"main": main}, "rejected": {"read": {"$\\bad{$": 2}}}
    assert {"topics.png", "rejected.png"} <= set(figures.draw(stats, tmp_path / "figures"))


SECRET = "秘密的话"
REJECTED_TEXTS = {
    "a.txt": f"{SECRET}，没有标签的一行\n咨询师：好\n",
    "b.txt": f"来访者：{SECRET}\n督导：{SECRET}\n咨询师：好\n",
    "c.json": [{"role": SECRET, "content": SECRET}, {"role": "client", "content": SECRET}],
    "d.json": {"question": SECRET, "answers": SECRET},
    "e.json": [{"question": SECRET, "answers": [{SECRET: SECRET}, 3]}, {SECRET: SECRET}, SECRET],
    "f.csv": f"{SECRET},answer\n{SECRET},{SECRET}\n",
    "g.csv": f'question,answer\n{SECRET}\n{SECRET},{SECRET},{SECRET}\n"{SECRET}"{SECRET},x\n',
    "h.jsonl": f'{{"question": "{SECRET}"\n["{SECRET}"]\n',
    "i.json": {"messages": [{"role": SECRET, "content": SECRET}], "topic": SECRET},
    "j.json": {"question": SECRET, "topic": SECRET, "answer": SECRET},
}


def test_no_text_of_a_rejected_value_is_published(tmp_path):
    folder = tmp_path / "dump"
    folder.mkdir()
    for name, value in REJECTED_TEXTS.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    dumps.write(folder / "good.jsonl", [dumps.dialogue(dumps.letter(0), dumps.answer(0))])
    stats = build.build([Source(str(folder))], tmp_path / "out", Settings(workers=1))
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8")
    assert {name for name in REJECTED_TEXTS if f"dump/{name}" not in rejected} == set()
    assert {"unknown role", "no known speaker label"} <= stats["rejected"]["read"].keys()
    for name in ("card.md", "stats.json"):
        assert SECRET not in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_figures_of_an_earlier_build_go(built, tmp_path):
    good = dumps.dialogue(dumps.letter(0), dumps.answer(0))
    for values, figure in (([good, "{"], True), ([good], False)):
        source = Source(dumps.write(tmp_path / "dump.jsonl", values))
        build.build([source], tmp_path / "out", Settings(workers=1))
        assert (tmp_path / "out" / "figures" / "rejected.png").exists() == figure


def test_without_a_look_for_near_copies_nothing_is_said_of_them(tmp_path):
    """A near copy may stand on the other side then, and the card must not deny it."""
    letters = [dumps.letter(0), dumps.near_copy(dumps.letter(0), 1)]
    values = [dumps.dialogue(letter, dumps.answer(i)) for i, letter in enumerate(letters)]
    source = Source(dumps.write(tmp_path / "dump.jsonl", values))
    stats = build.build([source], tmp_path, Settings(workers=1, near_duplicates=False))
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert stats["guarantee"] == splits.HASHED and splits.HASHED in text
    assert "ever stand on two sides" not in text
    assert "Near copies were not looked for" in text


def test_files_that_were_not_read_are_counted_by_their_endings(tmp_path):
    folder = tmp_path / "dump"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    good = json.dumps(dumps.dialogue(dumps.letter(0), dumps.answer(0)))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in (
            "good.json",
            "x.PDF",
            "inner.zip",
            "deep/y.docx",
            "__MACOSX/._y.pdf",
            ".z.pdf",
        ):
            archive.writestr(name, good)
    for name in ("a.pdf", "deep/b.pdf", "c.md.gz", "README", "d.odd ending", ".e.pdf",
                 "deep/.hidden/f.pdf"):  # fmt: skip
        (folder / name).write_text(good, encoding="utf-8")
    sources = [Source(str(folder)), Source(str(folder / "a.zip")), Source("sample")]
    stats = build.build(sources, tmp_path / "out", Settings(workers=1))
    assert [source["skipped_files"] for source in stats["sources"]] == [
        {".docx": 1, ".md.gz": 1, ".pdf": 3, ".zip": 1, "other": 2},
        {".docx": 1, ".pdf": 1, ".zip": 1},
        {},
    ]
    text = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert "their ending: `.pdf` 4, `.docx` 2, `.zip` 2, `other` 2, `.md.gz` 1.\n" in text


def test_lengths_by_hand():
    found = statistics.lengths(["a" * n for n in (0, 24, 25, 99, 100, 7000)])
    assert (found["count"], found["min"], found["max"], found["characters"]) == (6, 0, 7000, 7248)
    assert found["mean"] == 1208.0 and found["p5"] == 0 and found["p95"] == 7000
    by_edge = dict(zip(statistics.LENGTH_EDGES, found["histogram"], strict=True))
    assert {edge: n for edge, n in by_edge.items() if n} == {0: 2, 25: 1, 75: 1, 100: 1, 6400: 1}
    assert statistics.lengths([])["count"] == 0
