"""Question and chain records: their shape, their ids, and what makes one unusable.

    question  {"id", "question", "topic"?, "subtopic"?,
               "answers": [{"id", "text", "score"?, "author"?}], "source"}
    chain     {"id", "question", "L1", "L2", "L3", "L4", "answer", "teacher"?, "source"}

Texts are in NFC without outer white space. Ids are derived from the texts, so two builds of one
dump agree: a chain has that of its question, further chains of the same question have their own.
"""

import hashlib
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from empathy_jax import chain_of_empathy

Record = dict[str, Any]


class BadRecord(ValueError):
    """A record cannot be used; the message is the reason.

    What stands before its first colon is counted and published: nothing of the record may.
    """


def content_id(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the NFC text."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8")).hexdigest()[:16]


def clean(value: Any, name: str) -> str:
    """The text in NFC without outer white space.

    Raises:
      BadRecord: when the value is no text, blank, or not valid Unicode (half a surrogate pair).
    """
    if not isinstance(value, str):
        raise BadRecord(f"{name} must be text, got {type(value).__name__}")
    text = unicodedata.normalize("NFC", value).strip()
    if not text:
        raise BadRecord(f"{name} is blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"{name} is not valid Unicode") from error
    return text


def question_record(
    question: Any,
    answers: Iterable[Mapping[str, Any]],
    source: str,
    topic: Any = None,
    subtopic: Any = None,
) -> Record:
    """A question record; answers with one and the same text become one, the first.

    Args:
      question: the text.
      answers: mappings with "text" and, if known, "score" and "author".
      source: where the record comes from.
      topic, subtopic: None where unknown.

    Raises:
      BadRecord: when a text or a score is missing or of the wrong type.
    """
    question = clean(question, "question")
    record: Record = {"id": content_id(question), "question": question}
    for name, value in (("topic", topic), ("subtopic", subtopic)):
        if value is not None:
            record[name] = clean(value, name)
    record["answers"] = []
    merge_answers(record, [_answer(question, answer) for answer in answers])
    return record | {"source": source}


def merge_answers(record: Record, answers: Iterable[Record]) -> None:
    """Adds to a question record the answers that it does not have yet."""
    known = {answer["id"] for answer in record["answers"]}
    for answer in answers:
        if answer["id"] not in known:
            known.add(answer["id"])
            record["answers"].append(answer)


def chain_record(value: Mapping[str, Any], source: str) -> Record:
    """A chain record from a mapping with question, L1..L4 and answer.

    Raises:
      BadRecord: when a text is missing, of the wrong type, or holds a tag of the format.
    """
    names = (*chain_of_empathy.LAYERS, "answer")
    question = clean(_field(value, "question"), "question")
    texts = {name: clean(_field(value, name), name) for name in names}
    try:
        chain_of_empathy.render(chain_of_empathy.Chain(**texts))
    except ValueError as error:
        raise BadRecord(str(error)) from error
    record = {"id": content_id(question), "question": question} | texts
    if value.get("teacher") is not None:
        record["teacher"] = clean(value["teacher"], "teacher")
    return record | {"source": source}


def chain_id(record: Record) -> str:
    """An id of a chain record by its question and its texts: several may share a question."""
    fields = (*chain_of_empathy.LAYERS, "answer")
    chain = chain_of_empathy.Chain(*(record[name] for name in fields))
    return content_id(record["question"] + "\n" + chain_of_empathy.render(chain))


def _answer(question: str, value: Mapping[str, Any]) -> Record:
    text = clean(_field(value, "text"), "answer")
    answer: Record = {"id": content_id(question + "\n" + text), "text": text}
    score = value.get("score")
    if score is not None:
        if not is_score(score):
            raise BadRecord(f"score must be a finite number: {score!r:.40}")
        answer["score"] = score
    if value.get("author") is not None:
        answer["author"] = clean(value["author"], "author")
    return answer


def is_score(value: Any) -> bool:
    """Whether a value is a number that a float can hold; not for a number that is not finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _field(value: Mapping[str, Any], name: str) -> Any:
    if name not in value:
        raise BadRecord(f"{name} is missing")
    return value[name]
