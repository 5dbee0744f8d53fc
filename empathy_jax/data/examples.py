"""Records to tokens: what one chain or one question looks like to the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import transformers

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizer_lib

if TYPE_CHECKING:
    import datasets

Example = dict[str, Any]


class Overlong(ValueError):
    """A record has more tokens than the config allows."""

    def __init__(self, record_id: str, part: str, count: int, limit: int):
        field = f"config.data.max_{part}_tokens"
        super().__init__(
            f"The {part} of record {record_id!r} has {count} tokens, allowed are {limit};"
            f" raise {field} or leave the record out."
        )


def sft_example(
    record: Mapping[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_prompt_tokens: int,
    max_completion_tokens: int,
) -> Example:
    """A chain record as prompt and completion; the loss counts the completion and its end only.

    Args:
      record: a chain record.
      tokenizer: from `data.tokenizer`.
      max_prompt_tokens: largest prompt, chat template included.
      max_completion_tokens: largest completion, end token included.

    Returns:
      {"id", "tokens": int32 [T], "loss_mask": bool [T]}.

    Raises:
      Overlong: when the prompt or the completion exceeds its limit.
    """
    fields = (*chain_of_empathy.LAYERS, "answer")
    chain = chain_of_empathy.Chain(*(record[name] for name in fields))
    prompt = _prompt(record, tokenizer, max_prompt_tokens)
    completion = tokenizer_lib.completion_ids(tokenizer, chain_of_empathy.render(chain))
    if len(completion) > max_completion_tokens:
        raise Overlong(record["id"], "completion", len(completion), max_completion_tokens)
    return {
        "id": record["id"],
        "tokens": np.asarray(prompt + completion, np.int32),
        "loss_mask": np.arange(len(prompt) + len(completion)) >= len(prompt),
    }


def prompt_example(
    record: Mapping[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_prompt_tokens: int,
) -> Example:
    """A question as a prompt to be answered.

    Returns:
      {"id", "tokens": int32 [T]}.

    Raises:
      Overlong: when the prompt exceeds its limit.
    """
    prompt = _prompt(record, tokenizer, max_prompt_tokens)
    return {"id": record["id"], "tokens": np.asarray(prompt, np.int32)}


def build(
    records: Iterable[Mapping[str, Any]],
    make_example: Callable[[Mapping[str, Any]], Example],
    overlong: Literal["error", "reject"] = "error",
) -> tuple[list[Example], list[dict[str, str]]]:
    """Applies `make_example` to each record.

    Args:
      records: question or chain records.
      make_example: one of the functions above with its other arguments bound.
      overlong: what to do with a record that is too long: stop, or list it among the rejects.

    Returns:
      The examples in order, and the rejects as {"id", "reason"}.

    Raises:
      Overlong: for the first record that is too long, with `overlong="error"`.
    """
    if overlong not in ("error", "reject"):
        raise ValueError(
            f'overlong must be "error" or "reject", got {overlong!r}; change config.data.overlong.'
        )
    examples, rejects = [], []
    for record in records:
        try:
            examples.append(make_example(record))
        except Overlong as error:
            if overlong == "error":
                raise
            rejects.append({"id": record["id"], "reason": str(error)})
    return examples, rejects


def memory_map(examples: Sequence[Example], directory: str | Path) -> "datasets.Dataset":
    """The examples as an Arrow table on disk, read on demand, for corpora larger than memory.

    The result is indexed like the list it came from (its integers are int64; batches cast them).
    `datasets` costs a second to import, which small corpora that fit in memory should not pay, so
    it is imported here only.
    """
    import datasets

    table = datasets.Dataset.from_list(list(examples))
    table.save_to_disk(str(directory))
    return datasets.load_from_disk(str(directory)).with_format("numpy")


def _prompt(
    record: Mapping[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_prompt_tokens: int,
) -> list[int]:
    prompt = tokenizer_lib.prompt_ids(tokenizer, record["question"])
    if len(prompt) > max_prompt_tokens:
        raise Overlong(record["id"], "prompt", len(prompt), max_prompt_tokens)
    return prompt
