"""A completion's text as it comes: whole characters, chain apart from answer, cut at stop strings."""

from collections.abc import Sequence
from typing import NamedTuple

import transformers

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizers

_REASONING = (*chain_of_empathy.LAYERS, chain_of_empathy.BETWEEN)


class Delta(NamedTuple):
    """Some more text.

    Attributes:
      reasoning: whether it is part of the chain; else the reader's answer.
      layer: L1..L4 where it is part of one.
      text: without tags; elements are a blank line apart.
    """

    reasoning: bool
    layer: str | None
    text: str


class SampleText:
    """The text of one completion.

    Attributes:
      form: what the model writes, one of `chain_of_empathy.FORMATS`.
      stopped: whether a stop string has been met. What comes after it is not told.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerFast,
        stop: Sequence[str] = (),
        form: str = "chain",
    ) -> None:
        self._tokenizer, self._detokenizer = tokenizer, tokenizers.Detokenizer(tokenizer)
        self._reader, self._stop = chain_of_empathy.Reader(), _Stop(stop)
        self._ids: list[int] = []
        self.form = form
        self._last = {True: None, False: None}  # element told last, of chain and of answer

    @property
    def stopped(self) -> bool:
        return self._stop.met

    @property
    def tokens(self) -> int:
        """How many have come, the end token included."""
        return len(self._ids)

    def feed(self, ids: Sequence[int]) -> list[Delta]:
        """The text that is certain with some more tokens."""
        self._ids += ids
        if ids and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]
        return self._told(self._reader.feed(self._detokenizer.feed(ids)))

    def close(self) -> list[Delta]:
        """The text that was kept back, when no more tokens come."""
        deltas = self._told(self._reader.feed(self._detokenizer.close()) + self._reader.close())
        kept = self._stop.close()
        return [*deltas, Delta(False, None, kept)] if kept else deltas

    def completion(self) -> str:
        """All text so far, tags included."""
        return tokenizers.decode(self._tokenizer, self._ids)

    def verdict(self) -> chain_of_empathy.Verdict:
        """What the completion is worth in its format."""
        tokens = tokenizers.control_tokens(self._tokenizer)
        return chain_of_empathy.verdict(self.completion(), tokens, self.form)

    def _told(self, pieces: Sequence[chain_of_empathy.Piece]) -> list[Delta]:
        deltas = []
        for element, text in pieces:
            reasoning = element in _REASONING
            if self._last[reasoning] not in (None, element):
                text = "\n\n" + text
            self._last[reasoning] = element
            layer = element if element in chain_of_empathy.LAYERS else None
            if not reasoning:
                text = self._stop.feed(text)
            if text:
                deltas.append(Delta(reasoning, layer, text))
        return deltas


class _Stop:
    """Text up to the first of some strings, told as soon as it cannot be the beginning of one."""

    def __init__(self, strings: Sequence[str]):
        self._strings, self._kept = tuple(strings), ""
        self.met = False

    def feed(self, text: str) -> str:
        if self.met:
            return ""
        text = self._kept + text
        found = [place for place in map(text.find, self._strings) if place >= 0]
        if found:
            self.met, self._kept = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, string) for string in self._strings), default=0)
        self._kept = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        kept, self._kept = self._kept, ""
        return kept


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of the text that is a beginning of the string, but not all of it."""
    lengths = range(min(len(text), len(string) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(string[:n])), 0)
