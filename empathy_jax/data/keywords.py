"""The words that say what a text is about."""

import functools

import rjieba

from empathy_jax.data.phrases import common_words

# Classes of words by the first letter of the segmenter's part of speech: nouns and names, verbs and
# nouns made of them, English words.
_CLASSES = "nve"
_SHORTEST_ENGLISH = 4


def word_class(word: str, part: str) -> str | None:
    """The class of a keyword, "n", "v" or "e" for English; None for a word that fits any text.

    Args:
      word: as `segments` gives it.
      part: its part of speech.
    """
    if part == "eng":
        known = len(word) < _SHORTEST_ENGLISH or word.lower() in common_words("en")
    else:
        known = len(word) < 2 or part[0] not in _CLASSES or word in common_words("zh")
    return None if known else part[0]


@functools.lru_cache(maxsize=4096)
def segments(text: str) -> tuple[tuple[str, str], ...]:
    """The words of a text, Chinese or English, with their parts of speech; joined they are the text."""
    return tuple(rjieba.tag(text))


def keywords(text: str) -> list[str]:
    """The nouns and verbs that say what a text is about, each once, in the order of reading."""
    found = (word for word, part in segments(text) if word_class(word, part))
    return list(dict.fromkeys(found))


def keywords_by_class(text: str) -> dict[str, list[str]]:
    """The keywords of a text under their class; a class without words is left out."""
    found: dict[str, list[str]] = {}
    for word, part in segments(text):
        if name := word_class(word, part):
            found.setdefault(name, []).append(word)
    return found
