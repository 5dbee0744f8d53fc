"""Tables: CSV, TSV, Excel and Parquet with one row per answer, and what goes wrong in them."""

import datetime
import json
import zipfile

import pytest

from empathy_jax.corpus import readers
from empathy_jax.corpus.reading import formats


def _parse(path):
    parsed = [readers.parse(chunk) for chunk in formats.chunks(path, "f")]
    found = [record for part in parsed for record in part.questions]
    return found, [reject for part in parsed for reject in part.rejects]


def _csv(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8"))
    return _parse(path)


def _book(path, *sheets):
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def _pairs(found):
    return [(r["question"], [answer["text"] for answer in r["answers"]]) for r in found]


def test_a_forum_export_with_all_that_it_holds(tmp_path):
    image = "<img src='data:image/png;base64," + "QUJD" * 75_000 + "'>"
    word = "<!--[if gte mso 9]><xml><w:WordDocument></w:WordDocument></xml><![endif]-->"
    text = (
        "\ufeff,questionID,questionTitle,questionText,topic,therapistName,answerText,upvotes,split\r\n"
        '0,a,Worthless,"I barely sleep.\r\n\r\nHow, ""please""?",depression,Ann,'
        f'"<p>One</p>{image}",3,train\r\n'
        f'1,a,Worthless,"I barely sleep.\n\nHow, ""please""?",depression,Bob,{word}Two,"1,024",train\r\n'
        "\r\n,,,,,,,,\r\n"
        "2,b,Title only,,,, Three ,nan,train\r\n"
    )
    found, rejects = _csv(tmp_path, text)
    assert rejects == []
    question = 'Worthless\nI barely sleep.\n\nHow, "please"?'
    assert found[0]["question"].replace("\r", "") == found[1]["question"] == question
    assert found[2]["question"] == "Title only"
    assert [record.get("topic") for record in found] == ["depression", "depression", None]
    answers = [record["answers"][0] for record in found]
    assert answers[0]["text"] == f"<p>One</p>{image}"
    assert answers[1]["text"] == f"{word}Two"
    assert [answer.get("score") for answer in answers] == [3, 1024, None]
    assert [answer.get("author") for answer in answers] == ["Ann", "Bob", None]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_delimiters_and_line_ends_are_found(tmp_path, delimiter, end, name):
    rows = [["问题", "回答", "点赞数"], ["一，", "甲;\t|,", "2.5"], ['"二"\n', "乙", "-1"]]
    quoted = ['"' + cell.replace('"', '""') + '"' for row in rows[1:] for cell in row]
    lines = [delimiter.join(part) for part in (rows[0], quoted[:3], quoted[3:])]
    found, rejects = _csv(tmp_path, end.join(lines), name)
    assert rejects == []
    assert _pairs(found) == [("一，", ["甲;\t|,"]), ('"二"', ["乙"])]
    assert [record["answers"][0]["score"] for record in found] == [2.5, -1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('sep=;\r\nquestion;answer\r\n"一,";甲\r\n坏\r\n', 4),
        ('"sep=\t"\nquestion\tanswer\n一,\t甲\n坏\n', 4),
        ("\nsep=|\nquestion|answer\n一,|甲\n坏\n", 5),
        ("question;answer;a, b, c\n一,;甲;1\n坏\n", 3),
        ("问题;回答;备注,其他,更多,\n一,;甲;1\n坏\n", 3),
        ('"question";"answer,"\n一,;甲\n坏\n', 3),
    ],
)
def test_the_delimiter_is_said_or_what_gives_known_names(tmp_path, text, line):
    found, rejects = _csv(tmp_path, text)
    answers = [] if '"answer,"' in text else ["甲"]
    assert _pairs(found) == [("一，".replace("，", ","), answers)]
    assert [reject["line"] for reject in rejects] == [line]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("只有一格", "row of 1 cells under a header of 3"),
        ("多,一,1,格", "row of 4 cells under a header of 3"),
        ('"引号"错,乙,1', "not CSV: ',' expected after '\"'"),
        ('"没有结尾,乙,1', "not CSV"),
        (",乙,1", "question is blank"),
        ("问,,1", "answer is blank"),
    ],
)
def test_a_bad_row_is_a_reject_and_its_neighbours_stay(tmp_path, row, reason):
    text = f'question,answer,score\n一,"甲\n甲",1\n{row}\n二,"乙",2\n三,丙,3\n'
    found, rejects = _csv(tmp_path, text)
    assert _pairs(found) == [("一", ["甲\n甲"]), ("二", ["乙"]), ("三", ["丙"])]
    (reject,) = rejects
    assert (reject["line"], reject["file"]) == (4, "a.csv")
    assert reason in reject["reason"]


def test_a_quote_that_never_ends_costs_its_line_only_and_time_stays_linear(tmp_path):
    rows = "".join(f"问{i},答{i}\n" for i in range(3000))
    found, rejects = _csv(tmp_path, 'question,answer\n"开,头\n' + rows)
    assert (len(found), len(rejects)) == (3000, 1)
    # Every line opens a quote that only the last one closes, wrongly.
    found, rejects = _csv(tmp_path, "question,answer\n" + '问","答\n' * 20_000 + '"x\n')
    assert found == []
    assert [(r["line"], "not CSV" in r["reason"]) for r in rejects] == [(2, True), (3, True)]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("file,why,bytes", "no column for a question, its header is: file, why, bytes"),
        ("question,answer,Answer", None),
        ("question,answer,answer", "repeats answer"),
        ('"question', "not CSV"),
    ],
)
def test_a_table_needs_a_header_that_says_what_is_asked(tmp_path, header, reason):
    found, rejects = _csv(tmp_path, f"{header}\n一,甲,乙\n二,丙,丁\n")
    if reason is None:
        assert _pairs(found) == [("一", ["甲"]), ("二", ["丙"])]
        return
    assert (found, len(rejects)) == ([], 1)
    assert reason in rejects[0]["reason"]


def test_empty_tables_hold_nothing(tmp_path):
    for text in ("", "\n\n", "\ufeff", "question,answer\n"):
        assert _csv(tmp_path, text) == ([], [])
        with pytest.raises(ValueError, match=r"a\.csv.*no usable record.*config\.data\.questions"):
            readers.read_questions(tmp_path / "a.csv")


def test_excel_sheets_are_read_with_their_types(tmp_path):
    path = _book(
        tmp_path / "a.xlsx",
        [
            [None, None, None, None],
            ["编号", "问题", "回答", "点赞"],
            [1, "一_x000D_\n一", "甲", 3],
            [2, 110, datetime.date(2024, 1, 2), 2.5],
            [None, None, None, None],
            [3, "二", None, None],
        ],
        [["question", "answer"], ["three", "c"]],
        [],
    )
    found, rejects = _parse(path)
    assert _pairs(found) == [
        ("一\r\n一", ["甲"]), ("110", ["2024-01-02 00:00:00"]), ("three", ["c"])
    ]  # fmt: skip
    assert [record["answers"][0].get("score") for record in found] == [3, 2.5, None]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [(6, "answer is blank")]


def test_a_sheet_that_declares_itself_too_small_is_read_whole(tmp_path):
    path = _book(tmp_path / "a.xlsx", [["question", "answer"], ["一", "甲"], ["二", "乙"]])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"'))
    assert _pairs(_parse(path)[0]) == [("一", ["甲"]), ("二", ["乙"])]


def test_an_excel_sheet_without_header_is_one_reject(tmp_path):
    path = _book(tmp_path / "a.xlsx", [["我睡不着", "多说说"], ["我很累", "歇一歇"]])
    found, rejects = _parse(path)
    assert found == []
    assert [r["reason"] for r in rejects] == [
        "the table has no column for a question, its header is: 我睡不着, 多说说"
    ]
    assert rejects[0]["text"] == "我睡不着\t多说说"


def test_parquet_keeps_nested_answers_and_ignores_nulls(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "question": "一",
            "answers": [{"text": "甲", "score": 2, "author": None}],
            "image": b"\xff",
        },
        {"messages": [{"role": "user", "content": "二"}, {"role": "assistant", "content": "乙"}]},
        {"question": "三"},
        {"image": b"\x00"},
    ]
    pq.write_table(pa.Table.from_pylist(rows, _schema(pa)), tmp_path / "a.parquet")
    found, rejects = _parse(tmp_path / "a.parquet")
    assert _pairs(found) == [("一", ["甲"]), ("二", ["乙"]), ("三", [])]
    assert found[0]["answers"][0]["score"] == 2
    assert [reject["reason"] for reject in rejects] == ["neither question nor messages"]
    json.dumps(rejects)


def _schema(pa):
    text = pa.string()
    answer = pa.struct({"text": text, "score": pa.int64(), "author": text})
    message = pa.struct({"role": text, "content": text})
    return pa.schema(
        {
            "question": text,
            "answers": pa.list_(answer),
            "messages": pa.list_(message),
            "image": pa.binary(),
        }
    )
