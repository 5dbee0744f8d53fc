"""Texts as integer ids of characters or of words: what every metric of overlap counts.

A score of Chinese text depends on what a token is, so each measure names its own:
  - `char`: every code point of the NFC text but white space, punctuation included;
  - `jieba`: the words of the NFC text by jieba's dictionary and hidden Markov model, as rjieba
    implements them, punctuation included, white space left out. English words are words.
"""

import dataclasses
import importlib.metadata
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd
import rjieba
from numpy.typing import NDArray

Ints = NDArray[np.int64]
TOKENIZATIONS = ("char", "jieba")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """N texts as ids, one after the other; text i is ids[starts[i]:starts[i + 1]].

    Attributes:
      ids: [total], from 0 to `vocabulary` - 1.
      starts: [N + 1].
      vocabulary: number of different tokens.
    """

    ids: Ints
    starts: Ints
    vocabulary: int

    @property
    def lengths(self) -> Ints:
        """Tokens of each text, [N]."""
        return np.diff(self.starts)

    @property
    def owners(self) -> Ints:
        """The text that each token stands in, [total]."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)


def characters(text: str) -> str:
    """The text in NFC without white space: its `char` tokens, side by side."""
    return "".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """The `jieba` tokens of a text."""
    return [word for word in rjieba.cut(unicodedata.normalize("NFC", text)) if not word.isspace()]


def tokenize(texts: Sequence[str], tokenization: str) -> Tokens:
    """The texts as ids; equal tokens have equal ids.

    Raises:
      ValueError: for another tokenization than TOKENIZATIONS.
    """
    if tokenization == "char":
        return from_strings([characters(text) for text in texts])
    if tokenization != "jieba":
        raise ValueError(f"tokenization is {tokenization!r}; allowed: {', '.join(TOKENIZATIONS)}")
    cut = [words(text) for text in texts]
    known: dict[str, int] = {}
    ids = [known.setdefault(token, len(known)) for tokens in cut for token in tokens]
    return Tokens(np.array(ids, np.int64), _starts(cut), len(known))


def from_strings(texts: Sequence[str]) -> Tokens:
    """Texts whose tokens are their characters."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    ids = number(points.astype(np.int64))
    return Tokens(ids, _starts(texts), int(ids.max(initial=-1)) + 1)


def _starts(cut: Sequence[Sequence[str]]) -> Ints:
    return np.concatenate([[0], np.cumsum([len(tokens) for tokens in cut])]).astype(np.int64)


def number(values: Ints) -> Ints:
    """Numbers from 0 up for the different values, in the order of first sight.

    By pandas' hash table: sorting millions of n-grams takes three times as long.
    """
    return pd.factorize(values)[0]


def describe() -> dict[str, str]:
    """What each tokenization is, for a file of results."""
    version = importlib.metadata.version("rjieba")
    return {
        "char": "every code point of the NFC text but white space, punctuation included",
        "jieba": f"words by rjieba {version} with its HMM, NFC, white space left out",
    }
