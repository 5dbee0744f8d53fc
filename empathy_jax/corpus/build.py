"""From raw dumps to a corpus: read, clean, remove copies, give topics, split, account for it.

The unit of accounting is the pair (see `collect`); read = kept + rejected is asserted at every
stage. What is written depends on the sources and the settings alone, not on the number of processes.
"""

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from empathy_jax import files
from empathy_jax.corpus import (
    card,
    cleaning,
    collect,
    duplicates,
    figures,
    splits,
    statistics,
    topics,
)
from empathy_jax.corpus import records as records_lib
from empathy_jax.corpus.collect import Collected, check_sum, pair_count, reject
from empathy_jax.corpus.reading import formats
from empathy_jax.corpus.records import Record

# What rejects besides the rules of `cleaning`, by name.
RULES = {
    "no_answer": "a question without an answer",
    "blank": "nothing is left of the text",
    "exact_duplicate": "the text of an answer that was read before, under any question",
    "near_duplicate": "an answer much like one that was read before",
    splits.ACROSS_SPLITS: "a question much like one on a side that is held out more strictly",
}

_STAGED = ".staged"  # where a build is written before any of it is put in its place

Embed = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Source:
    """A dump: a file, a folder or hub:owner/name, and the licence it is under as stated."""

    path: str
    licence: str = ""


@dataclass(frozen=True)
class Settings:
    """What a build does.

    Attributes:
      clean: switches and limits of the cleaning.
      require_answer: reject questions that come without an answer.
      near_duplicates: remove near copies of answers, keep near copies of questions on one side.
      near_duplicate_threshold: Jaccard similarity from which two texts are near copies.
      topics: YAML file of the taxonomy; empty: ours.
      topic_mapping: YAML file from the sources' own labels to topics; empty: none.
      topic_threshold: cosine below which a question stays unassigned.
      validation_fraction, test_fraction: of the questions.
      workers: processes; 0: one per core, 1: this one alone.
    """

    clean: cleaning.Rules = field(default_factory=cleaning.Rules)
    require_answer: bool = True
    near_duplicates: bool = True
    near_duplicate_threshold: float = 0.8
    topics: str = ""
    topic_mapping: str = ""
    topic_threshold: float = 0.56
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    workers: int = 0


@dataclass(frozen=True)
class Corpus:
    """What a build comes to.

    Attributes:
      records: the questions with their answers, in the order of reading.
      by_side: the same by split.
      rejected: a row per rejected pair.
      stats: what stats.json holds.
    """

    records: list[Record]
    by_side: dict[str, list[Record]]
    rejected: list[Record]
    stats: dict


def build(
    sources: Sequence[Source], folder: Path, settings: Settings, embed: Embed | None = None
) -> dict:
    """Builds one corpus of all sources and writes it to `folder`.

    Args:
      sources, settings, embed: see `assemble`.
      folder: gets questions.jsonl, rejected.jsonl, splits/, stats.json, card.md and figures/; all of
        them, or none where something fails on the way.

    Returns:
      What stats.json holds.

    Raises:
      ValueError: as `assemble`.
      OSError: when the disk is full or a process was killed.
    """
    corpus = assemble(sources, settings, embed)
    staged = folder / _STAGED
    shutil.rmtree(staged, ignore_errors=True)  # of a build that was killed
    try:
        _write(corpus, staged)
        _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return corpus.stats


def _write(corpus: Corpus, folder: Path) -> None:
    (folder / "splits").mkdir(parents=True)
    files.write_jsonl(folder / "questions.jsonl", corpus.records)
    files.write_jsonl(folder / "rejected.jsonl", corpus.rejected)
    for name, side in corpus.by_side.items():
        files.write_jsonl(folder / "splits" / f"{name}.jsonl", side)
    files.write_json(folder / "stats.json", corpus.stats)
    pictures = figures.draw(corpus.stats, folder / "figures")
    rules = RULES | {name: description for name, _, description in cleaning.RULES}
    files.write_text(folder / "card.md", card.render(corpus.stats, rules, pictures))


def _publish(staged: Path, folder: Path) -> None:
    """Puts written files in their places; figures of an earlier build that are not made anew go."""
    made = sorted(file.relative_to(staged) for file in staged.rglob("*") if file.is_file())
    for name in made:
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(staged / name, folder / name)
    for figure in (folder / "figures").glob("*.png"):
        if figure.relative_to(folder) not in made:
            figure.unlink()


def assemble(sources: Sequence[Source], settings: Settings, embed: Embed | None = None) -> Corpus:
    """The corpus of all sources.

    Args:
      sources: read in this order; of copies the first is kept.
      settings: what to do.
      embed: unit vectors [N, D] of texts, for topics of questions without a label; None: labels only.

    Raises:
      ValueError: for a source that is missing or empty, a taxonomy that cannot be used, or when no
        pair is left.
      OSError: when a process was killed.
    """
    if not sources:
        raise ValueError(f"{collect.FIELD} is empty; name files, folders or hub:owner/name.")
    fractions = settings.validation_fraction, settings.test_fraction
    taxonomy = topics.load_taxonomy(settings.topics)
    mapping = topics.load_mapping(settings.topic_mapping)
    # On nothing: what they refuse should not be found out after hours of reading.
    splits.split_of("", *fractions)
    topics.assign([], taxonomy, mapping, None, settings.topic_threshold)
    duplicates.near_duplicate_groups([], settings.near_duplicate_threshold)

    with collect.processes(settings.workers or os.cpu_count() or 1) as (submit, window):
        collected = [
            collect.collect(source.path, settings.clean, settings.require_answer, submit, window)
            for source in sources
        ]
        records, rejected = merge([record for part in collected for record in part.records])
        groups = np.arange(len(records))
        if settings.near_duplicates and records:
            records, near, groups = _near_copies(records, settings.near_duplicate_threshold, submit)
            rejected += near
    near_questions = len(groups) - len(set(groups.tolist()))
    records, sides, across = _split(records, groups, fractions)
    rejected = [row for part in collected for row in part.rejected] + rejected + across
    check_sum("build", sum(part.read for part in collected), records, rejected)
    if not records:
        raise ValueError(_nothing_left(sources, rejected))

    assigned = topics.assign(records, taxonomy, mapping, embed, settings.topic_threshold)
    unknown = statistics.unknown_labels(records, assigned, mapping)
    records = [_finished(*pair) for pair in zip(records, assigned, strict=True)]
    by_side: dict[str, list[Record]] = {name: [] for name in splits.SPLITS}
    for record, side in zip(records, sides, strict=True):
        by_side[side].append(record)
    english = {topic.name: topic.english for topic in taxonomy.topics}
    stats = statistics.describe(collected, records, rejected, by_side, english)
    stats["topics"]["labels_not_understood"] = unknown
    stats |= _circumstances(sources, settings, collected, near_questions)
    return Corpus(records, by_side, rejected, stats)


def merge(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """One record per question, in the order of first sight, without answers seen before.

    An answer that stands under another question already is a copy too: it would be right for both,
    and the splits could not keep it on one side. A question without answers is a copy of the same
    question with or without some.

    Returns:
      The records, whose answers have their place ("file", "line", and "order" of reading); and the
      rejected pairs.
    """
    merged: dict[str, Record] = {}
    seen: set[str] = set()
    rejected = []
    for record in records:
        fresh = []
        for answer in record["answers"]:
            answer |= {"order": len(seen), "file": record["file"], "line": record["line"]}
            if answer["text"] in seen:
                rejected.append(_copy("exact_duplicate", answer))
            else:
                fresh.append(answer)
                seen.add(answer["text"])
        if record["answers"] and not fresh:
            continue
        own = merged.get(record["question"])
        if own is None:
            merged[record["question"]] = record | {"answers": fresh}
            continue
        if not record["answers"]:
            rejected.append(_copy("exact_duplicate", record))
        elif not own["answers"]:
            rejected.append(_copy("exact_duplicate", own))
        own["answers"] += fresh
        if "topic" not in own:
            own |= {name: record[name] for name in ("topic", "subtopic") if name in record}
    return list(merged.values()), rejected


def _near_copies(
    records: Sequence[Record], threshold: float, submit: collect.Submit
) -> tuple[list[Record], list[Record], np.ndarray]:
    """Removes near copies of earlier answers, and groups near copies among the questions left.

    Returns:
      The records that still have what they came with, the rejected pairs, and the group of each
      record: the index of the first record of the group.
    """
    answers = [answer for record in records for answer in record["answers"]]
    answers.sort(key=lambda answer: answer["order"])
    texts = [answer["text"] for answer in answers]
    questions = [record["question"] for record in records]
    # Side by side: each takes one core.
    futures = [
        submit(duplicates.near_duplicate_groups, part, threshold) for part in (texts, questions)
    ]
    answer_groups, question_groups = (future.result() for future in futures)
    first = {answers[place]["order"] for place in set(answer_groups.tolist())}
    kept, rejected, groups = [], [], []
    for record, group in zip(records, question_groups.tolist(), strict=True):
        own = [answer for answer in record["answers"] if answer["order"] in first]
        copies = [answer for answer in record["answers"] if answer["order"] not in first]
        rejected += [_copy("near_duplicate", answer) for answer in copies]
        if own or not record["answers"]:
            kept.append(record | {"answers": own})
            groups.append(group)
    check_sum("near copies", pair_count(records), kept, rejected)
    return kept, rejected, _first_indices(groups)


def _first_indices(labels: Sequence[int]) -> np.ndarray:
    """For each label the index of its first occurrence."""
    first: dict[int, int] = {}
    return np.array(
        [first.setdefault(label, index) for index, label in enumerate(labels)], np.int64
    )


def _split(
    records: Sequence[Record], groups: np.ndarray, fractions: tuple[float, float]
) -> tuple[list[Record], list[str], list[Record]]:
    """The records that have a side, their sides, and the rejected pairs of the others."""
    sides = splits.assign_splits(records, groups.tolist(), *fractions)
    rejected = [
        _copy(splits.ACROSS_SPLITS, record | pair)
        for record, side in zip(records, sides, strict=True)
        if side is None
        for pair in record["answers"] or [{}]
    ]
    kept = [record for record, side in zip(records, sides, strict=True) if side is not None]
    check_sum("splits", pair_count(records), kept, rejected)
    return kept, [side for side in sides if side is not None], rejected


def _copy(reason: str, value: Record) -> Record:
    """The row of rejected.jsonl for a pair: for an answer, or for a question with its place."""
    part, text = ("question", "question") if "question" in value else ("answer", "text")
    return reject(value, "copies", reason, part, value[text])


def _nothing_left(sources: Sequence[Source], rejected: Sequence[Record]) -> str:
    """Why there is no corpus, with the rules that took the most."""
    counts = Counter(f"{row['stage']}: {statistics.rule_of(row)}" for row in rejected)
    most = ", ".join(f"{rule} ({count:,})" for rule, count in counts.most_common(3))
    paths = ", ".join(repr(source.path) for source in sources)
    return (
        f"nothing is left of {len(rejected):,} pairs read from {paths}; rejected by {most or 'none'}; "
        f"change {collect.FIELD}, or the rules in config.corpus.clean."
    )


def _finished(record: Record, assignment: topics.Assignment) -> Record:
    """The record as it is written: ids from the cleaned texts, the topic and how it was found."""
    made = records_lib.question_record(
        record["question"],
        record["answers"],
        record["source"],
        assignment.topic,
        assignment.subtopic,
    )
    made["topic_by"] = assignment.by
    if assignment.similarity is not None:
        made["topic_similarity"] = round(assignment.similarity, 4)
    return made


def _circumstances(
    sources: Sequence[Source],
    settings: Settings,
    collected: Sequence[Collected],
    near_questions: int,
) -> dict:
    """What stats.json says of the sources and of how the corpus was made."""
    values = dataclasses.asdict(settings)
    del values["workers"]  # what is written does not depend on it
    return {
        "sources": [
            {
                "path": formats.shown_name(source.path),
                "licence": source.licence,
                "read": part.read,
                "rejected": len(part.rejected),
                "cleaned": pair_count(part.records),
                "notes": dict(sorted(part.notes.items())),
                "skipped_files": dict(sorted(part.skipped.items())),
                "not_utf8": dict(sorted(part.encodings.items())),
            }
            for source, part in zip(sources, collected, strict=True)
        ],
        "near_copies": {
            "looked_for": settings.near_duplicates,
            "threshold": settings.near_duplicate_threshold,
            "questions_like_an_earlier_one": near_questions,
        },
        "guarantee": splits.GUARANTEE if settings.near_duplicates else splits.HASHED,
        "settings": values,
    }
