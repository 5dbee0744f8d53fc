"""The card of a corpus: what it is made of, what was done to it, and what it must not be used for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from empathy_jax.corpus.splits import SPLITS

NOT_FOR = (
    "Giving people in distress advice without a person who answers for it: neither the texts nor a"
    " model trained on them replace a counsellor, a physician or an emergency service.",
    "Diagnosis, choice of treatment or medication, or a judgement of how great a person's risk is.",
    "Finding out who wrote a text. Placeholders hide what the rules below recognise; what they do"
    " not recognise is still there.",
    "Profiling, advertising, insurance, hiring, or any decision about a person.",
    "Passing the texts on further than the licence of each source allows. rejected.jsonl holds"
    " texts that were removed for a reason: it is for checking the rules, not for publication.",
)


def render(
    stats: Mapping[str, Any],
    rules: Mapping[str, str],
    pictures: Sequence[str],
) -> str:
    """The card as Markdown.

    Args:
      stats: what stats.json holds.
      rules: description of each rule, by name.
      pictures: file names in figures/.
    """
    pairs = stats["pairs"]
    parts = [
        "# Corpus card",
        "Written by the phase `corpus` of empathy_jax from what it counted; `stats.json` has the"
        " same figures for programs.",
        f"{stats['questions']:,} questions with {stats['answers']:,} answers. A pair is one question"
        " with one answer as it was read; a question without an answer is one pair, and so is a"
        f" value that could not be read: **{pairs['read']:,} read = {pairs['kept']:,} kept +"
        f" {pairs['rejected']:,} rejected**.",
        "## Sources",
        _table(
            ("source", "licence", "pairs read", "left after cleaning", "rejected"), _sources(stats)
        ),
        "Licences are those stated by who ran the build; they were not checked. Copies are taken out"
        " after cleaning, over all sources together.",
        _encodings(stats["sources"]),
        _skipped(stats["sources"]),
        _notes(stats["sources"]),
        "## What was rejected",
        _rejected(stats["rejected"], rules),
        "Every rejected pair is a line of `rejected.jsonl` with its rule, its place and the beginning"
        " of the text.",
        "## What was repaired or replaced",
        _changed(stats["changed"], rules),
        "Counted in all texts that were read, also those rejected later.",
        _copies(stats["near_copies"]),
        "## Lengths in characters",
        _lengths(stats["lengths"]),
        "## Topics",
        *_topics(stats["topics"]),
        "## Splits",
        _table(
            ("split", "questions", "pairs"),
            [(name, side["questions"], side["pairs"]) for name, side in stats["splits"].items()],
        ),
        stats["guarantee"],
        "## What this corpus must not be used for",
        "\n".join(f"- {line}" for line in NOT_FOR),
        "## Figures",
        "\n".join(f"![{name.removesuffix('.png')}](figures/{name})" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sources(stats: Mapping[str, Any]) -> list[tuple]:
    return [
        (
            f"`{source['path']}`",
            source["licence"] or "not stated",
            source["read"],
            source["cleaned"],
            source["rejected"],
        )
        for source in stats["sources"]
    ]


def _encodings(sources: Sequence[Mapping[str, Any]]) -> str:
    others = {file: name for source in sources for file, name in source["not_utf8"].items()}
    if not others:
        return "Encodings found: all files are UTF-8."
    lines = [f"- `{_plain(file)}`: {name}" for file, name in others.items()]
    return "Encodings found: UTF-8, but for these files:\n\n" + "\n".join(lines)


def _skipped(sources: Sequence[Mapping[str, Any]]) -> str:
    skipped = sum((Counter(source["skipped_files"]) for source in sources), Counter())
    found = ", ".join(f"`{ending}` {count:,}" for ending, count in skipped.most_common())
    words = "Files that were not read, because no known format has their ending"
    return f"{words}: {found}." if found else ""


def _notes(sources: Sequence[Mapping[str, Any]]) -> str:
    notes = sum((Counter(source["notes"]) for source in sources), Counter())
    found = ", ".join(f"`{name}` {count:,}" for name, count in sorted(notes.items()))
    return f"What was odd or left out in values that were used: {found}." if found else ""


def _rejected(rejected: Mapping[str, Mapping[str, int]], rules: Mapping[str, str]) -> str:
    rows = [
        (stage, f"`{_plain(rule)}`", count, rules.get(rule, ""))
        for stage, counts in rejected.items()
        for rule, count in counts.items()
    ]
    return _table(("stage", "rule", "pairs", "what it rejects"), rows) if rows else "Nothing."


def _changed(
    changed: Mapping[str, Mapping[str, Mapping[str, int]]], rules: Mapping[str, str]
) -> str:
    rows = [
        (
            f"`{rule}`",
            *(parts[part][unit] for part in ("question", "answer") for unit in ("texts", "places")),
            rules.get(rule, ""),
        )
        for rule, parts in changed.items()
    ]
    header = ("rule", "questions", "places in them", "answers", "places in them", "what it does")
    return _table(header, rows) if rows else "Nothing."


def _copies(copies: Mapping[str, Any]) -> str:
    if not copies["looked_for"]:
        return "Near copies were not looked for: some may stand on both sides of the splits."
    return (
        f"{copies['questions_like_an_earlier_one']:,} questions were near copies of one before them"
        f" (Jaccard similarity of character n-grams of {copies['threshold']} or more); those that are"
        " left are together on one side of the splits."
    )


def _lengths(lengths: Mapping[str, Any]) -> str:
    names = ("min", "p5", "p25", "p50", "p75", "p95", "max", "mean", "characters")
    rows = [
        (part, lengths[part]["count"], *(lengths[part].get(name, "") for name in names))
        for part in ("question", "answer")
    ]
    return _table(("text", "count", *names), rows)


def _topics(topics: Mapping[str, Any]) -> list[str]:
    assigned = ", ".join(f"{name} {count:,}" for name, count in topics["assigned_by"].items())
    rows = [
        (
            _plain(topic),
            _plain(entry["english"]),
            entry["questions"],
            *(entry["splits"][name] for name in SPLITS),
        )
        for topic, entry in topics["main"].items()
    ]
    return [
        f"Questions by how their topic was found: {assigned}.",
        _table(("topic", "in English", "questions", *SPLITS), rows),
        _unknown(topics["labels_not_understood"]),
    ]


def _unknown(labels: Mapping[str, int]) -> str:
    if not labels:
        return ""
    most = ", ".join(f"{_plain(name)} ({count:,})" for name, count in list(labels.items())[:20])
    return (
        f"{len(labels):,} labels of the sources are in neither the taxonomy nor the mapping"
        f" (`config.corpus.topic_mapping`), the most frequent: {most}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    """A name that may come from the data, without what Markdown would read as markup."""
    return "".join(c for c in text if c not in "`<>[]*\r\n")
