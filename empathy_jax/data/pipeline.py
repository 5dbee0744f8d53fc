"""Examples to batches: packing, shuffling, and batches that can be asked for by step.

A batch is a dict of numpy arrays of shape [B, T] (B rows, T tokens a row):

    tokens       inputs; pad id where nothing is
    targets      the token that follows each input within its own example
    loss_mask    true where the target counts in the loss
    segment_ids  1, 2, ... for the examples packed into the row; 0 where padded
    positions    0, 1, ... within each example

An example of n tokens fills n - 1 places: its last token is a target only.

`dataset[step]` depends on nothing but the source, the seed and the step, so a run resumes exactly
from its step number, with no iterator state to save. A process may read its own rows of each batch
alone; the whole is the same however the processes divide it.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

Example = dict[str, Any]
Batch = dict[str, np.ndarray]


def pack(lengths: Sequence[int], row_length: int, max_items: int | None = None) -> list[list[int]]:
    """Packs items by best-fit decreasing: longest first, each into the fullest row that holds it.

    Johnson et al. 1974 (https://doi.org/10.1137/0203025): never more than 11/9 of the best
    possible number of rows, plus a constant. Equal lengths keep their order, so the result is a
    function of the lengths alone.

    Args:
      lengths: of the items, each from 1 to `row_length`.
      row_length: capacity of a row.
      max_items: items in a row at most; None: as many as it holds.

    Returns:
      For each row the indices of its items.

    Raises:
      ValueError: when an item fits no row.
    """
    _check_lengths(lengths, row_length)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (places left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([])
            left, row = row_length, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        if len(rows[row]) != max_items:
            bisect.insort(room, (left - lengths[index], row))
    return rows


class PackedRows:
    """A random-access source of packed rows over SFT examples, a list or an Arrow table.

    Attributes:
      rows: for each row the indices of its examples.
    """

    def __init__(self, examples: Sequence[Example], row_length: int, pad_id: int):
        self._examples = examples
        self._row_length = row_length
        self._pad_id = pad_id
        self.rows = pack([len(example["tokens"]) - 1 for example in examples], row_length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Batch:
        examples = [self._examples[index] for index in self.rows[row]]
        return _fill_row(examples, self._row_length, self._pad_id)


class Batches:
    """An endless dataset of batches; `batches[step]` is the batch of a step, or the rows of it to read.

    Attributes:
      rows: endless dataset of single rows; those of a batch follow one another.
      batch_size: rows in a batch.
      read: which of its rows are read; None: all.
    """

    def __init__(self, rows: grain.MapDataset, batch_size: int, read: Sequence[int] | None = None):
        self._rows, self._batch_size = rows, batch_size
        self._read = range(batch_size) if read is None else read

    def __getitem__(self, step: int) -> Batch:
        rows = [self._rows[step * self._batch_size + int(row)] for row in self._read]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def packed_dataset(
    examples: Sequence[Example],
    row_length: int,
    batch_size: int,
    pad_id: int,
    seed: int,
    read: Sequence[int] | None = None,
) -> Batches:
    """An endless dataset of packed training batches; `dataset[step]` is the batch of a step.

    Every epoch visits each row once in an order of its own. A batch may span two epochs.

    Args:
      examples: from `examples.sft_example`.
      row_length: T, places in a row.
      batch_size: B, rows in a batch.
      pad_id: of the tokenizer.
      seed: of the order.
      read: rows of a batch that are read here; None: all.

    Raises:
      ValueError: when there is no example or one does not fit a row.
    """
    rows = PackedRows(examples, row_length, pad_id)
    return Batches(_endless(rows, batch_size, seed), batch_size, read)


def prompt_dataset(
    examples: Sequence[Example], max_length: int, batch_size: int, pad_id: int, seed: int
) -> Batches:
    """An endless dataset of prompt batches, shuffled anew each epoch; `dataset[step]` is one.

    Args:
      examples: from `examples.prompt_example`.
      max_length: T, places for a prompt.
      batch_size: B, prompts in a batch.
      pad_id: of the tokenizer.
      seed: of the order.

    Returns:
      Batches {"index": int32 [B] in `examples`, "tokens": int32 [B, T] padded on the right,
      "lengths": int32 [B]}.

    Raises:
      ValueError: when there is no example or one is longer than `max_length`.
    """
    for example in examples:
        if len(example["tokens"]) > max_length:
            raise ValueError(
                f"The prompt {example['id']!r} has {len(example['tokens'])} tokens, allowed are"
                f" {max_length}; raise config.data.max_prompt_tokens."
            )
    rows = _Prompts(examples, max_length, pad_id)
    return Batches(_endless(rows, batch_size, seed), batch_size)


def padded_batches(
    examples: Sequence[Example], row_length: int, batch_size: int, pad_id: int
) -> Iterator[Batch]:
    """Batches of one example a row in the order given, for evaluation; each example appears once.

    The last batch is filled up with rows of padding, so that every batch has the same shape.

    Raises:
      ValueError: when an example does not fit a row.
    """
    _check_lengths([len(example["tokens"]) - 1 for example in examples], row_length)
    for start in range(0, len(examples), batch_size):
        stop = min(start + batch_size, len(examples))
        rows = [[examples[index]] for index in range(start, stop)]
        rows += [[]] * (batch_size - len(rows))
        filled = [_fill_row(row, row_length, pad_id) for row in rows]
        yield {name: np.stack([row[name] for row in filled]) for name in filled[0]}


def _check_lengths(lengths: Sequence[int], row_length: int) -> None:
    for index, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise ValueError(
                f"Example {index} fills {length} places of a row, allowed are 1 to {row_length};"
                " raise config.sft.row_tokens (config.data.max_prompt_tokens +"
                " config.data.max_completion_tokens is always enough)."
            )


class _Prompts:
    """A random-access source of padded prompts."""

    def __init__(self, examples: Sequence[Example], max_length: int, pad_id: int):
        self._examples = examples
        self._max_length = max_length
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        prompt = self._examples[index]["tokens"]
        tokens = np.full(self._max_length, self._pad_id, np.int32)
        tokens[: len(prompt)] = prompt
        return {"index": np.int32(index), "tokens": tokens, "lengths": np.int32(len(prompt))}


def _endless(source: Any, batch_size: int, seed: int) -> grain.MapDataset:
    if not len(source):
        raise ValueError(
            "There is no example to train on; check config.data.questions, config.data.chains and"
            " the limits config.data.max_prompt_tokens and config.data.max_completion_tokens."
        )
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}; change config.batch_size."
        )
    return grain.MapDataset.source(source).shuffle(seed=seed).repeat(reseed_each_epoch=True)


def _fill_row(examples: Sequence[Example], row_length: int, pad_id: int) -> Batch:
    row = {
        "tokens": np.full(row_length, pad_id, np.int32),
        "targets": np.full(row_length, pad_id, np.int32),
        "loss_mask": np.zeros(row_length, bool),
        "segment_ids": np.zeros(row_length, np.int32),
        "positions": np.zeros(row_length, np.int32),
    }
    start = 0
    for segment, example in enumerate(examples, 1):
        length = len(example["tokens"]) - 1
        place = slice(start, start + length)
        row["tokens"][place] = example["tokens"][:-1]
        row["targets"][place] = example["tokens"][1:]
        row["loss_mask"][place] = example["loss_mask"][1:]
        row["segment_ids"][place] = segment
        row["positions"][place] = np.arange(length)
        start += length
    return row
