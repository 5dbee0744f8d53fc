"""The sample corpus that ships with the package: fictional people's letters, chains and replies."""

import importlib.resources
import json
from typing import Any

from empathy_jax.corpus import records as records_lib

LANGUAGES = ("zh", "en")

MAIN_ANSWER_SCORE = 5


def sample_records(language: str) -> list[dict[str, Any]]:
    """The sample as it is stored.

    Keys: id, topic, subtopic, crisis (only where true), question, L1..L4, answer, other_answers.

    Args:
      language: "zh" or "en".

    Raises:
      ValueError: for another language.
    """
    if language not in LANGUAGES:
        raise ValueError(
            f"The sample has the languages {LANGUAGES}, got {language!r};"
            " change config.data.language."
        )
    package = importlib.resources.files("empathy_jax.corpus")
    text = (package / "sample" / f"{language}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def sample_questions(language: str) -> list[dict[str, Any]]:
    """The sample as question records; the main answer has score 5, the others have 1 to 4."""
    return [
        records_lib.question_record(
            record["question"],
            [
                {"text": record["answer"], "score": MAIN_ANSWER_SCORE},
                *record.get("other_answers", []),
            ],
            source="sample",
            topic=record["topic"],
            subtopic=record["subtopic"],
        )
        for record in sample_records(language)
    ]


def sample_chains(language: str) -> list[dict[str, Any]]:
    """The sample as chain records."""
    return [
        records_lib.chain_record(record, source="sample") for record in sample_records(language)
    ]
