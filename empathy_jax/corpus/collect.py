"""Sources to cleaned questions and answers, in as many processes as there are cores.

The leading process cuts the sources into chunks; the others read and clean them. The chunks come
back in their order, so the result does not depend on how many processes there are. A pair is one
(question, answer) as read, a question without an answer, or a value that cannot be read at all;
what a chunk holds is kept or rejected pair by pair, and the sum is asserted.
"""

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from empathy_jax import files
from empathy_jax.corpus import cleaning, readers, sample
from empathy_jax.corpus import records as records_lib
from empathy_jax.corpus.reading import formats
from empathy_jax.corpus.records import BadRecord, Record

FIELD = "config.corpus.sources"
SHOWN_CHARACTERS = 80  # of a rejected text
CHUNKS_PER_PROCESS = 3  # under way at a time: enough to keep every process busy

Submit = Callable[..., Future]


@dataclass
class Collected:
    """What came out of some chunks.

    Attributes:
      read: pairs.
      records: kept question records with their answers, in the order of reading; equal questions
        are not merged yet.
      rejected: a row per rejected pair.
      changed: what the repairing rules changed, by (rule, part, "texts" or "places" in them).
      encodings: of the files that are not plain UTF-8.
      notes: values by what is odd in them but no reason to reject them.
      skipped: files in no known format, by their endings.
    """

    read: int = 0
    records: list[Record] = field(default_factory=list)
    rejected: list[Record] = field(default_factory=list)
    changed: Counter = field(default_factory=Counter)
    encodings: dict[str, str] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)

    def add(self, other: "Collected") -> None:
        """Takes the other's parts in, behind its own."""
        self.read += other.read
        self.records += other.records
        self.rejected += other.rejected
        self.changed.update(other.changed)
        self.encodings.update(other.encodings)
        self.notes.update(other.notes)
        self.skipped.update(other.skipped)


def collect(
    path: str, rules: cleaning.Rules, require_answer: bool, submit: Submit, window: int
) -> Collected:
    """Reads and cleans one source.

    Args:
      path: file, folder, hub:owner/name, or "sample" (the embedded corpus in Chinese).
      rules: of the cleaning.
      require_answer: reject questions without an answer.
      submit, window: of `processes`.

    Raises:
      ValueError: when there is nothing to read there.
    """
    given = path != "sample"
    chunks = formats.chunks(path, FIELD) if given else _sample()
    found = Collected(skipped=formats.skipped(path) if given else Counter())
    tasks = ((chunk, rules, require_answer) for chunk in chunks)
    for part in _ordered(submit, clean_chunk, tasks, window):
        found.add(part)
    return found


def clean_chunk(chunk: formats.Chunk, rules: cleaning.Rules, require_answer: bool) -> Collected:
    """Reads a chunk and cleans its questions and answers; runs in any process."""
    parsed = readers.parse(chunk)
    found = Collected(notes=parsed.notes)
    found.read = len(parsed.rejects) + pair_count(parsed.questions)
    found.rejected = [{"stage": "read", **row} for row in parsed.rejects]
    for record, (file, line) in zip(parsed.questions, parsed.places, strict=True):
        record |= {"file": file, "line": line}
        _clean_record(record, rules, require_answer, found)
    check_sum("read and clean", found.read, found.records, found.rejected)
    _name_places(chunk.source, found)
    found.encodings = {_within(chunk.source, file): name for file, name in parsed.encodings.items()}
    return found


def _name_places(source: str, found: Collected) -> None:
    """Puts the name of the dump before those of its files."""
    for row in found.records + found.rejected:
        named_itself = row.get("source", row["file"]) != row["file"]
        row["file"] = _within(source, row["file"])
        if "source" in row and not named_itself:
            row["source"] = row["file"]


def _within(source: str, file: str) -> str:
    return file if file.partition("/")[0] == source else f"{source}/{file}"


def _sample() -> Iterator[formats.Chunk]:
    lines = "".join(files.dumps(record) + "\n" for record in sample.sample_questions("zh"))
    part = formats.Part("sample", ".jsonl", lines.encode("utf-8"))
    yield formats.Chunk("sample", (part,))


def pair_count(records: Iterable[Record]) -> int:
    """Pairs in question records: one per answer, one for a question without any."""
    return sum(len(record["answers"]) or 1 for record in records)


def check_sum(stage: str, read: int, records: Iterable[Record], rejected: list[Record]) -> None:
    """Asserts that no pair has been lost or made: read = kept + rejected."""
    kept = pair_count(records)
    assert read == kept + len(rejected), (
        f"{stage}: {read} read, {kept} kept, {len(rejected)} rejected"
    )


def reject(record: Record, stage: str, reason: str, part: str, text: str) -> Record:
    """A row of rejected.jsonl for one pair of a question record."""
    shown = text[:SHOWN_CHARACTERS] + ("..." if len(text) > SHOWN_CHARACTERS else "")
    row = {"stage": stage, "reason": reason, "file": record["file"], "line": record["line"]}
    return row | {"part": part, "text": shown}


def _clean_record(
    record: Record, rules: cleaning.Rules, require_answer: bool, found: Collected
) -> None:
    """Adds to `found` the cleaned record, or its rejected pairs, or some of each.

    Who wrote an answer is left out: nothing needs it, and it may be the name of a person.
    """
    pairs = max(1, len(record["answers"]))
    record |= _clean_labels(record, rules)
    question, reason = _clean_text(record["question"], "question", rules, None, found.changed)
    if reason is None and not record["answers"] and require_answer:
        reason = "no_answer"
    if reason is not None:
        row = reject(record, "clean", reason, "question", question)
        found.rejected += [dict(row) for _ in range(pairs)]
        return
    answers = []
    for answer in record["answers"]:
        text, reason = _clean_text(answer["text"], "answer", rules, question, found.changed)
        if reason is None:
            kept = {name: value for name, value in answer.items() if name != "author"}
            answers.append(kept | {"text": text})
        else:
            found.rejected.append(reject(record, "clean", reason, "answer", text))
    if record["answers"] and not answers:
        return
    found.records.append(record | {"question": question, "answers": answers})


def _clean_labels(record: Record, rules: cleaning.Rules) -> dict[str, str]:
    """The labels of a record, and the source that it names itself, without personal data."""
    names = ["topic", "subtopic"]
    if record["source"] != record["file"]:
        names.append("source")
    return {
        name: cleaning.without_personal_data(record[name], rules)
        for name in names
        if name in record
    }


def _clean_text(
    text: str, part: str, rules: cleaning.Rules, question: str | None, changed: Counter
) -> tuple[str, str | None]:
    """The cleaned text and the reason why it is rejected, if it is."""
    text, counts = cleaning.clean_text(text, part, rules)
    for rule, places in counts.items():
        changed[rule, part, "texts"] += 1
        changed[rule, part, "places"] += places
    try:
        text = records_lib.clean(text, part)
    except BadRecord:
        return text, "blank"
    return text, cleaning.reject_reason(text, part, rules, question)


@contextmanager
def processes(workers: int) -> Iterator[tuple[Submit, int]]:
    """Where chunks are worked on: `workers` other processes, or this one where that is 1.

    Yields:
      A function that starts a call and gives its future, and how many calls to have under way.

    Raises:
      OSError: when a process was killed, as the system does when memory runs out.
    """
    if workers == 1:
        yield _call, 1
        return
    # Spawned: a fork after JAX has started its threads may hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        yield pool.submit, CHUNKS_PER_PROCESS * workers
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {workers} worker processes was killed, perhaps because memory ran out; "
            "lower config.corpus.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable, *arguments: Any) -> Future:
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


def _end_with_parent() -> None:
    """Ends this process when the leading one is gone; it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ordered(
    submit: Submit, function: Callable, tasks: Iterable[tuple], window: int
) -> Iterator[Any]:
    """Results in the order of the tasks, of which no more than `window` are under way."""
    waiting: deque[Future] = deque()
    for task in tasks:
        waiting.append(submit(function, *task))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
