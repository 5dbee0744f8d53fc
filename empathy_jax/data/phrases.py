"""Sentences that are no answer, from the grammar in `phrases.yaml`."""

import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import yaml

LANGUAGES = ("zh", "en")

_SLOT = re.compile(r"\{([a-z_]+)\}")
_NO_WORDS: Mapping[str, str] = MappingProxyType({})

T = TypeVar("T")


@functools.cache
def load(language: str) -> Mapping[str, tuple[str, ...]]:
    """The lists of a language: name to the ways to say it.

    Raises:
      ValueError: for another language than those of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise ValueError(
            f"language must be one of {list(LANGUAGES)}, got {language!r};"
            " change config.data.language."
        )
    lists = _read()["phrases"][language]
    return MappingProxyType({name: tuple(phrases) for name, phrases in lists.items()})


@functools.cache
def common_words(language: str) -> frozenset[str]:
    """Nouns and verbs that fit any question."""
    return frozenset(_read()["common_words"][language].split())


@functools.cache
def _read() -> dict[str, Any]:
    packaged = importlib.resources.files("empathy_jax.data") / "phrases.yaml"
    return yaml.safe_load(packaged.read_text(encoding="utf-8"))


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def say(
    rng: np.random.Generator, language: str, name: str, words: Mapping[str, str] = _NO_WORDS
) -> str:
    """One way to say `name`, drawn anew at every slot.

    Args:
      rng: of the draws.
      language: "zh" or "en".
      name: a list of `phrases.yaml`.
      words: texts for slots that are no lists; they are put in as they are.
    """
    return fill(rng, language, pick(rng, load(language)[name]), words)


def fill(
    rng: np.random.Generator, language: str, phrase: str, words: Mapping[str, str] = _NO_WORDS
) -> str:
    """A phrase with every slot filled, by one of `words` or else by `say`."""

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        return words[name] if name in words else say(rng, language, name, words)

    return _SLOT.sub(slot, phrase)
