"""From bytes to values: every format that dumps come in, in pieces that one worker parses.

    .jsonl .ndjson   one JSON value a line
    .json            one JSON value, or several behind each other
    .csv .tsv        a header, then one row per answer; the delimiter is found in the header
    .xlsx            sheets like that
    .parquet .arrow  tables like that; what `datasets` stores
    .txt             dialogues with a speaker label at each turn (see speakers.py)

each also with .gz, .xz or .bz2 behind, or in a .zip, in any encoding that can be detected. A path
is a file, a folder of such files (read in the sorted order of their names, subfolders too), or
"hub:owner/name" for a dataset of the Hugging Face hub.

A new format is a function from its text or bytes to (line, raw text, value), and a line in `_TEXTS`
or `_BINARIES`.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from empathy_jax.corpus.reading import archives, charsets, hub, speakers, tables
from empathy_jax.corpus.records import BadRecord

Value = tuple[int | None, str, Any]

_CHUNK_BYTES = 2**20
_CHUNK_FILES = 500
_MAX_LINE_BYTES = 64 * 2**20
_MAX_BEGINNING = 200
_PIECE_CHARACTERS = 2**12
_LONGEST_TOKEN = 16  # of JSON, but for strings and numbers: -Infinity, with some room
_GAP = re.compile(r"[ \t\r\n,]*")
_ENDING = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True)
class Part:
    """A file, or whole lines of one.

    Attributes:
      file: its name in reports.
      suffix: which format.
      content: the bytes, unpacked; or where to read them; or why there are none.
      line: number of the first line.
      encoding: None where it is still to be detected.
    """

    file: str
    suffix: str
    content: bytes | Path | BadRecord
    line: int = 1
    encoding: str | None = None


@dataclass(frozen=True)
class Chunk:
    """What one worker parses: about a megabyte of lines and small files, or one large file."""

    source: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Item:
    """A value with its place; `value` is a BadRecord where nothing could be read.

    `line` is None, and `raw` may be empty, where the value is no line of its file.
    """

    file: str
    line: int | None
    raw: str
    value: Any
    encoding: str = "utf-8"


def chunks(path: str | Path, field: str) -> Iterator[Chunk]:
    """The chunks of a file, a folder or a hub dataset, in order.

    Args:
      path: see the module.
      field: the config field to name in errors.

    Raises:
      ValueError: when there is nothing to read.
    """
    if (name := hub.dataset_name(path)) is not None:
        parts = (Part(file, ".arrow", data) for file, data in hub.row_groups(name, field))
        return _grouped(str(path), parts)
    path = Path(path)
    files = _files(path, field)
    parts = itertools.chain.from_iterable(_file_parts(file, name) for file, name in files)
    return _grouped(shown_name(path.name), parts)


def shown_name(name: str) -> str:
    r"""A file name as it can be written: bytes that are not UTF-8 become \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def skipped(path: str | Path) -> Counter[str]:
    """Files of a folder and members of zips that are in no known format, by their endings.

    Hidden ones do not count. Endings that are none, or odd, are "other".
    """
    if hub.dataset_name(path) is not None:
        return Counter()
    path = Path(path)
    found: Counter[str] = Counter()
    for file in _visible(path) if path.is_dir() else [path]:
        suffix = _suffix(file.name)
        if suffix is None:
            found[_ending(file.name)] += 1
        elif suffix == ".zip":
            names = archives.names(file)
            found.update(_ending(name) for name in names if _suffix(name) in (None, ".zip"))
    return found


def _visible(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file():
            yield file


def _ending(name: str) -> str:
    packed = archives.opener_suffix(name)
    ending = PurePosixPath(name.lower().removesuffix(packed)).suffix
    return ending + packed if _ENDING.fullmatch(ending) else "other"


def items(chunk: Chunk) -> Iterator[Item]:
    """The values of a chunk, and a BadRecord for everything in it that cannot be read."""
    for part in chunk.parts:
        content, damage = part.content, None
        if isinstance(content, Path):
            try:
                with archives.opened(content, content.name) as stream:
                    content, damage = archives.read_whole(stream)
            except BadRecord as error:
                content = error
        if isinstance(content, BadRecord):
            damage = content
        elif content or damage is None:
            yield from _part_items(part, content)
        if damage is not None:
            yield Item(part.file, part.line if part.line > 1 else None, "", damage)


def _part_items(part: Part, data: bytes) -> Iterator[Item]:
    if part.suffix in _BINARIES:
        encoding, values = "utf-8", _BINARIES[part.suffix](data)
    else:
        encoding = part.encoding or charsets.detect(data)
        if encoding is None:
            yield Item(part.file, None, repr(data[:40]), BadRecord("in no known encoding"))
            return
        try:
            text = charsets.decode(data, encoding)
        except UnicodeDecodeError as error:
            reason = f"not {encoding.upper()}: {error.reason} at byte {error.start}"
            yield Item(part.file, None, repr(data[:40]), BadRecord(reason), encoding)
            return
        values = _marked(_TEXTS[part.suffix](text), text, encoding)
    for line, raw, value in values:
        place = None if line is None else line + part.line - 1
        yield Item(part.file, place, raw, value, encoding)


def _marked(values: Iterable[Value], text: str, encoding: str) -> Iterable[Value]:
    """The same values, those whose raw text does not fit the encoding as BadRecords."""
    if not charsets.is_broken(text):
        return values
    reason = f"not {encoding.removesuffix('-sig').upper()}"
    return (
        (line, raw, BadRecord(reason) if charsets.is_broken(raw) else value)
        for line, raw, value in values
    )


def _json_lines(text: str) -> Iterator[Value]:
    # Only \n ends a line: str.splitlines would cut texts at U+2028 and the like.
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.isspace():
            yield number, line, _json(line)


def _json_file(text: str) -> Iterator[Value]:
    """The value of the text; or its lines; or the good values of a broken list or sequence."""
    value = _json(text)
    first, _, rest = text.strip().partition("\n")
    if not isinstance(value, BadRecord) or not first:
        yield None, text, value
    elif rest and isinstance(_json(first), dict):
        yield from _json_lines(text)
    else:
        yield from _json_sequence(text)


def _json_sequence(text: str) -> Iterator[Value]:
    """JSON values behind each other or in a list; after a broken one, those that begin alike."""
    at = _GAP.match(text).end()
    in_list = text.startswith("[", at)
    at = _GAP.match(text, at + in_list).end()
    beginning = text[at : text.find(":", at, at + _MAX_BEGINNING) + 1]  # like '{"question":'
    line, counted = 1, 0  # the line of the place up to which lines were counted
    while at < len(text) and not (in_list and text.startswith("]", at)):
        place = None
        try:
            value, end = _value_at(text, at)
        except (ValueError, RecursionError) as error:
            value = _json_problem(error, at)
            end = text.find(beginning, at + 1) if beginning else -1
            line, counted = line + text.count("\n", counted, at), at
            place = line
        yield place, text[at:] if end < 0 else text[at:end], value
        if end < 0:
            return
        at = _GAP.match(text, end).end()
    if in_list and at == len(text):
        yield None, "", BadRecord("not JSON: the list has no end")
    elif in_list and _GAP.match(text, at + 1).end() < len(text):
        yield None, text[at + 1 :], BadRecord("not JSON: more behind the end of the list")


def _value_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place in a text, and its end.

    An error counts all lines of the text that it is raised for, so the decoder gets a piece of it,
    which grows until the value ends in it: the work depends on the value, not on the whole text.

    Raises:
      ValueError, RecursionError: where there is no value; the position counts from `at`.
    """
    size = _PIECE_CHARACTERS
    while True:
        piece = text[at : at + size]
        whole = at + size >= len(text)
        try:
            value, end = json.JSONDecoder().raw_decode(piece)
            if whole or end < len(piece):  # else a number may go on behind the piece
                return value, at + end
        except json.JSONDecodeError as error:
            near_end = error.pos > len(piece) - _LONGEST_TOKEN
            if whole or not (near_end or error.msg.startswith("Unterminated string")):
                raise
        size *= 2


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return _json_problem(error)


def _json_problem(error: Exception, at: int = 0) -> BadRecord:
    if isinstance(error, json.JSONDecodeError):
        return BadRecord(f"not JSON: {error.msg} at character {at + error.pos}")
    return BadRecord(f"not JSON: {type(error).__name__}")


_TEXTS: dict[str, Callable[[str], Iterable[Value]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": tables.csv_rows,
    ".tsv": tables.csv_rows,
    ".txt": speakers.text_dialogues,
}
_BINARIES: dict[str, Callable[[bytes], Iterable[Value]]] = {
    ".xlsx": tables.xlsx_rows,
    ".parquet": tables.parquet_rows,
    ".arrow": tables.arrow_rows,
}
_LINES = (".jsonl", ".ndjson")  # can be cut at any line end


def _suffix(name: str) -> str | None:
    """The ending that says what is in a file, without that of its compression; None if unknown."""
    name = name.lower()
    suffix = PurePosixPath(name.removesuffix(archives.opener_suffix(name))).suffix
    if suffix in _TEXTS or suffix in _BINARIES:
        return suffix
    return ".zip" if name.endswith(".zip") else None


def _files(path: Path, field: str) -> list[tuple[Path, str]]:
    """The files to read with their names, sorted by name; names are relative to a folder."""
    suffixes = ", ".join((*_TEXTS, *_BINARIES, ".zip"))
    if path.is_dir():
        files = [(shown_name(file.relative_to(path).as_posix()), file) for file in path.rglob("*")]
        kept = sorted(
            (name, file)
            for name, file in files
            if _suffix(file.name) and not file.name.startswith(".") and file.is_file()
        )
        if not kept:
            raise ValueError(
                f"The folder {str(path)!r} holds no file that ends in {suffixes}; change {field}."
            )
        return [(file, name) for name, file in kept]
    if not path.is_file():
        raise ValueError(
            f'There is no file or folder {str(path)!r}; set {field} to one, or to "sample".'
        )
    if not _suffix(path.name):
        raise ValueError(
            f"{str(path)!r} must end in {suffixes}, got {path.suffix!r}; change {field}."
        )
    return [(path, shown_name(path.name))]


def _file_parts(path: Path, name: str) -> Iterator[Part]:
    suffix = _suffix(path.name)
    try:
        if suffix == ".zip":
            yield from _zip_parts(path, name)
        elif suffix in _LINES:
            with archives.opened(path, path.name) as stream:
                yield from _line_parts(stream, name, suffix)
        else:
            yield Part(name, suffix, path)
    except BadRecord as error:
        yield Part(name, suffix, error)


def _zip_parts(path: Path, name: str) -> Iterator[Part]:
    """The parts of the members that are in a known format; none is a reject."""
    found = False
    for member, stream in archives.members(path):
        suffix = _suffix(member)
        if suffix in (None, ".zip"):
            continue
        found = True
        file = f"{name}/{member}"
        try:
            if isinstance(stream, BadRecord):
                raise stream
            with archives.opened(stream, member) as unpacked:
                yield from _member_parts(unpacked, file, suffix)
        except BadRecord as error:
            yield Part(file, suffix, error)
    if not found:
        raise BadRecord("the zip holds no file in a known format")


def _member_parts(stream: BinaryIO, file: str, suffix: str) -> Iterator[Part]:
    if suffix in _LINES:
        yield from _line_parts(stream, file, suffix)
        return
    data, damage = archives.read_whole(stream)
    yield Part(file, suffix, data)
    if damage is not None:
        yield Part(file, suffix, damage)


def _line_parts(stream: BinaryIO, file: str, suffix: str) -> Iterator[Part]:
    """About a megabyte of whole lines each; UTF-16 and UTF-32 in one.

    Of other encodings the first piece that is not ASCII tells: what stands before it fits all.
    """
    blocks = archives.blocks(stream)
    first = next(blocks, b"")
    wide = None if isinstance(first, BadRecord) else charsets.wide(first)
    if wide is not None:
        rest, damage = archives.read_whole(stream)
        yield Part(file, suffix, first + rest, 1, wide)
        if damage is not None:
            yield Part(file, suffix, damage)
        return
    line, encoding = 1, None
    for data in _whole_lines(itertools.chain([first], blocks)):
        if isinstance(data, BadRecord):
            yield Part(file, suffix, data, line)
            continue
        if encoding is None and not data.isascii():
            encoding = charsets.detect(data)
        yield Part(file, suffix, data, line, encoding)
        line += data.count(b"\n")


def _whole_lines(blocks: Iterable[bytes | BadRecord]) -> Iterator[bytes | BadRecord]:
    held: list[bytes] = []
    size = 0
    damage = None
    for block in blocks:
        if isinstance(block, BadRecord):
            damage = block
            break
        cut = block.rfind(b"\n") + 1
        if cut and size + cut >= _CHUNK_BYTES:
            yield b"".join([*held, block[:cut]])
            held, size = [block[cut:]], len(block) - cut
        else:
            held.append(block)
            size += len(block)
        if size > _MAX_LINE_BYTES:
            damage = BadRecord(f"line of more than {_MAX_LINE_BYTES} bytes, the rest is not read")
            break
    if size:
        yield b"".join(held)
    if damage is not None:
        yield damage


def _grouped(source: str, parts: Iterable[Part]) -> Iterator[Chunk]:
    """Parts side by side until they weigh a megabyte."""
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += _weight(part.content)
        if size >= _CHUNK_BYTES or len(group) == _CHUNK_FILES:
            yield Chunk(source, tuple(group))
            group, size = [], 0
    if group:
        yield Chunk(source, tuple(group))


def _weight(content: bytes | Path | BadRecord) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    return 0 if isinstance(content, BadRecord) else len(content)
