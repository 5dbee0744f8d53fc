"""Reading raw dumps of counselling questions, answers and chains, with all their dirt.

A path is "sample" (the embedded corpus), a file, or a folder of such files (read in the sorted
order of their names, subfolders too):

    *.jsonl  one JSON value a line: a question record, a chain record, or a dialogue
    *.json   one such value, or a list of them

A dialogue is a list of messages {"role", "content"}, bare or under "messages" (ShareGPT's
"conversations" of {"from", "value"} too). Its question is the first message of the client; its
answer is all messages of the counsellor, joined by newlines. Questions with identical text become
one record with all answers.

What cannot be used is never dropped in silence: it is returned as a reject
{"file", "line" (None for a whole file), "reason", "text" (its beginning)}.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from empathy_jax.corpus import records as records_lib
from empathy_jax.corpus import sample
from empathy_jax.corpus.records import BadRecord, Record

_CLIENT_ROLES = ("client", "user", "human")
_COUNSELOR_ROLES = ("counselor", "assistant", "gpt")
_SUFFIXES = (".jsonl", ".json")
_SHOWN_CHARACTERS = 80


def read_questions(
    path_or_sample: str | Path, language: str = "zh", max_rejected: float = 0.1
) -> tuple[list[Record], list[Record]]:
    """Question records from a dump; a chain record counts as a question with one answer.

    Args:
      path_or_sample: "sample", a file or a folder.
      language: of the sample, "zh" or "en"; files are read whatever their language.
      max_rejected: largest share of the values read that may be rejects, in [0, 1].

    Returns:
      The records in the order of first sight, and the rejects.

    Raises:
      ValueError: when there is nothing to read, nothing usable, or too many rejects.
    """
    if str(path_or_sample) == "sample":
        return sample.sample_questions(language), []
    found: dict[str, Record] = {}

    def accept(value: Any, source: str) -> None:
        record = _question(value, source)
        first = found.setdefault(record["id"], record)
        if first is not record:
            records_lib.merge_answers(first, record["answers"])
            for name in ("topic", "subtopic"):
                if name in record:
                    first.setdefault(name, record[name])

    rejects = _read(Path(path_or_sample), accept, "config.data.questions", max_rejected)
    return list(found.values()), rejects


def read_chains(
    path_or_sample: str | Path, language: str = "zh", max_rejected: float = 0.1
) -> tuple[list[Record], list[Record]]:
    """Chain records from a dump; of several with the same question the first is kept.

    Args, Returns, Raises: as `read_questions`; the later ones of equal questions are rejects
    ("duplicate").
    """
    if str(path_or_sample) == "sample":
        return sample.sample_chains(language), []
    found: dict[str, Record] = {}

    def accept(value: Any, source: str) -> None:
        record = records_lib.chain_record(_mapping(value), _source(value, source))
        if record["id"] in found:
            raise BadRecord("duplicate")
        found[record["id"]] = record

    rejects = _read(Path(path_or_sample), accept, "config.data.chains", max_rejected)
    return list(found.values()), rejects


def _read(
    path: Path, accept: Callable[[Any, str], None], field: str, max_rejected: float
) -> list[Record]:
    """Hands every value under `path` to `accept`; checks the share of rejects and returns them."""
    if not 0 <= max_rejected <= 1:
        raise ValueError(f"config.data.max_rejected must lie in [0, 1], got {max_rejected}.")
    accepted = 0
    rejects: list[Record] = []
    for file, name in _files(path, field):
        for line, raw, value in _values(file):
            try:
                if isinstance(value, BadRecord):
                    raise value
                accept(value, name)
                accepted += 1
            except BadRecord as error:
                text = raw[:_SHOWN_CHARACTERS] + ("..." if len(raw) > _SHOWN_CHARACTERS else "")
                rejects.append({"file": name, "line": line, "reason": str(error), "text": text})
    total = accepted + len(rejects)
    if len(rejects) > max_rejected * total:
        places = "; ".join(_place(reject) for reject in rejects[:3])
        raise ValueError(
            f"{len(rejects)} of {total} records in {str(path)!r} cannot be used, more than the"
            f" share {max_rejected} that config.data.max_rejected allows. The first: {places}."
        )
    if not accepted:
        raise ValueError(f"{str(path)!r} holds no usable record; change {field}.")
    return rejects


def _place(reject: Record) -> str:
    line = "" if reject["line"] is None else f":{reject['line']}"
    return f"{reject['file']}{line} ({reject['reason']})"


def _files(path: Path, field: str) -> list[tuple[Path, str]]:
    """The files to read with their names, sorted by name; names are relative to a folder."""
    if path.is_dir():
        files = [(file.relative_to(path).as_posix(), file) for file in path.rglob("*")]
        kept = sorted(
            (name, file)
            for name, file in files
            if file.suffix in _SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not kept:
            raise ValueError(
                f"The folder {str(path)!r} holds no {' or '.join(_SUFFIXES)} file; change {field}."
            )
        return [(file, name) for name, file in kept]
    if not path.is_file():
        raise ValueError(
            f'There is no file or folder {str(path)!r}; set {field} to one, or to "sample".'
        )
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{str(path)!r} must end in {' or '.join(_SUFFIXES)}, got {path.suffix!r};"
            f" change {field}."
        )
    return [(path, path.name)]


def _values(file: Path) -> Iterator[tuple[int | None, str, Any]]:
    """The (line, raw text, value) of a file; the value is a BadRecord where none could be read."""
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if file.suffix == ".jsonl":
        # Only \n ends a line: str.splitlines would cut texts at U+2028 and the like.
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                yield number, line.decode("utf-8", "replace"), _json(line)
        return
    raw, value = data.decode("utf-8", "replace"), _json(data)
    if isinstance(value, list) and not _is_dialogue(value):
        for part in value:
            yield None, repr(part), part
    else:
        yield None, raw, value


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRecord("not UTF-8")
    except json.JSONDecodeError as error:
        return BadRecord(f"not JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:
        return BadRecord(f"not JSON: {type(error).__name__}")


def _is_dialogue(value: list[Any]) -> bool:
    return not value or all(isinstance(part, dict) and _role(part) is not None for part in value)


def _role(message: dict[str, Any]) -> Any:
    return message.get("role", message.get("from"))


def _question(value: Any, source: str) -> Record:
    if isinstance(value, list):
        return _dialogue(value, source)
    source = _source(_mapping(value), source)
    for name in ("messages", "conversations"):
        if name in value:
            return _dialogue(value[name], source)
    if "question" not in value:
        raise BadRecord("neither question nor messages")
    answers = value.get("answers", [value["answer"]] if "answer" in value else [])
    if not isinstance(answers, list):
        raise BadRecord(f"answers must be a list, got {type(answers).__name__}")
    return records_lib.question_record(
        value["question"],
        [{"text": answer} if isinstance(answer, str) else _mapping(answer) for answer in answers],
        source,
        value.get("topic"),
        value.get("subtopic"),
    )


def _dialogue(messages: Any, source: str) -> Record:
    """A question record with one answer from the messages of a dialogue."""
    if not isinstance(messages, list):
        raise BadRecord(f"messages must be a list, got {type(messages).__name__}")
    if not messages:
        raise BadRecord("empty dialogue")
    client: list[str] = []
    counselor: list[str] = []
    for message in messages:
        role = _role(_mapping(message))
        content = message.get("content", message.get("value"))
        if not isinstance(content, str):
            raise BadRecord(f"content must be text, got {type(content).__name__}")
        if role in _CLIENT_ROLES:
            client.append(content)
        elif role in _COUNSELOR_ROLES:
            counselor.append(content)
        elif role != "system":
            raise BadRecord(f"unknown role {role!r:.40}")
    if len(messages) == 1:
        raise BadRecord("one message only")
    if not client:
        raise BadRecord("no message of a client")
    answer = "\n".join(text.strip() for text in counselor if text.strip())
    if not answer:
        raise BadRecord("no answer of a counsellor")
    return records_lib.question_record(client[0], [{"text": answer}], source)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRecord(f"must be a JSON object, got {type(value).__name__}")
    return value


def _source(value: dict[str, Any], name: str) -> str:
    given = value.get("source")
    return name if given is None else records_lib.clean(given, "source")
