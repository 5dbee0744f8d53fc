"""Sentences of Chinese and English text, as spans that together are the text."""

import re

from empathy_jax.corpus.rules.contacts import Span

# A full stop ends a sentence before white space or a capital, as dumps lose the space after it; the
# one behind www does not. Possessive throughout: no text makes this go back.
_SENTENCE = re.compile(
    r"(?:[^。！？!?\n.]++|\.(?![\s\"”')]|[A-Z]|\Z)|(?<=www)\.)*+"
    r"(?:[。！？!?\n]++[”’」』）)]*+|\.[\"”')]*+\s?|\Z)"
)


def spans(text: str) -> list[Span]:
    """Start and end of each sentence, its closing marks and quotes included."""
    return [match.span() for match in _SENTENCE.finditer(text) if match[0]]
