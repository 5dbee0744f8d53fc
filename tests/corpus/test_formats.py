"""Formats: whatever the packing and the encoding, the same values; whatever the damage, a reject."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empathy_jax import files
from empathy_jax.corpus import build, cleaning, readers
from empathy_jax.corpus.build import Settings, Source
from empathy_jax.corpus.reading import archives, formats

ROWS = [
    {
        "question": f"第{i}个问题：最近总是睡不着，压力很大，不知道怎么办",
        "answer": f"第{i}个回答：慢慢说",
    }
    for i in range(5)
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


# Nothing is cleaned away.
RAW = Settings(clean=cleaning.Rules(min_answer_characters=1), near_duplicates=False, workers=1)


def _parse(path):
    """Questions, rejects and encodings of all chunks, which survive the way to a worker."""
    found, rejects, encodings = [], [], {}
    for chunk in formats.chunks(path, "config.corpus.sources"):
        parsed = readers.parse(pickle.loads(pickle.dumps(chunk)))
        found += parsed.questions
        rejects += parsed.rejects
        encodings |= parsed.encodings
    return found, rejects, encodings


def _written(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _texts(found):
    return [(record["question"], record["answers"][0]["text"]) for record in found]


EXPECTED = [(row["question"], row["answer"]) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.JSONL.XZ", lzma.compress),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.json.gz", gzip.compress),
    ],
)
def test_compression_changes_nothing(tmp_path, name, pack):
    found, rejects, encodings = _parse(_written(tmp_path / name, pack(JSONL.encode())))
    assert (_texts(found), rejects, encodings) == (EXPECTED, [], {})


def test_a_zip_gives_its_files_and_not_those_of_a_mac(tmp_path):
    path = _zip(
        tmp_path / "dump.zip",
        {
            "d/a.jsonl": JSONL,
            "d/b.json": json.dumps(ROWS),
            "c.jsonl.gz": gzip.compress(JSONL.encode()),
            "__MACOSX/d/._a.jsonl": b"\x00\x05",
            "d/.hidden.json": "x",
            "README.md": "x",
        },
    )
    found, rejects, _ = _parse(path)
    assert (_texts(found), rejects) == (EXPECTED * 3, [])
    assert sorted({record["source"] for record in found}) == [
        "dump.zip/c.jsonl.gz", "dump.zip/d/a.jsonl", "dump.zip/d/b.json",
    ]  # fmt: skip


def test_large_lines_are_cut_into_chunks_at_line_ends_and_keep_their_numbers(tmp_path):
    lines = [json.dumps({"question": f"{i} " + "长" * 1000}) for i in range(500)]
    lines[400] = "{broken"
    path = _written(tmp_path / "big.jsonl.xz", lzma.compress("\n".join(lines).encode()))
    chunks = list(formats.chunks(path, "f"))
    sizes = [len(part.content) for chunk in chunks for part in chunk.parts]
    assert len(chunks) == len(sizes) == 3
    assert max(sizes) < 1.3 * 2**20
    items = [item for chunk in chunks for item in formats.items(chunk)]
    assert [item.line for item in items] == list(range(1, 501))
    assert [item.line for item in items if isinstance(item.value, Exception)] == [401]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_the_encoding_is_told_by_what_is_not_ascii(tmp_path, encoding):
    ascii_lines = [json.dumps({"question": f"{i} " + "x" * 1000}) for i in range(2000)]
    data = ("\n".join(ascii_lines) + "\n" + JSONL).encode(encoding)
    found, rejects, encodings = _parse(_written(tmp_path / "a.jsonl", data))
    assert (len(found), rejects) == (2005, [])
    assert _texts(found[2000:]) == EXPECTED
    assert encodings == ({} if encoding == "utf-8" else {"a.jsonl": encoding})


def test_megabytes_of_utf16_without_a_mark_are_read_whole(tmp_path):
    data = "".join(
        json.dumps({"question": f"I am so tired today and cannot sleep, number {i}"}) + "\n"
        for i in range(50_000)
    )
    found, rejects, _ = _parse(_written(tmp_path / "a.jsonl", data.encode("utf-16-le")))
    assert (len(found), rejects) == (50_000, [])


def test_small_files_share_chunks_in_the_order_of_their_names(tmp_path):
    for i in range(600):
        _written(tmp_path / f"{i:03}.json", json.dumps({"question": str(i)}))
    chunks = list(formats.chunks(tmp_path, "f"))
    assert [len(chunk.parts) for chunk in chunks] == [500, 100]
    assert [r["question"] for r in _parse(tmp_path)[0]] == [str(i) for i in range(600)]


@pytest.mark.parametrize(
    ("encoding", "reported"),
    [
        ("utf-8", {}),
        ("utf-8-sig", "utf-8-sig"),
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf_16_le"),
        ("utf-32", "utf-32"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.zip"])
def test_encodings_are_detected_and_reported(tmp_path, name, encoding, reported):
    text = {
        "a.csv": "question,answer\r\n" + "".join(f"{q},{a}\r\n" for q, a in EXPECTED),
        "a.txt": "".join(f"来访者：{q}\n咨询师：{a}\n\n" for q, a in EXPECTED),
    }.get(name, JSONL)
    data = text.encode(encoding)
    path = tmp_path / name
    if name == "a.zip":
        _zip(path, {"b.jsonl": data})
    else:
        _written(path, gzip.compress(data) if name.endswith(".gz") else data)
    found, rejects, encodings = _parse(path)
    assert (_texts(found), rejects) == (EXPECTED, [])
    file = "a.zip/b.jsonl" if name == "a.zip" else name
    assert encodings == (reported and {file: reported})


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "My café friends “left” me – I don’t know what to do, and it hurts a lot."),
        ("big5", "最近總是睡不著，感覺壓力特別大，工作上也沒有動力，不知道該怎麼辦才好，請問大家有什麼建議"
         "嗎？我和父母的關係也不好，每次回家都會吵架，他們總是說我不夠努力，我真的很難過。"),
    ],
)  # fmt: skip
def test_other_languages_have_their_encodings(tmp_path, encoding, text):
    path = _written(tmp_path / "a.csv", f'question,answer\n"{text}","{text}"\n'.encode(encoding))
    found, rejects, encodings = _parse(path)
    assert (_texts(found), rejects) == ([(text, text)], [])
    assert text.encode(encodings["a.csv"]) == text.encode(encoding)


def test_english_in_utf16_without_a_mark(tmp_path):
    path = _written(tmp_path / "a.csv", "question,answer\nI am tired,Rest\n".encode("utf-16-le"))
    found, rejects, encodings = _parse(path)
    assert (_texts(found), rejects) == ([("I am tired", "Rest")], [])
    assert encodings == {"a.csv": "utf_16_le"}


def test_a_few_bad_bytes_spoil_their_rows_only(tmp_path):
    bad = "坏的".encode("gbk")
    rows = [f"{q},{a}\n".encode() for q, a in EXPECTED]
    path = _written(tmp_path / "a.csv", b"question,answer\n" + rows[0] + bad + b",x\n" + rows[1])
    found, rejects, _ = _parse(path)
    assert _texts(found) == EXPECTED[:2]
    assert [reject["reason"] for reject in rejects] == ["question is not valid Unicode"]
    json.dumps(rejects, ensure_ascii=False).encode("utf-8")


# Each kind of damage: file name, bytes, how many good records remain, the reasons of the rejects.
GOOD = JSONL.encode()
PACKED = {"xz": lzma.compress(GOOD * 200), "gz": gzip.compress(GOOD * 200)}
LIST = json.dumps(ROWS, ensure_ascii=False)
CUT = LIST[:-7]
DAMAGED = [
    ("a.jsonl.xz", b"not xz", 0, ["damaged: LZMAError"]),
    ("a.jsonl.gz", b"not gz", 0, ["damaged: BadGzipFile"]),
    ("a.json.gz", gzip.compress(GOOD)[:-20], 3, ["not JSON", "damaged: EOFError"]),
    ("a.csv.gz", b"", 0, []),
    ("a.zip", b"PK\x03\x04 and no more", 0, ["damaged: BadZipFile"]),
    ("a.json", CUT.encode(), 4, ["not JSON: Unterminated string"]),
    ("a.json", LIST[:-1].encode(), 5, ["the list has no end"]),
    ("a.json", LIST.encode() + b" more", 5, ["more behind the end"]),
    ("a.json", LIST.replace('"answer"', "answer", 2).encode(), 3, ["not JSON", "not JSON"]),
    ("a.json", LIST.replace('第1个回答', '第1"个回答').encode(), 4, ["not JSON: Expecting ','"]),
    ("a.json", b'{"question" "a"}', 0, ["not JSON: Expecting ':'"]),
    ("a.json", GOOD[:-1] + b"\n{]\n" + GOOD, 10, ["not JSON"]),
    ("a.json", b"", 0, ["not JSON"]),
    ("a.json", b"[" * 100_000, 0, ["not JSON"]),
    ("a.json", b"[]", 0, ["empty dialogue"]),
    ("a.json", b'{"data": 3}', 0, ["neither question nor messages"]),
    ("a.json", b"NaN", 0, ["must be a JSON object, got float"]),
    ("a.jsonl", GOOD + b"\0" * 50, 5, ["not JSON"]),
    ("a.jsonl", GOOD + b"\0" * 5000, 5, ["not JSON"]),
    ("a.json", b'{"question": "a"}\n{"id": 1\n{"id": 2, "question": "b"}', 2, ["not JSON"]),
    ("a.jsonl", GOOD.replace("第0个问题".encode(), b"\0"), 4, ["not JSON: Invalid control"]),
    ("a.jsonl", GOOD[:-3], 4, ["not JSON: Unterminated"]),
    ("a.jsonl", GOOD[:-7], 4, ["not UTF-8"]),
    ("a.jsonl", JSONL.encode("utf-16")[:-1], 0, ["not UTF-16: truncated data"]),
    ("a.txt", bytes(range(256)) * 20, 0, ["in no known encoding"]),
    ("a.txt", "咨询师：没有人问\n".encode(), 0, ["one message only"]),
    ("a.txt", "老王：你好\n咨询师：好\n".encode(), 0, ["no known speaker label"]),
    ("a.txt", "来访者：你好\n督导：停\n咨询师：好\n".encode(), 0, ["unknown role: '督导：'"]),
    ("a.txt", b"just a letter\nof two lines", 0, ["no known speaker label"]),
    ("a.parquet", b"PAR1 and no more", 0, ["not Parquet"]),
    ("a.arrow", b"nothing", 0, ["not Arrow"]),
    ("a.xlsx", b"<html>saved as xlsx</html>", 0, ["not xlsx: BadZipFile"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "good", "reasons"), DAMAGED)
def test_damage_is_named_and_the_rest_is_kept(tmp_path, name, data, good, reasons):
    found, rejects, _ = _parse(_written(tmp_path / name, data))
    assert len(found) == good
    assert len(rejects) == len(reasons)
    for reject, reason in zip(rejects, reasons, strict=True):
        assert reason in reject["reason"]
        assert reject["file"] == name
    with pytest.raises(ValueError, match=r"a\..*config\.data"):
        readers.read_questions(tmp_path / name, max_rejected=0.0)


@pytest.mark.parametrize("ending", ["xz", "gz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_archive_gives_what_stands_before_the_cut(tmp_path, ending, share):
    lines = "".join(
        json.dumps({"question": f"{i}: {hash((i, 'x'))}"}) + "\n" for i in range(20_000)
    )
    packed = {"xz": lzma.compress, "gz": gzip.compress}[ending](lines.encode())
    path = _written(tmp_path / f"a.jsonl.{ending}", packed[: int(share * len(packed))])
    found, rejects, _ = _parse(path)
    assert [r["question"] for r in found] == [
        json.loads(line)["question"] for line in lines.splitlines()[: len(found)]
    ]
    assert len(found) > 0.8 * share * 20_000
    assert "damaged: EOFError" in rejects[-1]["reason"]
    assert rejects[-1]["line"] in (len(found) + 1, len(found) + 2)


def test_zips_without_use(tmp_path):
    _zip(tmp_path / "none.zip", {"a.md": "x", "inner.zip": "x"})
    with pytest.raises(ValueError, match=r"none.zip.*holds no file in a known format"):
        readers.read_questions(tmp_path / "none.zip")
    path = _zip(tmp_path / "b.zip", {"good.jsonl": JSONL, "z.jsonl": JSONL})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"z.jsonl", 0, data.index(b"PK\x01\x02")) + 20
    data[at : at + 20] = bytes(20)
    found, rejects, _ = _parse(_written(path, bytes(data)))
    assert _texts(found)[:5] == EXPECTED
    assert any("damaged" in reject["reason"] for reject in rejects)


def test_an_encrypted_zip_is_a_reject(tmp_path):
    path = _zip(tmp_path / "a.zip", {"a.json": json.dumps(ROWS)})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1  # the flag that says so
    _, rejects, _ = _parse(_written(path, bytes(data)))
    assert "encrypted" in rejects[0]["reason"]
    assert rejects[0]["file"] == "a.zip/a.json"


@pytest.mark.parametrize("name", ["bomb.json.gz", "bomb.csv.xz", "bomb.zip", "bomb.xlsx"])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(archives, "MAX_BYTES", 2**21)
    zeros = b"0" * 2**22
    if name.endswith((".zip", ".xlsx")):
        _zip(tmp_path / name, {"a.json": zeros})
    else:
        pack = gzip.compress if name.endswith("gz") else lzma.compress
        _written(tmp_path / name, pack(zeros))
    found, rejects, _ = _parse(tmp_path / name)
    assert found == []
    assert "unpacks to" in rejects[-1]["reason"]


def test_a_line_without_end_is_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_MAX_LINE_BYTES", 2**21)
    path = _written(tmp_path / "a.jsonl", GOOD + b"x" * 2**23)
    found, rejects, _ = _parse(path)
    assert _texts(found) == EXPECTED
    assert "line of more than" in rejects[-1]["reason"]


def test_an_unreadable_file_in_a_folder_costs_itself_only(tmp_path):
    _written(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "b.jsonl.gz").symlink_to(tmp_path / "a.jsonl")
    found, rejects, _ = _parse(tmp_path)
    assert _texts(found) == EXPECTED
    assert [reject["file"] for reject in rejects] == ["b.jsonl.gz"]


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    name = os.fsdecode("坏".encode("gbk"))
    (tmp_path / name).mkdir()
    shown = r"\xbb\xb5"
    _written(tmp_path / name / f"{name}.jsonl", GOOD + b"{\n")
    _written(tmp_path / name / "b.csv", "a,\udcbb\n".encode("utf-8", "surrogateescape"))
    found, rejects, _ = _parse(tmp_path / name)
    assert {record["source"] for record in found} == {f"{shown}.jsonl"}
    assert [reject["file"] for reject in rejects] == [f"{shown}.jsonl", "b.csv"]
    stats = build.build([Source(str(tmp_path / name))], tmp_path / "out", RAW)
    assert stats["pairs"] == {"read": 7, "kept": 5, "rejected": 2}
    text = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert stats["sources"][0]["path"] == f"{tmp_path}/{shown}" and shown in text
    (record, *_) = files.read_jsonl(tmp_path / "out" / "questions.jsonl")
    assert record["source"] == f"{shown}/{shown}.jsonl"
    build.build([Source(str(tmp_path / name / f"{name}.jsonl"))], tmp_path / "one", RAW)
    (record, *_) = files.read_jsonl(tmp_path / "one" / "questions.jsonl")
    assert record["source"] == f"{shown}.jsonl"


def test_json_is_found_in_lists_objects_lines_and_sequences(tmp_path):
    for text in (
        json.dumps(ROWS),
        json.dumps({"train": ROWS[:2], "valid": ROWS[2:]}),
        json.dumps({row["question"]: row for row in ROWS}),
        "\n\n".join(json.dumps(row, indent=2) for row in ROWS),
        JSONL,
    ):
        found, rejects, _ = _parse(_written(tmp_path / "a.json", text))
        assert (_texts(found), rejects) == (EXPECTED, [])


def test_broken_values_of_a_list_are_found_in_linear_time(tmp_path):
    broken = '{"question": "第几个问题", "answer" "没有冒号的回答"},\n' * 60_000
    path = _written(tmp_path / "a.json", "[\n" + broken + json.dumps(ROWS[0]) + "]")
    began = time.process_time()
    found, rejects, _ = _parse(path)
    assert time.process_time() - began < 10
    assert (_texts(found), len(rejects)) == (EXPECTED[:1], 60_000)
    assert [reject["line"] for reject in rejects] == list(range(2, 60_002))
    width = len(broken) // 60_000
    at = 2 + 7 * width + broken.index('"没有')
    assert rejects[7]["reason"].endswith(f"Expecting ':' delimiter at character {at}")


@pytest.mark.parametrize("length", [0, 3000, 4080, 4090, 4096, 5000, 70_000])
def test_values_of_any_length_follow_each_other(tmp_path, length):
    """A piece that the decoder gets ends within a string, a number, an escape or a gap."""
    for filler in ("x", "问", '"', "\n"):
        value = {"question": "a" + filler * length + "b", "n": [12345678, -1.5e10, None]}
        good, number = json.dumps(value, indent=1), "1.5" + "0" * length
        parts = [good, '{\n "question" 1}', good, number, number, good]
        found, rejects, _ = _parse(_written(tmp_path / "a.json", "\n\n".join(parts)))
        assert [record["question"] for record in found] == [value["question"]] * 3
        assert [reject["reason"].partition(" at ")[0] for reject in rejects] == [
            "not JSON: Expecting ':' delimiter", *["must be a JSON object, got float"] * 2,
        ]  # fmt: skip


def _samples():
    """A small good file of every format."""
    import openpyxl
    import pyarrow as pa
    import pyarrow.parquet as pq

    book = openpyxl.Workbook()
    for cells in [["question", "answer"], *[list(row.values()) for row in ROWS]]:
        book.active.append(cells)
    sheet, parquet, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    book.save(sheet)
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", JSONL)
    rows = "".join(f'"{q}","{a}"\n' for q, a in EXPECTED)
    return {
        ".jsonl": GOOD, ".json": json.dumps(ROWS).encode(), ".jsonl.xz": lzma.compress(GOOD),
        ".json.gz": gzip.compress(GOOD), ".csv": b"question,answer\n" + rows.encode(),
        ".txt": f"来访者：{ROWS[0]['question']}\n咨询师：好\n".encode(),
        ".zip": packed.getvalue(), ".xlsx": sheet.getvalue(), ".parquet": parquet.getvalue(),
    }  # fmt: skip


SAMPLES = _samples()


@pytest.mark.parametrize("suffix", sorted(SAMPLES))
@given(
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=4),
    end=st.floats(0.1, 1),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_ends_in_a_traceback(tmp_path, suffix, cuts, end):
    data = bytearray(SAMPLES[suffix])
    for share, patch in cuts:
        at = int(share * len(data))
        data[at : at + len(patch)] = patch
    found, rejects, _ = _parse(
        _written(tmp_path / f"a{suffix}", bytes(data[: int(end * len(data))]))
    )
    assert all(reject["reason"] for reject in rejects)
    json.dumps([found, rejects], ensure_ascii=False).encode("utf-8")


def test_all_formats_agree_when_nothing_is_damaged(tmp_path):
    for suffix in SAMPLES.keys() - {".txt"}:
        found, rejects, _ = _parse(_written(Path(tmp_path) / f"a{suffix}", SAMPLES[suffix]))
        assert (suffix, _texts(found), rejects) == (suffix, EXPECTED, [])
