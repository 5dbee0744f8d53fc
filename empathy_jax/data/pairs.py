"""Question and answer pairs for the reward model: a random-access source of batches by step."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

# Padded lengths are multiples of this, so that few shapes are compiled.
LENGTH_STEP = 128
# Answers graded below this are not positives: the sample's 1 and 2 are dismissive or generic.
LOWEST_POSITIVE_SCORE = 3


def positives(record: dict[str, Any]) -> list[str]:
    """The answers of a question that count as good: ungraded ones, and those graded 3 or more."""
    return [
        answer["text"]
        for answer in record["answers"]
        if answer.get("score") is None or answer["score"] >= LOWEST_POSITIVE_SCORE
    ]


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows as (tokens int32 [B, T], mask bool [B, T]).

    T is a multiple of LENGTH_STEP, or `max_tokens`, which no row exceeds. An empty row keeps one
    visible pad token, so that no mean is taken over nothing.
    """
    longest = max(1, *(len(row) for row in rows))
    width = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, max_tokens)
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : max(len(row), 1)] = True
    return tokens, mask


class _Pairs:
    """Every (question, good answer) pair, tokenised on demand."""

    def __init__(self, records: Sequence[dict[str, Any]], tokenize: Callable[[str], list[int]]):
        self._records, self._tokenize = records, tokenize
        self._places = [
            (group, answer) for group, record in enumerate(records) for answer in positives(record)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        group, answer = self._places[index]
        return {
            "group": group,
            "question": self._tokenize(self._records[group]["question"]),
            "answer": self._tokenize(answer),
        }


def pair_dataset(
    records: Sequence[dict[str, Any]],
    tokenize: Callable[[str], list[int]],
    max_tokens: int,
    batch_size: int,
    pad_id: int,
    seed: int,
) -> grain.MapDataset:
    """An endless dataset of pair batches; `dataset[step]` is the batch of a step.

    Args:
      records: question records with answers.
      tokenize: text to token ids, cut to `max_tokens`.
      max_tokens: longest row.
      batch_size: pairs in a batch, B.
      pad_id: of the tokenizer.
      seed: of the order.

    Returns:
      Batches {"group" int32 [B], "question_tokens", "question_mask", "answer_tokens",
      "answer_mask" [B, T]}; T differs between questions and answers and between batches.

    Raises:
      ValueError: when there are fewer pairs than a batch takes.
    """
    source = _Pairs(records, tokenize)
    if len(source) < batch_size:
        raise ValueError(
            f"the training split has {len(source)} question-answer pairs, fewer than one batch of "
            f"{batch_size}; lower config.batch_size or give more in config.data.questions"
        )

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        batch = {"group": np.asarray([item["group"] for item in items], np.int32)}
        for name in ("question", "answer"):
            tokens, mask = pad([item[name] for item in items], pad_id, max_tokens)
            batch |= {f"{name}_tokens": tokens, f"{name}_mask": mask}
        return batch

    return (
        grain.MapDataset.source(source)
        .shuffle(seed=seed)
        .repeat(reseed_each_epoch=True)
        .batch(batch_size, drop_remainder=True, batch_fn=collate)
    )
