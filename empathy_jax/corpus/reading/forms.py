"""The forms in which people keep questions and answers, each made a question record.

    a dialogue   a list of messages, bare or under "messages" or ShareGPT's "conversations", as
                 {"role", "content"}, {"from", "value"}, {"speaker", "text"} or {"input", "output"};
                 as `prompt` and `completion`; as the texts "[seeker]..." and "[supporter]..."
    a question   with a list of answers (texts or objects), or without any
    a row        with one answer to a question; the question may be in a title and a text

with names out of `columns`. The question of a dialogue is the first message of the client; its
answer is all messages of the counsellor, joined by newlines.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from empathy_jax.corpus import records as records_lib
from empathy_jax.corpus.reading import columns, speakers
from empathy_jax.corpus.records import BadRecord, Record

_NO_NUMBER = ("", "-", "none", "null", "nan", "n/a", "na")

Given = dict[str, Any]  # role of a column: value


def single_values(value: Any) -> Iterator[Any]:
    """The values in a list that is no dialogue, or in an object like {"train": [...]}; or itself."""
    if isinstance(value, list) and not _is_dialogue(value):
        yield from value
        return
    if isinstance(value, dict) and not columns.roles(tuple(value)):
        inner = [part for part in value.values() if isinstance(part, list | dict)]
        parts = [p for part in inner for p in (part if isinstance(part, list) else [part])]
        if parts and all(isinstance(part, list | dict) for part in parts):
            yield from parts
            return
    yield value


def question(value: Any, source: str, notes: Counter[str]) -> tuple[Record | None, list[BadRecord]]:
    """A question record with its answers as they come, and what is wrong with the other answers.

    Args:
      value: one out of `single_values`.
      source: where it comes from, if it does not say so itself.
      notes: counts "same_role_twice" and "blank_message" dialogues, and labels and scores that
        cannot be used and were left out, such as "topic_left_out".

    Returns:
      The record, None when none of its answers can be used; and one problem per bad answer.

    Raises:
      BadRecord: when nothing of it can be used.
    """
    if isinstance(value, list):
        return _dialogue(value, source, {}, notes), []
    source = _label({"source": mapping(value).get("source")}, "source", notes) or source
    roles = columns.roles(tuple(value))
    given = {role: value[name] for role, name in roles.items() if value[name] is not None}
    messages = _messages(given)
    if messages is not None:
        return _dialogue(messages, source, given, notes), []
    return _with_answers(_question_text(given), _answers(given, notes), source, given, notes)


def mapping(value: Any) -> dict[str, Any]:
    """The value itself, if it is an object."""
    if not isinstance(value, dict):
        raise BadRecord(f"must be a JSON object, got {type(value).__name__}")
    return value


def source_of(value: dict[str, Any], name: str) -> str:
    """The source that a value names, else `name`."""
    given = value.get("source")
    return name if given in (None, "") else records_lib.clean(given, "source")


def _with_answers(
    text: Any, answers: list[Any], source: str, given: Given, notes: Counter[str]
) -> tuple[Record | None, list[BadRecord]]:
    record = records_lib.question_record(text, [], source, **_topics(given, notes))
    problems = []
    for answer in answers:
        try:
            # One by one: equal answers are two pairs that were read.
            read = records_lib.question_record(text, [_answer(answer, notes)], "")
            record["answers"] += read["answers"]
        except BadRecord as problem:
            problems.append(problem)
    return (record if record["answers"] or not answers else None), problems


def _messages(given: Given) -> Any:
    """The messages of a dialogue in any of its forms, None where the value is no dialogue."""
    if "messages" in given:
        return given["messages"]
    prompt, completion = given.get("question"), given.get("answer")
    if isinstance(prompt, list):
        reply = [{"role": "assistant", "content": completion}]
        return prompt + (completion if isinstance(completion, list) else reply)
    if isinstance(prompt, str) and isinstance(completion, str):
        said, replied = speakers.inline_turns(prompt), speakers.inline_turns(completion)
        if said and replied:
            return [{"role": role, "content": text} for role, text in said + replied]
    return None


def _dialogue(messages: Any, source: str, given: Given, notes: Counter[str]) -> Record:
    """A question record with one answer from the messages of a dialogue."""
    if not isinstance(messages, list):
        raise BadRecord(f"messages must be a list, got {type(messages).__name__}")
    if not messages:
        raise BadRecord("empty dialogue")
    turns = [turn for message in messages for turn in _turns(mapping(message))]
    client = [text for role, text in turns if role == "client"]
    answer = "\n".join(text.strip() for role, text in turns if role == "counselor" and text.strip())
    if len(turns) == 1:
        raise BadRecord("one message only")
    if not client:
        raise BadRecord("no message of a client")
    if not answer:
        raise BadRecord("no answer of a counsellor")
    answers = [{"text": answer} | _credits(given, notes)]
    record = records_lib.question_record(client[0], answers, source, **_topics(given, notes))
    said = [role for role, _ in turns if role != "system"]
    notes["same_role_twice"] += any(a == b for a, b in itertools.pairwise(said))
    notes["blank_message"] += not all(text.strip() for _, text in turns)
    return record


def _turns(message: dict[str, Any]) -> list[speakers.Turn]:
    """The (role, text) of a message; of {"input", "output"} the two."""
    role = _role(message)
    if role is None and ("input" in message or "output" in message):
        pair = (("client", message.get("input")), ("counselor", message.get("output")))
        return [(role, _content(text)) for role, text in pair if text not in (None, "")]
    known = speakers.ROLES.get(role.casefold()) if isinstance(role, str) else None
    content = message.get("content", message.get("value", message.get("text")))
    text = _content(content)
    if known in (None, "other"):
        raise BadRecord(f"unknown role: {role!r:.40}")
    return [(known, text)]


def _content(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"content must be text, got {type(value).__name__}")
    return value


def _is_dialogue(value: list[Any]) -> bool:
    return not value or all(isinstance(part, dict) and _role(part) is not None for part in value)


def _role(message: dict[str, Any]) -> Any:
    return message.get("role", message.get("from", message.get("speaker")))


def _question_text(given: Given) -> Any:
    """The question with its title above and its description below, as far as they differ."""
    names = ["title", "question", "detail"]
    if not given.keys() & {"title", "question"}:
        raise BadRecord("neither question nor messages")
    if not given.keys() & {"question", "detail"}:
        names.append("body")
    parts = [given[name] for name in names if name in given]
    if len(parts) == 1:
        return parts[0]
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise BadRecord(f"question must be text, got {type(part).__name__}")
        text = part.strip()
        # Forums make the beginning of a text its title.
        if texts and text.startswith(texts[-1].rstrip(".…")):
            texts.pop()
        if text and text not in texts:
            texts.append(text)
    return "\n".join(texts)


def _answers(given: Given, notes: Counter[str]) -> list[Any]:
    """The answers of a question; beside one answer, `comments` and the like may be their number."""
    answers = given.get("answers")
    if isinstance(answers, list):
        return answers
    if "answer" in given:
        return [{"text": given["answer"]} | _credits(given, notes)]
    if answers is not None:
        raise BadRecord(f"answers must be a list, got {type(answers).__name__}")
    return []


def _answer(value: Any, notes: Counter[str]) -> dict[str, Any]:
    """An answer out of a list as `records.question_record` takes it."""
    if isinstance(value, str):
        return {"text": value}
    names = tuple(mapping(value))
    roles = {role: value[name] for role, name in columns.roles(names).items()}
    text = columns.answer_text(names)
    return _credits(roles, notes) | ({} if text is None else {"text": value[text]})


def _credits(given: Given, notes: Counter[str]) -> dict[str, Any]:
    """Score and author of an answer, where they can be used."""
    return {"score": _score(given, notes), "author": _label(given, "author", notes)}


def _topics(given: Given, notes: Counter[str]) -> dict[str, str | None]:
    return {name: _label(given, name, notes) for name in ("topic", "subtopic")}


def _score(given: Given, notes: Counter[str]) -> float | None:
    """A score, in a table a text; None for a blank one, and for what is no number, which is noted."""
    value = given.get("score")
    if isinstance(value, str):
        value = None if value.strip().casefold() in _NO_NUMBER else _number(value)
    if value is None or records_lib.is_score(value):
        return value
    notes["score_left_out"] += 1
    return None


def _number(text: str) -> Any:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _label(given: Given, role: str, notes: Counter[str]) -> str | None:
    """A topic, name or source, several joined by commas; numbers become text.

    None for a blank one, and for what is neither, which is noted.
    """
    value = given.get(role)
    parts = value if isinstance(value, list) else [] if value is None else [value]
    if all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
        text = ", ".join(map(str, parts))
        try:
            return records_lib.clean(text, role) if text.strip() else None
        except BadRecord:  # half a surrogate pair
            pass
    notes[f"{role}_left_out"] += 1
    return None
