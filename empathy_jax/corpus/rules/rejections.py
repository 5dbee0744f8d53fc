"""What makes a cleaned text useless: its length, its characters, its language, its copies.

Each function takes the text and its limit and says True where the text is to be rejected.
"""

import re

# Gopher's quality filters reject texts by the share of duplicate n-grams (Rae et al. 2021,
# "Scaling Language Models", appendix A.1.1, https://arxiv.org/abs/2112.11446); characters here.
GRAM = 10
MAX_REPEATED = 0.4  # share of n-grams seen before in the text
MAX_COPIED = 0.5  # share of the answer's n-grams that stand in the question
MIN_LETTERS = 0.3  # share of letters among the characters that are not white space
MIN_LANGUAGE = 0.5  # share of the language's letters among all letters

_NO_LETTERS = re.compile(r"[\W\d_]+")
_PLACEHOLDER = re.compile(r"\[[A-Z_]{2,12}\]")
_NOT_OF = {
    "zh": re.compile("[^\u3400-\u9fff\U00020000-\U0003ffff]+"),
    "en": re.compile("[^A-Za-z]+"),
}
_LATIN_WORD = re.compile("[A-Za-z]+")
_SPACE = re.compile(r"\s+")


def symbol_soup(text: str) -> bool:
    """Whether fewer than three tenths of the visible characters are letters of any script."""
    visible = len(_SPACE.sub("", text))
    return visible > 0 and _letters(text) < MIN_LETTERS * visible


def foreign(text: str, language: str) -> bool:
    """Whether fewer than half of the letters belong to the language.

    Beside Chinese a Latin word counts as one letter, since it says as much as one or two characters.

    Args:
      language: "zh", "en", or "any", which nothing fails.
    """
    if language == "any":
        return False
    text = _PLACEHOLDER.sub("", text)
    if language == "zh":
        text = _LATIN_WORD.sub("a", text)
    own = len(_NOT_OF[language].sub("", text))
    return own < MIN_LANGUAGE * _letters(text)


def repetitive(text: str) -> bool:
    """Whether a text of some length says the same again and again."""
    places = len(text) - GRAM + 1
    if places < 5 * GRAM:
        return False
    distinct = len({text[i : i + GRAM] for i in range(places)})
    return places - distinct > MAX_REPEATED * places


def copied(answer: str, question: str) -> bool:
    """Whether half of the answer stands, ten characters at a time, in the question."""
    if len(answer) < GRAM:
        return answer == question
    known = {question[i : i + GRAM] for i in range(len(question) - GRAM + 1)}
    starts = range(0, len(answer) - GRAM + 1, 3)
    return sum(answer[i : i + GRAM] in known for i in starts) > MAX_COPIED * len(starts)


def _letters(text: str) -> int:
    return len(_NO_LETTERS.sub("", text))
