"""Length and style of an answer: what a judge may like for its own sake."""

import re
from collections.abc import Sequence

import numpy as np

from empathy_jax.evaluation.metrics.tokens import characters
from empathy_jax.evaluation.ranking.statistics import Floats

_NUMBER = r"\d{1,2}|[一二三四五六七八九十]{1,2}"
_ITEM = re.compile(
    rf"^\s*(?:[-*+•·]\s|(?:{_NUMBER})(?:[、．)）]|\.\s)|[(（](?:{_NUMBER})[)）])", re.M
)
_EMPHASIS = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__|^\s{0,3}#{1,6}\s", re.M)
_PARAGRAPH = re.compile(r"\S[^\n]*")
_QUESTION = re.compile(r"[?？]+")

FEATURES = ("characters", "paragraphs", "list_items", "emphasis", "questions")


def measure(text: str) -> list[int]:
    """Counts of `FEATURES`: characters, lines with text, list items, bold and headings, questions."""
    marks = (_PARAGRAPH, _ITEM, _EMPHASIS, _QUESTION)
    return [len(characters(text)), *(len(mark.findall(text)) for mark in marks)]


def differences(answers: Sequence[Sequence[str]]) -> Floats:
    """Relative differences of style between the systems.

        x_f(i, j) = (f_i - f_j) / (f_i + f_j),   0 where neither has any

    as in the style control of Chatbot Arena (https://lmsys.org/blog/2024-08-28-style-control/); it
    is bounded, as the length term of length-controlled AlpacaEval is (https://arxiv.org/abs/2404.04475).

    Args:
      answers: to each of Q questions, of S systems.

    Returns:
      [Q, S, S, F] in [-1, 1], antisymmetric in the systems.
    """
    counts = np.array([[measure(text) for text in row] for row in answers], np.float64)
    own, other = counts[:, :, None], counts[:, None, :]
    return (own - other) / np.maximum(own + other, 1)


def standardise(differences: Floats) -> tuple[Floats, Floats]:
    """The differences in units of their root mean square over all pairs, and those units [F].

    A feature in which no two answers differ has the unit 1 and stays 0.
    """
    i, j = np.triu_indices(differences.shape[1], 1)
    scale = np.sqrt((differences[:, i, j] ** 2).mean((0, 1)))
    scale = np.where(scale > 0, scale, 1.0)
    return differences / scale, scale


def within_systems(differences: Floats) -> Floats:
    """Share [F] of the square of each difference that the systems alone do not explain.

    Near 0, a feature goes with the systems' names, and no control can tell the two apart. NaN for a
    feature in which no two answers differ.
    """
    i, j = np.triu_indices(differences.shape[1], 1)
    pairs = differences[:, i, j]
    mean = pairs.mean(0)
    # The best s_i - s_j for all pairs: least squares is the mean over opponents.
    centre = differences.mean((0, 2))
    fitted = centre[i] - centre[j]
    total = (pairs**2).mean((0, 1))
    left = ((pairs - mean) ** 2).mean((0, 1)) + ((mean - fitted) ** 2).mean(0)
    return np.divide(left, total, out=np.full(len(total), np.nan), where=total > 0)
