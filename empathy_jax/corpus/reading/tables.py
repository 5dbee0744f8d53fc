"""Rows of tables: CSV, TSV, xlsx, Arrow and Parquet, each as (line, raw text, {column: value}).

The value is a BadRecord for a row that cannot be read. A table without a column for a question is
one such value, since nothing says where its rows begin.
"""

import csv
import io
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from empathy_jax.corpus.reading import archives, columns
from empathy_jax.corpus.records import BadRecord

Row = tuple[int | None, str, Any]

_DELIMITERS = ",\t;|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*')  # Excel's own first line
# After a stray quote the next lines are tried again; a limit keeps that linear.
_RETRIED_LINES = 1000


def csv_rows(text: str) -> Iterator[Row]:
    """The rows of a CSV or TSV, quoted as RFC 4180 says; the header names the delimiter."""
    # The largest field that a dump may hold is the dump: images stand in them, base64-encoded.
    csv.field_size_limit(sys.maxsize)
    lines = list(io.StringIO(text, newline=""))
    first = next((place for place, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return
    if named := _SEPARATOR_LINE.fullmatch(lines[first]):
        delimiter, lines[first] = named[1], "\n"
    else:
        delimiter = _delimiter(lines[first])
    yield from _with_header(_csv_cells(lines, delimiter), delimiter)


def _delimiter(header: str) -> str:
    """What parts a header into the most known names; of equals, what stands in it most often."""

    def known(delimiter: str) -> int:
        names = (name.strip().strip('"') for name in header.split(delimiter))
        return len(columns.roles(tuple(names)))

    return max(_DELIMITERS, key=lambda delimiter: (known(delimiter), header.count(delimiter)))


def _csv_cells(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | BadRecord]]:
    """The (line, cells) of a CSV; after a row with a stray quote reading goes on a line below."""
    at, retried_at_end = 0, False
    while at < len(lines):
        start = at
        reader = csv.reader(
            (lines[i] for i in range(at, len(lines))), delimiter=delimiter, strict=True
        )
        try:
            for cells in reader:
                yield start + 1, cells
                start = at + reader.line_num
            return
        except csv.Error as error:
            yield start + 1, BadRecord(f"not CSV: {error}")
            end = at + reader.line_num
            retry = end - start <= _RETRIED_LINES or (end == len(lines) and not retried_at_end)
            retried_at_end = retried_at_end or end == len(lines)
            at = start + 1 if retry else end


def xlsx_rows(data: bytes) -> Iterator[Row]:
    """The rows of all sheets of an Excel workbook, each sheet with a header."""
    import openpyxl

    try:
        size = sum(info.file_size for info in zipfile.ZipFile(io.BytesIO(data)).infolist())
        if size > archives.MAX_BYTES:
            raise BadRecord(f"unpacks to {size} bytes, allowed are {archives.MAX_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and extensions that it does not know
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            for sheet in book.worksheets:
                sheet.reset_dimensions()  # what some writers declare is too small
                yield from _with_header(enumerate(_sheet_cells(sheet), 1), "\t")
    except Exception as error:  # its layers of zip and XML raise anything on damaged files
        reason = str(error) if isinstance(error, BadRecord) else type(error).__name__
        yield None, "", BadRecord(f"not xlsx: {reason}")


def _sheet_cells(sheet: Any) -> Iterator[list[str]]:
    """The rows of a sheet; empty cells at their ends, which it leaves out, are put back."""
    width = 0
    for row in sheet.iter_rows(values_only=True):
        width = max(width, len(row))
        yield [_cell(value) for value in row] + [""] * (width - len(row))


def _cell(value: Any) -> str:
    from openpyxl.utils.escape import unescape

    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return unescape(value) if isinstance(value, str) else str(value)


def _with_header(
    numbered: Iterable[tuple[int, list[str] | BadRecord]], delimiter: str
) -> Iterator[Row]:
    """Rows by the names of the first one that is not blank; blank rows are no rows."""
    rows = (
        (line, cells)
        for line, cells in numbered
        if isinstance(cells, BadRecord) or any(cell.strip() for cell in cells)
    )
    for line, header in rows:
        problem = header if isinstance(header, BadRecord) else _header_problem(tuple(header))
        if problem is not None:
            raw = "" if isinstance(header, BadRecord) else delimiter.join(header)
            yield line, raw, problem
            return
        yield from _rows(header, rows, delimiter)


def _header_problem(header: tuple[str, ...]) -> BadRecord | None:
    if not columns.ask(header):
        names = ", ".join(header)
        return BadRecord(f"the table has no column for a question, its header is: {names}"[:200])
    if repeated := columns.repeated(header):
        return BadRecord(f"the header of the table repeats {', '.join(repeated)}")
    return None


def _rows(
    header: list[str], rows: Iterable[tuple[int, list[str] | BadRecord]], delimiter: str
) -> Iterator[Row]:
    for line, cells in rows:
        if isinstance(cells, BadRecord):
            yield line, "", cells
        elif len(cells) < len(header) or any(cells[len(header) :]):
            reason = f"row of {len(cells)} cells under a header of {len(header)}"
            yield line, delimiter.join(cells), BadRecord(reason)
        else:
            yield line, "", dict(zip(header, cells, strict=False))


def arrow_rows(data: bytes) -> Iterator[Row]:
    """The rows of an Arrow stream, as `datasets` stores it, or of an Arrow file."""
    import pyarrow as pa

    def read() -> Any:
        if data.startswith(b"ARROW1"):
            return pa.ipc.open_file(pa.BufferReader(data)).read_all()
        return pa.ipc.open_stream(pa.BufferReader(data)).read_all()

    return _arrow_rows(read, "Arrow")


def parquet_rows(data: bytes) -> Iterator[Row]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return _arrow_rows(lambda: pq.read_table(pa.BufferReader(data)), "Parquet")


def _arrow_rows(read: Any, name: str) -> Iterator[Row]:
    import pyarrow as pa

    try:
        table = read()
        problem = _header_problem(tuple(table.column_names))
        if problem is not None:
            yield None, "", problem
            return
        for batch in table.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                yield None, "", row
    except (pa.ArrowException, OSError, ValueError) as error:
        yield None, "", BadRecord(f"not {name}: {error}".split("\n")[0][:200])
