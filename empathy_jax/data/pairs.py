"""Question and answer pairs for the reward model: a random-access source of packed batches.

Texts of a batch are packed side by side into rows, so that little is computed on padding. A batch
is a dict of numpy arrays (R rows of T tokens, B questions, M documents, P graded pairs):

    tokens, segment_ids, positions   [R, T], texts 1, 2, ... of a row; segment 0 is padding
    questions, documents             [B], [M], the slots of the texts: row · SEGMENTS + segment - 1
    groups                           [B], the number of each question
    document_groups                  [M], the question that a document answers; NO_QUESTION: none
    graded                           [P, 3], slots of a question, a better and a worse answer to it

The first B documents are the questions' own answers, in their order. The others are corrupted
answers, negatives for certain.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from empathy_jax.corpus.duplicates import near_duplicate_groups
from empathy_jax.data import corruptions, pipeline

SEGMENTS = 16  # texts in a row at most
NO_QUESTION = -1
# Answers graded below this are not positives: the sample's 1 and 2 are dismissive or generic.
LOWEST_POSITIVE_SCORE = 3
# Characters that a token surely holds, with a vocabulary made for the language.
CHARACTERS_PER_TOKEN = {"zh": 1, "en": 3}
VISIBLE = 0.9  # of max_tokens: a prompt and special tokens come besides the text
OVERLONG = 2.0  # how far beyond that a corrupted answer may go


def positives(record: dict[str, Any]) -> list[str]:
    """The answers of a question that count as good: ungraded ones, and those graded 3 or more."""
    return [
        answer["text"]
        for answer in record["answers"]
        if answer.get("score") is None or answer["score"] >= LOWEST_POSITIVE_SCORE
    ]


def graded(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs (better, worse) of a question's answers whose scores differ."""
    scored = [answer for answer in record["answers"] if answer.get("score") is not None]
    return [(a["text"], b["text"]) for a in scored for b in scored if a["score"] > b["score"]]


def pack_texts(
    texts: Sequence[Sequence[int]], row_length: int, pad_id: int, multiple: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Texts side by side in rows.

    Args:
      texts: token ids of N texts, each from 0 to `row_length` tokens; one without tokens becomes
        one pad token, so that it has a vector too.
      row_length: T.
      pad_id: of the tokenizer.
      multiple: the number of rows is a multiple of it, and one of about eight numbers an octave,
        so that few shapes are compiled.

    Returns:
      tokens, segment_ids and positions, int32 [R, T]; and the slot of each text, int32 [N].
    """
    filled = [list(text) or [pad_id] for text in texts]
    packed = pipeline.pack([len(text) for text in filled], row_length, SEGMENTS)
    shape = (row_count(len(packed), multiple), row_length)
    rows = {
        "tokens": np.full(shape, pad_id, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    slots = np.zeros(len(filled), np.int32)
    for row, members in enumerate(packed):
        start = 0
        for segment, index in enumerate(members):
            place = slice(start, start + len(filled[index]))
            rows["tokens"][row, place] = filled[index]
            rows["segment_ids"][row, place] = segment + 1
            rows["positions"][row, place] = np.arange(len(filled[index]))
            slots[index] = row * SEGMENTS + segment
            start = place.stop
    return rows, slots


def row_count(needed: int, multiple: int) -> int:
    """The next number from `needed` on that is a multiple of `multiple` and has few neighbours."""
    step = max(2 ** (needed.bit_length() - 4), 1) if needed > 8 else 1
    step = -(-step // multiple) * multiple
    return -(-needed // step) * step


@dataclasses.dataclass(frozen=True)
class Layout:
    """How texts become a batch.

    Attributes:
      tokenize_question, tokenize_answer: text to token ids, prompt included, cut to `max_tokens`.
      max_tokens: T, the length of a row.
      pad_id: of the tokenizer.
      row_multiple: the number of rows is a multiple of it.
      corrupted: documents a question gets beside its own answer, all made by `data.corruptions`.
      graded_pairs: P; 0 leaves `graded` out.
      language: of the corruptions, "zh" or "en".
    """

    tokenize_question: Callable[[str], list[int]]
    tokenize_answer: Callable[[str], list[int]]
    max_tokens: int
    pad_id: int
    row_multiple: int
    corrupted: int
    graded_pairs: int
    language: str


class PairStream:
    """An endless stream of (question, good answer) pairs, in an order of its own every epoch.

    Near-duplicate questions are one: what answers the one is no wrong answer to the other. What
    stands at a place of the stream depends on the records and the seed alone.

    Raises:
      ValueError: when there are fewer pairs than a batch takes, or no graded ones where needed.
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], batch_size: int, layout: Layout, seed: int
    ):
        self._records, self._layout, self._seed = records, layout, seed
        self._groups = near_duplicate_groups([record["question"] for record in records])
        self._pairs = [
            (number, text) for number, record in enumerate(records) for text in positives(record)
        ]
        if len(self._pairs) < batch_size:
            raise ValueError(
                f"the training split has {len(self._pairs)} question-answer pairs, fewer than one "
                f"batch of {batch_size}; lower config.batch_size or give more in "
                "config.data.questions"
            )
        self._order = _endless(len(self._pairs), seed)
        self._graded = []
        if layout.graded_pairs:
            self._graded = [
                (number, *pair) for number, record in enumerate(records) for pair in graded(record)
            ]
            if not self._graded:
                raise ValueError(
                    "no question of the training split has two answers with different scores, "
                    "which the head learns from; set config.reward_model.head_weight to 0 or give "
                    "graded answers in config.data.questions"
                )
            self._graded_order = _endless(len(self._graded), seed + 1)

    def window(self, start: int, count: int) -> list[int]:
        """The numbers of the pairs at places `start` to `start + count` of the stream."""
        return [int(self._order[place]) for place in range(start, start + count)]

    def question(self, pair: int) -> str:
        """The question of a pair."""
        return self._records[self._pairs[pair][0]]["question"]

    def answer(self, pair: int) -> str:
        """The answer of a pair."""
        return self._pairs[pair][1]

    def group(self, pair: int) -> int:
        """The number of a pair's question; the same for questions that hardly differ."""
        return int(self._groups[self._pairs[pair][0]])

    def topic(self, pair: int) -> str | None:
        """The topic of a pair's question, None where it has none."""
        return self._records[self._pairs[pair][0]].get("topic")

    def batch(self, step: int, pairs: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of a step from the pairs that belong to it, [B]; see the module."""
        layout = self._layout
        groups = [self.group(pair) for pair in pairs]
        answers = [self.answer(pair) for pair in pairs] + self._corrupted(step, pairs)
        texts = [layout.tokenize_question(self.question(pair)) for pair in pairs]
        texts += [layout.tokenize_answer(answer) for answer in answers]
        compared = []
        for number in range(layout.graded_pairs):
            place = int(self._graded_order[(step - 1) * layout.graded_pairs + number])
            group, better, worse = self._graded[place]
            question = layout.tokenize_question(self._records[group]["question"])
            compared += [question, layout.tokenize_answer(better), layout.tokenize_answer(worse)]
        rows, slots = pack_texts(
            texts + compared, layout.max_tokens, layout.pad_id, layout.row_multiple
        )
        size, count = len(pairs), len(texts)
        none = [NO_QUESTION] * (count - 2 * size)
        batch = {
            **rows,
            "questions": slots[:size],
            "documents": slots[size:count],
            "groups": np.asarray(groups, np.int32),
            "document_groups": np.asarray(groups + none, np.int32),
        }
        return batch | ({"graded": slots[count:].reshape(-1, 3)} if compared else {})

    def _corrupted(self, step: int, pairs: Sequence[int]) -> list[str]:
        """Corrupted answers, `layout.corrupted` for each pair, of kinds drawn at random."""
        made = []
        rng = np.random.default_rng((self._seed, step))
        for pair in pairs:
            for _ in range(self._layout.corrupted):
                other = self.answer(int(rng.integers(len(self._pairs))))
                made.append(self._corrupt(rng, self.question(pair), self.answer(pair), other))
        return made

    def _corrupt(self, rng: np.random.Generator, question: str, answer: str, other: str) -> str:
        """A corruption that shows within what the model sees, and often goes on beyond it.

        Otherwise all bad texts would end before the cut, and a text that does not would be good.
        """
        per_token = CHARACTERS_PER_TOKEN[self._layout.language]
        visible = int(VISIBLE * per_token * self._layout.max_tokens)
        kind = corruptions.KINDS[rng.integers(len(corruptions.KINDS))]
        for limit in (int(visible * rng.uniform(1, OVERLONG)), visible):
            text = corruptions.corrupt(
                kind, rng, question, answer, other, limit, self._layout.language
            )
            if text[:visible].split() != answer[:visible].split():
                break
        return text


def _endless(count: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(count).shuffle(seed=seed).repeat(reseed_each_epoch=True)
