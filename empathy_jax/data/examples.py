"""Records to tokens: what one chain or one question looks like to the model."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import transformers

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizer_lib

Example = dict[str, Any]

_SENTENCE = re.compile(r"[^。！？.!?]+[。！？.!?”’]*|[。！？.!?”’]+")


class Overlong(ValueError):
    """A record has more tokens than the config allows.

    Attributes:
      part: "prompt" or "completion".
      count: its tokens.
      limit: how many are allowed.
    """

    def __init__(self, record_id: str, part: str, count: int, limit: int):
        self.part, self.count, self.limit = part, count, limit
        super().__init__(
            f"The {part} of record {record_id!r} has {count} tokens, allowed are {limit}"
            f" (config.data.max_{part}_tokens)"
        )


def sft_example(
    record: Mapping[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    form: str = "chain",
) -> Example:
    """A chain record as prompt and completion; the loss counts the completion and its end only.

    Args:
      record: a chain record.
      tokenizer: from `data.tokenizer`.
      max_prompt_tokens: largest prompt, chat template included.
      max_completion_tokens: largest completion, end token included.
      form: of the completion, one of `chain_of_empathy.FORMATS`.

    Returns:
      {"id", "tokens": int32 [T], "loss_mask": bool [T]}.

    Raises:
      Overlong: when the prompt or the completion exceeds its limit.
    """
    fields = (*chain_of_empathy.LAYERS, "answer")
    chain = chain_of_empathy.Chain(*(record[name] for name in fields))
    prompt = _prompt(record, tokenizer, max_prompt_tokens)
    completion = tokenizer_lib.completion_ids(tokenizer, chain_of_empathy.render(chain, form))
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
      ValueError: for records that are too long, with `overlong="error"`.
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
            rejects.append((record["id"], error))
    if rejects and overlong == "error":
        errors = [error for _, error in rejects]
        raise ValueError(_say_overlong(errors, len(examples) + len(rejects)))
    return examples, [{"id": id_, "reason": str(error)} for id_, error in rejects]


def _say_overlong(errors: Sequence[Overlong], total: int) -> str:
    longest = {error.part: error for error in sorted(errors, key=lambda error: error.count)}
    return (
        f"{len(errors)} of {total} records are too long. The longest: "
        + "; ".join(str(error) for error in longest.values())
        + ". Raise what is named, or set config.data.overlong=reject to leave such records out."
    )


def shuffled_examples(
    records: Sequence[Mapping[str, Any]],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_tokens: int,
    form: str = "chain",
    variants: int = 4,
) -> list[Example]:
    """Chains whose elements hold sentences of any layer or answer, without their question.

    In a corpus each layer has a length and a sound of its own, so a small model learns to tell from
    these where it is in the chain, and goes astray in its own samples. Here every element may hold
    one sentence or several, from anywhere: only the tags before it tell which one it is.

    Args:
      records: chain records.
      tokenizer: from `data.tokenizer`.
      max_tokens: longer ones are left out.
      form: of the completion, one of `chain_of_empathy.FORMATS`.
      variants: examples made of each record.

    Returns:
      {"id", "tokens": int32 [T], "loss_mask": bool [T]}, with the loss on every token.
    """
    fields = (*chain_of_empathy.LAYERS, "answer")
    examples = []
    for variant in range(variants):
        for index, record in enumerate(records):
            random = np.random.default_rng((variant, index))
            chain = chain_of_empathy.Chain(*(_some_sentences(random, records) for _ in fields))
            ids = tokenizer_lib.completion_ids(tokenizer, chain_of_empathy.render(chain, form))
            if len(ids) <= max_tokens:
                tokens, counted = np.asarray(ids, np.int32), np.ones(len(ids), bool)
                examples.append({"id": record["id"], "tokens": tokens, "loss_mask": counted})
    return examples


def _some_sentences(random: np.random.Generator, records: Sequence[Mapping[str, Any]]) -> str:
    """The first few sentences, 1 to 6, of two texts drawn from the layers and answers."""
    fields = (*chain_of_empathy.LAYERS, "answer")
    texts = [records[random.integers(len(records))][random.choice(fields)] for _ in range(2)]
    sentences = _SENTENCE.findall("".join(texts))[:6]
    return "".join(sentences[: random.integers(1, len(sentences) + 1)])


def _prompt(
    record: Mapping[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    max_prompt_tokens: int,
) -> list[int]:
    prompt = tokenizer_lib.prompt_ids(tokenizer, record["question"])
    if len(prompt) > max_prompt_tokens:
        raise Overlong(record["id"], "prompt", len(prompt), max_prompt_tokens)
    return prompt
