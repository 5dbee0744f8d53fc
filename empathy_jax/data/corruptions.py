"""Bad answers made from good ones: the negatives that teach a reward model what it must not pay for.

An embedding is close to a question for many reasons, and most of them are no answer: the question
itself is the closest text of all. Each kind here is one way to look like an answer without being one;
`corrupt` draws it in as many forms as it can, so that a model learns the kind and not a phrase.
The fixed sentences are in `phrases.yaml`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from empathy_jax.chain_of_empathy import TAGS
from empathy_jax.data.keywords import is_keyword, keywords, segments
from empathy_jax.data.phrases import fill, load, pick, say

# A draw that looks like the answer is thrown away; after so many, the answer is replaced by nothing.
_DRAWS = 8

_SENTENCE = re.compile(
    r"[^。！？!?…\n.]*(?:[。！？!?…\n]+|\.+(?!\w)|\.)[”』」）)\"'\s]*|[^。！？!?…\n.]+"
)
_PUNCTUATION = "，。！？、；：…,.!?;:~～ \n"
_PERSONS = {
    "zh": {"我": "你", "你": "我"},
    "en": {
        "i": "you",
        "my": "your",
        "me": "you",
        "mine": "yours",
        "am": "are",
        "i'm": "you're",
        "i've": "you've",
        "myself": "yourself",
    },
}


@dataclasses.dataclass(frozen=True)
class _Case:
    """What a corruption is made from; the texts are no longer than `limit` characters."""

    rng: np.random.Generator
    question: str
    answer: str
    other: str
    limit: int
    language: str


def corrupt(
    kind: str,
    rng: np.random.Generator,
    question: str,
    answer: str,
    other: str,
    max_characters: int,
    language: str,
) -> str:
    """A text that is a worse answer to the question than the genuine answer.

    Args:
      kind: one of `KINDS`.
      rng: of all draws.
      question: the question.
      answer: a genuine answer to it.
      other: a genuine answer to another question.
      max_characters: what a model sees of a text; the text is no longer than that, so that what
        makes it bad is seen.
      language: "zh" or "en", of the sentences that are added.

    Returns:
      A text that is not the visible part of the answer, even if white space is left out of both.

    Raises:
      ValueError: for a kind or a language that does not exist, or when nothing is visible.
    """
    if kind not in _MAKERS:
        raise ValueError(f"kind must be one of {list(KINDS)}, got {kind!r}.")
    if max_characters < 1:
        raise ValueError(f"max_characters must be 1 or more, got {max_characters}.")
    load(language)
    visible = (text[:max_characters] for text in (question, answer, other))
    case = _Case(rng, *visible, max_characters, language)
    for _ in range(_DRAWS):
        text = _MAKERS[kind](case)[:max_characters]
        if _squeeze(text) != _squeeze(case.answer):
            return text
    return "" if _squeeze(case.answer) else "?"


def _squeeze(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


# ---- pieces of text


def _sentences(text: str) -> list[str]:
    """The sentences of a text, with what stands behind them; together they are the text."""
    return _SENTENCE.findall(text)


def _cut(text: str, length: int) -> str:
    """The whole sentences that fit into a length; when not one does, its first characters."""
    end = 0
    for sentence in _sentences(text):
        if end + len(sentence) > length:
            break
        end += len(sentence)
    return text[: end or max(length, 0)]


def _join(case: _Case, parts: Sequence[str]) -> str:
    """Parts as one text; English ones are kept apart by a space."""
    text = ""
    for part in parts:
        gap = case.language == "en" and text and part and not text[-1].isspace()
        text += f" {part}" if gap else part
    return text


def _some(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """So many of the items, or all of them, in random order."""
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _words(case: _Case, text: str) -> dict[str, str]:
    """A keyword of a text for the slots of a phrase."""
    found = keywords(text)
    return {"keyword": pick(case.rng, found) if found else say(case.rng, case.language, "thing")}


def _say(case: _Case, *names: str) -> str:
    """A sentence from one of the lists, about the question where it has a place for a keyword."""
    return say(case.rng, case.language, pick(case.rng, names), _words(case, case.question))


def _say_many(case: _Case, name: str, count: int) -> list[str]:
    """So many different sentences of a list; at times one of them names a keyword."""
    phrases = _some(case.rng, load(case.language)[name], count)
    said = [fill(case.rng, case.language, phrase, {}) for phrase in phrases]
    if f"{name}_keyword" in load(case.language) and _chance(case.rng, 0.3):
        said[int(case.rng.integers(len(said)))] = _say(case, f"{name}_keyword")
    return said


def _insert(case: _Case, text: str, additions: Sequence[str]) -> str:
    """A text with additions at its start, at its end, together or scattered between its sentences,
    or in the middle of one; it is cut so that all of them are visible."""
    added = sum(len(addition) + 2 for addition in additions)
    text = _cut(text, case.limit - added)
    place = case.rng.integers(6)
    if place == 0:
        return _join(case, [*additions, text])
    if place == 1:
        return _join(case, [text, *additions])
    if place == 2:
        at = int(case.rng.integers(len(text) + 1))
        return _join(case, [text[:at], *additions, text[at:]])
    parts = _sentences(text)
    at = int(case.rng.integers(len(parts) + 1))
    for addition in additions:
        if place == 5:
            at = int(case.rng.integers(len(parts) + 1))
        parts.insert(at, addition)
        at += 1
    return _join(case, parts)


# ---- the question again


def _swap_persons(case: _Case, text: str) -> str:
    """The text told to the one who told it: I is you."""
    persons = _PERSONS[case.language]
    if case.language == "zh":
        return text.translate(str.maketrans(persons))
    return re.sub(r"[A-Za-z']+", lambda word: persons.get(word[0].lower(), word[0]), text)


def _drop_sentence(case: _Case, text: str) -> str:
    parts = _sentences(text)
    if len(parts) > 1:
        del parts[int(case.rng.integers(len(parts)))]
    return "".join(parts)


def _double_sentence(case: _Case, text: str) -> str:
    parts = _sentences(text)
    if parts:
        parts.insert(int(case.rng.integers(len(parts) + 1)), pick(case.rng, parts))
    return _join(case, parts)


def _reorder(case: _Case, text: str) -> str:
    parts = _sentences(text)
    return _join(case, _some(case.rng, parts, len(parts)))


def _repunctuate(case: _Case, text: str) -> str:
    """Every mark of punctuation replaced by one and the same, or by none."""
    mark = pick(case.rng, ("", " ", "\n", "，", "。", "！", ",", "...", "、"))
    return re.sub(f"[{_PUNCTUATION}]+", " " if case.language == "en" and not mark else mark, text)


def _misspell(case: _Case, text: str) -> str:
    """A few characters lost or doubled."""
    copies = case.rng.choice(3, size=len(text), p=(0.03, 0.94, 0.03))
    return "".join(letter * int(n) for letter, n in zip(text, copies, strict=True))


def _quote(case: _Case, text: str) -> str:
    left, right = pick(
        case.rng, ("“”", "「」", '""', "（）", "【】", ("> ", ""), ("- ", ""), ("", "？"))
    )
    return left + text + right


def _part(case: _Case, text: str) -> str:
    """Most of the text, from its beginning or to its end."""
    length = int(len(text) * case.rng.uniform(0.5, 1.0))
    return text[:length] if _chance(case.rng, 0.5) else text[len(text) - length :]


_EDITS = (
    _swap_persons, _drop_sentence, _double_sentence, _reorder, _repunctuate, _misspell, _quote, _part
)  # fmt: skip


def _echo(case: _Case) -> str:
    """The question, as it is (two in five) or slightly changed."""
    text = case.question
    for _ in range(int(case.rng.integers(-1, 4))):
        text = pick(case.rng, _EDITS)(case, text)
    return text


def _echo_plus(case: _Case) -> str:
    """The question, or the question told back, with sentences that cost nothing."""
    rng = case.rng
    if _chance(rng, 0.3):
        start, end = _say(case, "retell"), _say(case, "stock_ending")
        body = _cut(case.question, case.limit - len(start) - len(end) - 2)
        return _join(case, [start, _swap_persons(case, body), end])
    names = (
        "opening",
        "comfort",
        "comfort",
        "comfort_keyword",
        "stock_ending",
        "closing",
        "advice",
    )
    extras = [_say(case, *names) for _ in range(int(rng.integers(1, 5)))]
    return _insert(case, _echo(case) if _chance(rng, 0.3) else case.question, extras)


def _stuffing(case: _Case) -> str:
    """Words of the question strung together."""
    rng = case.rng
    found = keywords(case.question) or [say(rng, case.language, "thing")]
    words = _some(rng, found, int(rng.integers(1, len(found) + 1)))
    if _chance(rng, 0.5):
        words.sort(key=found.index)
    words = (words * int(rng.integers(1, 4)))[:60]
    if _chance(rng, 0.3):
        clauses = [say(rng, case.language, "keyword_clause", {"keyword": word}) for word in words]
        return _join(case, clauses)
    mark = pick(rng, ("、", "，", "。", " ", "", "\n", "/", "|", " #", "……", "；", "和", ", ", "-"))
    if case.language == "en" and not mark.isspace():
        mark = pick(rng, (", ", " ", " and ", "; ", "\n", " / ", " #", ". "))
    return say(rng, case.language, "stuffing_frame", {"keywords": mark.join(words)})


# ---- answers to anything


def _borrowed(case: _Case) -> str:
    """Another question's answer with the words of this question in it."""
    rng = case.rng
    found = keywords(case.question) or [say(rng, case.language, "thing")]
    share = rng.choice((0.0, 0.4, 0.7, 1.0))
    new: dict[str, str] = {}
    parts = []
    for word, part in segments(case.other):
        if is_keyword(word, part) and _chance(rng, share):
            word = new.setdefault(word, pick(rng, found))
        parts.append(word)
    text = "".join(parts)
    if share and _chance(rng, 0.6):
        return text
    clauses = [
        say(rng, case.language, "keyword_clause", {"keyword": pick(rng, found)})
        for _ in range(int(rng.integers(1, 5)))
    ]
    return _insert(case, text, clauses)


def _generic(case: _Case) -> str:
    """Consolation that fits any question."""
    rng = case.rng
    said = _say_many(case, "comfort", int(rng.integers(1, 13)))
    if _chance(rng, 0.4):
        said.insert(0, _say(case, "opening"))
    if _chance(rng, 0.4):
        said.append(_say(case, "closing"))
    if _chance(rng, 0.15):
        said = [sentence + "\n" * int(rng.integers(3)) for sentence in said]
    return _join(case, said)


def _advice_only(case: _Case) -> str:
    """Advice that fits any question, and nothing else."""
    rng = case.rng
    said = _say_many(case, "advice", int(rng.integers(2, 11)))
    numbers = pick(rng, ("", "", "1.", "1、", "①", "- ", "(1) ", "第一，", "首先，"))
    said = [_number(numbers, index) + sentence for index, sentence in enumerate(said)]
    if _chance(rng, 0.4):
        said.insert(0, _say(case, "advice_heading"))
    gap = "\n" if _chance(rng, 0.5) else ""
    return _join(case, [sentence + gap for sentence in said])


def _number(style: str, index: int) -> str:
    """What stands before the advice of an index, counted in a style that begins at one."""
    if style == "首先，":
        return ("首先，", "其次，", "再次，", "然后，")[index] if index < 4 else "另外，"
    if style == "第一，":
        return f"第{'一二三四五六七八九十'[index]}，"
    if style == "①":
        return "①②③④⑤⑥⑦⑧⑨⑩"[index]
    return style.replace("1", str(index + 1))


# ---- less of the answer, or more


def _truncated(case: _Case) -> str:
    """A part of the answer: its beginning, its end, or every second sentence."""
    rng, answer = case.rng, case.answer
    length = int(len(answer) * rng.uniform(0.1, 0.6))
    form = rng.integers(5)
    if form == 0:
        return answer[:length]
    if form == 1:
        return _cut(answer, length)
    if form == 2:
        return answer[len(answer) - length :]
    parts = _sentences(answer)
    if form == 3:
        return "".join(parts[int(rng.integers(2)) :: 2])
    return "".join(part for part in parts if _chance(rng, 0.4))


def _advertisement(case: _Case) -> str:
    """The answer with an advertisement in it."""
    additions = [_say(case, "advertisement") for _ in range(int(case.rng.integers(1, 3)))]
    return _insert(case, case.answer, _own_lines(case, additions))


def _own_lines(case: _Case, additions: Sequence[str]) -> list[str]:
    """The additions, at times each on a line of its own."""
    gap = "\n" if _chance(case.rng, 0.3) else ""
    return [gap + addition + gap for addition in additions]


def _repetition(case: _Case) -> str:
    """The answer with sentences, a passage or the whole of it repeated."""
    rng = case.rng
    times = int(rng.integers(2, 7))
    answer = case.answer
    if len(answer) > 0.7 * case.limit:
        answer = _cut(answer, int(case.limit * rng.uniform(0.2, 0.7)))
    parts = _sentences(answer) or [answer]
    form = rng.integers(4)
    if form == 0:
        return _join(case, [answer] * times)
    start = int(rng.integers(len(parts)))
    passage = parts[start : start + (1 if form == 1 else int(rng.integers(1, len(parts) + 1)))]
    if form == 3:
        for _ in range(times - 1):
            parts.insert(int(rng.integers(len(parts) + 1)), pick(rng, passage))
        return _join(case, parts)
    end = start + len(passage)
    return _join(case, [*parts[:end], *passage * (times - 1), *parts[end:]])


def _padding(case: _Case) -> str:
    """The answer with sentences that say nothing between its own."""
    rng = case.rng
    wanted = max(int(len(case.answer) * rng.uniform(0.3, 4.0)), 20)
    room = max(min(wanted, case.limit - min(len(case.answer), case.limit // 4)), 1)
    fillers: list[str] = []
    for phrase in _some(rng, load(case.language)["filler"], 60):
        if room <= 0:
            break
        fillers.append(fill(rng, case.language, phrase, {}))
        room -= len(fillers[-1]) + 2
    return _insert(case, case.answer, fillers)


# ---- texts made for the grader


def _injection(case: _Case) -> str:
    """An instruction to the grader in an answer, or alone."""
    rng = case.rng
    base = case.answer, case.other, _generic(case), ""
    text = base[int(rng.choice(4, p=(0.45, 0.2, 0.2, 0.15)))]
    language = "en" if _chance(rng, 0.2) else case.language
    count = int(rng.integers(1, 4))
    additions = [say(rng, language, "injection") for _ in range(count)]
    return _insert(case, text, _own_lines(case, additions))


def _tags(case: _Case) -> str:
    """Tags alone, around a few words, or strewn through the answer."""
    rng = case.rng
    html = "<p> </p> <div> </div> <br> <b> </b> <think> </think> <reply> <|end|> [INST] [/INST] <s> </s>"
    known = TAGS if _chance(rng, 0.7) else tuple(html.split())
    form = rng.integers(4)
    if form == 0:
        return pick(rng, ("", "\n", " ")).join(TAGS)
    few = _some(rng, known, int(rng.integers(1, len(known) + 1))) * int(rng.integers(1, 4))
    few = [_respell(case, tag) for tag in few]
    if form == 1:
        return pick(rng, ("", "\n", " ", "...")).join(few)
    if form == 2:
        words = keywords(case.question)[:10] + [
            "",
            "…",
            _say(case, "comfort"),
            _say(case, "nothing"),
        ]
        return "".join(tag + pick(rng, words) for tag in few)
    return _insert(case, case.answer, few[: max(2, case.limit // 40)])


def _respell(case: _Case, tag: str) -> str:
    """A tag, rarely in a spelling that is none."""
    if _chance(case.rng, 0.8):
        return tag
    name = tag.strip("<>/[]|")
    return pick(
        case.rng,
        (tag.lower(), tag.upper(), f"[{name}]", f"【{name}】", f"{name}：", f"&lt;{name}&gt;"),
    )


def _empty(case: _Case) -> str:
    """Nothing, or next to nothing."""
    rng = case.rng
    form = rng.integers(6)
    if form == 0:
        return ""
    if form == 1:
        return pick(rng, (" ", "\n", "\t", "\u3000")) * int(rng.integers(1, 30))
    if form == 2:
        marks = pick(
            rng, ("。", "？", "！", "…", "，", ".", "?", "!", "~", "-", "、", "。，！", "*", "()")
        )
        return marks * int(rng.integers(1, 12))
    if form == 3:
        return pick(rng, ("0", "1", "2", "a", "x", "👍", "❤️", "🌹", "😊", "ok", "A", "666", "null"))
    if form == 4:
        return case.answer[: int(rng.integers(1, 3))]
    return say(rng, case.language, "nothing") + pick(rng, ("", "", "。", "！", "~", "..."))


def _shuffled(case: _Case) -> str:
    """The answer with its characters or words out of order, or mixed with another answer."""
    rng = case.rng
    parts = _sentences(case.answer)
    form = rng.integers(4)
    if form == 0:
        return "".join("".join(_some(rng, part, len(part))) for part in parts)
    if form == 1:
        words = [word for word, _ in segments(case.answer)]
        return "".join(_some(rng, words, len(words)))
    if form == 2:
        mixed = [[word for word, _ in segments(part)] for part in parts]
        return "".join("".join(_some(rng, words, len(words))) for words in mixed)
    others = _sentences(case.other)
    pairs = [pair for both in zip(parts, others, strict=False) for pair in both]
    return _join(case, pairs)


_MAKERS: Mapping[str, Callable[[_Case], str]] = {
    "echo": _echo,
    "echo_plus": _echo_plus,
    "stuffing": _stuffing,
    "borrowed": _borrowed,
    "generic": _generic,
    "advice_only": _advice_only,
    "truncated": _truncated,
    "advertisement": _advertisement,
    "repetition": _repetition,
    "padding": _padding,
    "injection": _injection,
    "tags": _tags,
    "empty": _empty,
    "shuffled": _shuffled,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)
