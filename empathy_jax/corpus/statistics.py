"""The figures of a corpus: what was read, kept and rejected, lengths, topics, splits."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from empathy_jax.corpus import topics
from empathy_jax.corpus.collect import Collected, pair_count
from empathy_jax.corpus.records import Record
from empathy_jax.corpus.topics import Assignment

# Upper edges double about every second bin: lengths are spread over three orders of magnitude.
LENGTH_EDGES = (
    0,
    25,
    50,
    75,
    100,
    150,
    200,
    300,
    400,
    600,
    800,
    1200,
    1600,
    2400,
    3200,
    4800,
    6400,
)
QUANTILES = (5, 25, 50, 75, 95)
UNASSIGNED = "unassigned"


def lengths(texts: Iterable[str]) -> dict[str, Any]:
    """Count, sum, extremes, mean and quantiles of lengths in characters, and their histogram.

    Returns:
      The figures; "histogram" has the counts of [edge, next edge) for LENGTH_EDGES, the last bin
      being open.
    """
    counts = np.fromiter((len(text) for text in texts), np.int64)
    if not counts.size:
        return {"count": 0, "characters": 0, "histogram": [0] * len(LENGTH_EDGES)}
    quantiles = np.percentile(counts, QUANTILES, method="nearest")
    bins = np.searchsorted(LENGTH_EDGES, counts, side="right") - 1
    return {
        "count": int(counts.size),
        "characters": int(counts.sum()),
        "min": int(counts.min()),
        "mean": round(float(counts.mean()), 1),
        "max": int(counts.max()),
        **{f"p{q}": int(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": np.bincount(bins, minlength=len(LENGTH_EDGES)).tolist(),
    }


def rule_of(row: Mapping[str, Any]) -> str:
    """The name a rejected pair is counted under: its reason without the particulars."""
    return row["reason"].partition(":")[0]


def describe(
    collected: Sequence[Collected],
    records: Sequence[Record],
    rejected: Sequence[Record],
    sides: Mapping[str, Sequence[Record]],
    english: Mapping[str, str],
) -> dict[str, Any]:
    """What stats.json says of the pairs, texts, topics and splits.

    Args:
      collected: per source, in order.
      records: the kept questions.
      rejected: rows of rejected.jsonl.
      sides: the records by split.
      english: names of the main topics in English.
    """
    answers = [answer for record in records for answer in record["answers"]]
    per_question = Counter(len(record["answers"]) for record in records)
    return {
        "pairs": {
            "read": sum(part.read for part in collected),
            "kept": pair_count(records),
            "rejected": len(rejected),
        },
        "questions": len(records),
        "answers": len(answers),
        "rejected": _nested(rejected),
        "changed": _changed(collected),
        "lengths": {
            "edges": list(LENGTH_EDGES),
            "question": lengths(record["question"] for record in records),
            "answer": lengths(answer["text"] for answer in answers),
        },
        "answers_per_question": {str(n): per_question[n] for n in sorted(per_question)},
        "topics": _topics(sides, english),
        "splits": {
            name: {"questions": len(side), "pairs": pair_count(side)}
            for name, side in sides.items()
        },
    }


def _nested(rejected: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Counts by stage and rule, the most frequent first."""
    stages: dict[str, Counter] = {}
    for row in rejected:
        stages.setdefault(row["stage"], Counter())[rule_of(row)] += 1
    return {stage: ordered(counts) for stage, counts in stages.items()}


def unknown_labels(
    records: Sequence[Record],
    assigned: Sequence[Assignment],
    label_mapping: Mapping[str, str | None],
) -> dict[str, int]:
    """The topics that sources gave and that were not understood, with their questions.

    What the mapping of `topics.assign` says to mean no topic was understood.
    """
    pairs = zip(records, assigned, strict=True)
    unknown = Counter(
        record["topic"] for record, found in pairs if found.by != "label" and "topic" in record
    )
    nothing = topics.meaning_nothing(unknown, label_mapping)
    return ordered({label: count for label, count in unknown.items() if label not in nothing})


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts, the largest first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _changed(collected: Sequence[Collected]) -> dict[str, dict[str, dict[str, int]]]:
    """By rule, the most frequent first, and part: texts that were changed, and places in them."""
    total = sum((part.changed for part in collected), Counter())
    texts: Counter[str] = Counter()
    for (rule, _, unit), count in total.items():
        texts[rule] += count if unit == "texts" else 0
    return {
        rule: {
            part: {unit: total[rule, part, unit] for unit in ("texts", "places")}
            for part in ("question", "answer")
        }
        for rule in ordered(texts)
    }


def _topics(sides: Mapping[str, Sequence[Record]], english: Mapping[str, str]) -> dict[str, Any]:
    """Questions by how their topic was found; by topic, with its sub topics and splits."""
    by: Counter[str] = Counter()
    main: dict[str, Counter] = {}
    split: dict[str, Counter] = {}
    for side, records in sides.items():
        for record in records:
            by[record["topic_by"]] += 1
            topic = record.get("topic", UNASSIGNED)
            main.setdefault(topic, Counter())[record.get("subtopic", UNASSIGNED)] += 1
            split.setdefault(topic, Counter(dict.fromkeys(sides, 0)))[side] += 1
    totals = ordered({topic: sum(counts.values()) for topic, counts in main.items()})
    return {
        "assigned_by": ordered(by),
        "main": {
            topic: {
                "english": english.get(topic, topic),
                "questions": total,
                "splits": dict(split[topic]),
                "subtopics": ordered(main[topic]),
            }
            for topic, total in totals.items()
        },
    }
