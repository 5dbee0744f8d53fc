"""From a dump to records: what a chunk holds, and the questions or chains of all of it.

A path is "sample" (the embedded corpus), or whatever `formats` reads: a file, a folder, a dataset
of the hub. `forms` says which values are understood.

What cannot be used is never dropped in silence: it is returned as a reject
{"file", "line" (None for a whole file), "reason", "text" (its beginning)}.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from empathy_jax import files
from empathy_jax.corpus import records as records_lib
from empathy_jax.corpus import sample
from empathy_jax.corpus.reading import formats, forms
from empathy_jax.corpus.records import BadRecord, Record

_SHOWN_CHARACTERS = 80


class Unusable(ValueError):
    """Too few of the records can be used.

    Attributes:
      rejects: all that cannot.
    """

    def __init__(self, message: str, rejects: list[Record]):
        self.rejects = rejects
        super().__init__(message)


class Parsed(NamedTuple):
    """What is in a chunk.

    Attributes:
      questions: question records as they come, neither merged nor rid of equal answers: their
        answers, at least one each, and the rejects are the pairs that were read.
      rejects: see the module.
      encodings: of the files that are not plain UTF-8.
      notes: values by what is odd in them but no reason to reject them: see `forms.question`.
      places: file and line (None: a whole file) of each question.
    """

    questions: list[Record]
    rejects: list[Record]
    encodings: dict[str, str]
    notes: Counter[str]
    places: list[tuple[str, int | None]]


def parse(chunk: formats.Chunk) -> Parsed:
    """Question records, rejects, encodings and notes of a chunk."""
    parsed = Parsed([], [], {}, Counter(), [])

    def accept(value: Any, source: str) -> list[BadRecord]:
        record, problems = forms.question(value, source, parsed.notes)
        if record is not None:
            parsed.questions.append(record)
        return problems

    for item in formats.items(chunk):
        if item.encoding != "utf-8":
            parsed.encodings[item.file] = item.encoding
        parsed.rejects.extend(_accepted(item, accept))
        parsed.places.extend(
            [(item.file, item.line)] * (len(parsed.questions) - len(parsed.places))
        )
    return parsed


def read_questions(
    path_or_sample: str | Path, language: str = "zh", max_rejected: float = 0.1
) -> tuple[list[Record], list[Record]]:
    """Question records from a dump; a chain record counts as a question with one answer.

    Questions with identical text become one record with all answers.

    Args:
      path_or_sample: "sample", a file, a folder or a hub dataset.
      language: of the sample, "zh" or "en"; files are read whatever their language.
      max_rejected: largest share of the pairs read that may be rejects, in [0, 1].

    Returns:
      The records in the order of first sight, and the rejects.

    Raises:
      ValueError: when there is nothing to read; `Unusable` for nothing usable or too many rejects.
    """
    if str(path_or_sample) == "sample":
        return sample.sample_questions(language), []
    _check_share(max_rejected)
    found: dict[str, Record] = {}
    rejects: list[Record] = []
    accepted = 0
    for chunk in formats.chunks(path_or_sample, "config.data.questions"):
        parsed = parse(chunk)
        rejects += parsed.rejects
        for record in parsed.questions:
            accepted += max(1, len(record["answers"]))
            first = found.setdefault(record["id"], record | {"answers": []})
            records_lib.merge_answers(first, record["answers"])
            for name in ("topic", "subtopic"):
                if name in record:
                    first.setdefault(name, record[name])
    _check_rejects(path_or_sample, accepted, rejects, max_rejected, "config.data.questions")
    return list(found.values()), rejects


def read_chains(
    path_or_sample: str | Path, language: str = "zh", max_rejected: float = 0.1
) -> tuple[list[Record], list[Record]]:
    """Chain records from a dump; several with the same question are several records.

    Chains with identical texts become one, the first.

    Args, Returns, Raises: as `read_questions`.
    """
    if str(path_or_sample) == "sample":
        return sample.sample_chains(language), []
    _check_share(max_rejected)
    found: dict[str, Record] = {}
    accepted = 0

    def accept(value: Any, source: str) -> list[BadRecord]:
        nonlocal accepted
        record = records_lib.chain_record(forms.mapping(value), forms.source_of(value, source))
        accepted += 1
        if (first := found.setdefault(record["id"], record)) is not record:
            id_ = records_lib.chain_id(record)
            if id_ != records_lib.chain_id(first):
                found.setdefault(id_, record | {"id": id_})
        return []

    rejects: list[Record] = []
    for chunk in formats.chunks(path_or_sample, "config.data.chains"):
        for item in formats.items(chunk):
            rejects += _accepted(item, accept)
    _check_rejects(path_or_sample, accepted, rejects, max_rejected, "config.data.chains")
    return list(found.values()), rejects


def read_all(
    read: Callable[[Path | str, str, float], tuple[list[Record], list[Record]]],
    paths: Sequence[Path | str],
    language: str,
    max_rejected: float,
    rejects_file: Path,
) -> list[list[Record]]:
    """The records of each path; all rejects go to a file, also when they are too many.

    Args:
      read: `read_questions` or `read_chains`.
      paths, language, max_rejected: each path, and what else `read` takes.
      rejects_file: JSONL, written as a whole.

    Raises:
      ValueError: as `read`, with the name of that file.
    """
    found, rejects = [], []
    try:
        for path in paths:
            records, bad = read(path, language, max_rejected)
            found.append(records)
            rejects += bad
    except Unusable as error:
        files.write_jsonl(rejects_file, rejects + error.rejects)
        raise ValueError(f"{error} All of them are listed in {rejects_file}.") from error
    files.write_jsonl(rejects_file, rejects)
    if rejects:
        print(f"{len(rejects)} unreadable records are listed in {rejects_file}")
    return found


def _accepted(
    item: formats.Item, accept: Callable[[Any, str], Iterable[BadRecord]]
) -> list[Record]:
    """Hands the values of an item to `accept`, and makes rejects of the problems it has."""
    if isinstance(item.value, BadRecord):
        return [_reject(item, item.raw, item.value)]
    rejects = []
    for value in forms.single_values(item.value):
        try:
            problems = accept(value, item.file)
        except BadRecord as problem:
            problems = [problem]
        raw = item.raw if value is item.value else ""
        rejects += [_reject(item, raw or _repr(value), problem) for problem in problems]
    return rejects


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return type(value).__name__


def _reject(item: formats.Item, raw: str, problem: BadRecord) -> Record:
    text = raw[:_SHOWN_CHARACTERS] + ("..." if len(raw) > _SHOWN_CHARACTERS else "")
    # Half a surrogate pair, which a reason can quote as well, could not be written.
    reason, text = (
        part.encode("utf-8", "replace").decode("utf-8") for part in (str(problem), text)
    )
    return {"file": item.file, "line": item.line, "reason": reason, "text": text}


def _check_share(max_rejected: float) -> None:
    if not 0 <= max_rejected <= 1:
        raise ValueError(f"config.data.max_rejected must lie in [0, 1], got {max_rejected}.")


def _check_rejects(
    path: str | Path, accepted: int, rejects: list[Record], max_rejected: float, field: str
) -> None:
    total = accepted + len(rejects)
    if len(rejects) > max_rejected * total:
        places = "; ".join(_place(reject) for reject in rejects[:3])
        raise Unusable(
            f"{len(rejects)} of {total} records in {str(path)!r} cannot be used, more than the"
            f" share {max_rejected} that config.data.max_rejected allows. The first: {places}.",
            rejects,
        )
    if not accepted:
        raise Unusable(f"{str(path)!r} holds no usable record; change {field}.", rejects)


def _place(reject: Record) -> str:
    line = "" if reject["line"] is None else f":{reject['line']}"
    return f"{reject['file']}{line} ({reject['reason']})"
