"""Small changes of a text: sentences cut, moved, put in, and the same words in another dress.

What is drawn comes from the `rng` that is passed in. "zh" writes sentences without a space between
them, "en" with one.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from empathy_jax.data.phrases import pick

# A full stop inside a number or an address ends nothing. Nothing is read twice: the time is linear.
_SENTENCE = re.compile(
    r"(?:[^。！？!?…\n.]|\.(?=[A-Za-z0-9]))++(?:[。！？!?…\n.]+[”』」）)\"'\s]*)?"
    r"|[。！？!?…\n.]+[”』」）)\"'\s]*"
)
_MARKS = re.compile(r"[，。！？、；：…,.!?;:~～\n]+")
# In Chinese a space ends a clause too.
_CLAUSE_END = re.compile(r"[，。！？；：…,.!?;:~～\n]+|(?<=[\u4e00-\u9fff])\s+")
_WORD = re.compile(r"[A-Za-z']+")
_PERSONS = str.maketrans({"我": "你", "你": "我"})
_ENGLISH_PERSONS = {
    "i": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
    "am": "are",
    "i'm": "you're",
    "i've": "you've",
    "i'd": "you'd",
    "i'll": "you'll",
}


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return bool(rng.random() < probability)


def some(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """So many of the items, or all of them, in random order."""
    return [items[i] for i in rng.permutation(len(items))[:count]]


def sentences(text: str) -> list[str]:
    """The sentences of a text, with the marks and spaces behind them; joined they are the text."""
    return _SENTENCE.findall(text)


def clauses(text: str) -> list[str]:
    """What stands between the marks of a text."""
    return [clause.strip() for clause in _CLAUSE_END.split(text) if clause.strip()]


def cut(text: str, length: int) -> str:
    """The whole sentences that fit into a length; when not even one does, its first characters."""
    end = 0
    for sentence in sentences(text):
        if end + len(sentence) > length:
            break
        end += len(sentence)
    return text[: end or max(length, 0)]


def join(parts: Sequence[str], language: str) -> str:
    """Parts as one text."""
    if language != "en":
        return "".join(parts)
    text = ""
    for part in parts:
        text += f" {part}" if text and part and not text[-1].isspace() else part
    return text


def insert(
    rng: np.random.Generator, text: str, additions: Sequence[str], limit: int, language: str
) -> str:
    """A text with additions in it, cut so that all of them lie within the limit.

    They stand at the start, at the end, together between two sentences or inside one, or each
    somewhere between sentences.

    Args:
      rng: of the place.
      text: what they are put into; whole sentences are cut off its end to make room.
      additions: one or more; they keep their order unless they are scattered.
      limit: characters of the result; only additions that exceed it alone make it longer.
      language: "zh" or "en".
    """
    gaps = 2 if language == "en" else 0
    text = cut(text, limit - sum(len(addition) + gaps for addition in additions))
    place = pick(rng, ("start", "end", "between", "inside", "scattered"))
    if place == "start":
        return join([*additions, text], language)
    if place == "end":
        return join([text, *additions], language)
    if place == "inside":
        at = int(rng.integers(len(text) + 1))
        return join([text[:at], *additions, text[at:]], language)
    parts = sentences(text)
    if place == "between":
        at = int(rng.integers(len(parts) + 1))
        return join([*parts[:at], *additions, *parts[at:]], language)
    for addition in additions:
        parts.insert(int(rng.integers(len(parts) + 1)), addition)
    return join(parts, language)


def restyle(rng: np.random.Generator, text: str, language: str) -> str:
    """Sentences that were put together, as different people type them: half of them unchanged."""
    style = int(rng.integers(10))
    if style < 5:
        return text
    if style == 5:
        return "\n".join(sentence.rstrip() for sentence in sentences(text))
    if style == 6:
        return text.replace("。", "！").replace(". ", "! ")
    if style == 7:
        mark = pick(rng, ("~", "～", "…", " ", "，" if language == "zh" else ","))
        return text.replace("。", mark).replace(". ", f"{mark} ")
    if style == 8:
        return text.replace("你", "您").lower()
    face = pick(rng, ("❤️", "🌹", "(｡･ω･｡)", "^_^", "🙏", "😊", "[玫瑰]", "[hug]"))
    return join([text, face], language)


def swap_persons(text: str, language: str) -> str:
    """The text told back to its writer: "I" becomes "you", and in Chinese the other way too."""
    if language == "zh":
        return text.translate(_PERSONS)
    return _WORD.sub(lambda word: _ENGLISH_PERSONS.get(word[0].lower(), word[0]), text)


def edit(rng: np.random.Generator, text: str, language: str) -> str:
    """One small change that leaves a text recognisable, drawn from `EDITS`."""
    return pick(rng, EDITS)(rng, text, language)


def _swap_persons(rng: np.random.Generator, text: str, language: str) -> str:
    return swap_persons(text, language)


def _drop_sentence(rng: np.random.Generator, text: str, language: str) -> str:
    parts = sentences(text)
    if len(parts) > 1:
        del parts[int(rng.integers(len(parts)))]
    return "".join(parts)


def _double_sentence(rng: np.random.Generator, text: str, language: str) -> str:
    parts = sentences(text)
    if parts:
        parts.insert(int(rng.integers(len(parts) + 1)), pick(rng, parts))
    return join(parts, language)


def _reorder(rng: np.random.Generator, text: str, language: str) -> str:
    parts = sentences(text)
    return join(some(rng, parts, len(parts)), language)


def _repunctuate(rng: np.random.Generator, text: str, language: str) -> str:
    """Every mark becomes one and the same mark, or none."""
    mark = pick(rng, ("", " ", "\n", "，", "。", "！", "...", "、"))
    return _MARKS.sub(mark if language == "zh" else mark.replace("，", ","), text)


def _misspell(rng: np.random.Generator, text: str, language: str) -> str:
    """Three characters in a hundred lost, three doubled."""
    draws = rng.random(len(text))
    copies = 1 - (draws < 0.03).astype(int) + (draws > 0.97)
    return "".join(letter * int(n) for letter, n in zip(text, copies, strict=True))


def _quote(rng: np.random.Generator, text: str, language: str) -> str:
    left, right = pick(
        rng, ("“”", "「」", '""', "（）", "【】", ("> ", ""), ("- ", ""), ("", "？"))
    )
    return left + text + right


def _most(rng: np.random.Generator, text: str, language: str) -> str:
    """Half of the text or more, from its beginning or to its end."""
    length = int(len(text) * rng.uniform(0.5, 1.0))
    return text[:length] if chance(rng, 0.5) else text[len(text) - length :]


EDITS: tuple[Callable[[np.random.Generator, str, str], str], ...] = (
    _swap_persons,
    _drop_sentence,
    _double_sentence,
    _reorder,
    _repunctuate,
    _misspell,
    _quote,
    _most,
)
