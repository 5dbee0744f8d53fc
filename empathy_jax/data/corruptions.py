"""Bad answers made from good ones: the negatives that teach a reward model what it must not pay for.

A text is near a question in the space of an embedding model for many reasons, and most of them do
not make it an answer: the question itself is the nearest text of all. Each kind here is one way to
look like an answer without being one. `corrupt` draws it in as many forms as it can, so that a model
learns the kind and not a phrase. The fixed sentences are in `phrases.yaml`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from empathy_jax.chain_of_empathy import TAGS
from empathy_jax.data.keywords import keywords, keywords_by_class, segments, word_class
from empathy_jax.data.phrases import fill, load, pick, say
from empathy_jax.data.text_edits import (
    chance,
    clauses,
    cut,
    edit,
    insert,
    join,
    restyle,
    sentences,
    some,
    swap_persons,
)

# A draw that is the answer is thrown away; after so many draws, nothing takes the answer's place.
_DRAWS = 8
_MOST_WORDS = 60
_OTHER_TAGS = (
    *(
        f"<{slash}{name}>"
        for name in ("p", "div", "b", "think", "reply", "s")
        for slash in ("", "/")
    ),
    *("<br>", "<|end|>", "[INST]", "[/INST]", "{{", "}}"),
)


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
    """A text that answers the question worse than the genuine answer does.

    Args:
      kind: one of `KINDS`.
      rng: of all draws.
      question: the question.
      answer: a genuine answer to it.
      other: a genuine answer to another question.
      max_characters: what a model sees of a text. The result is no longer, and what makes it bad
        lies within; where there is no room for it, the answer is shortened first.
      language: "zh" or "en", of the sentences that are added.

    Returns:
      A text other than the visible part of the answer, even if white space is left out of both.

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
    genuine = _without_space(case.answer)
    for _ in range(_DRAWS):
        text = _MAKERS[kind](case)[:max_characters]
        if _without_space(text) != genuine:
            return text
    return "" if genuine else "?"


def _without_space(text: str) -> str:
    return "".join(text.split())


def _keywords(case: _Case) -> list[str]:
    """The question's keywords, at least one."""
    return keywords(case.question) or [say(case.rng, case.language, "thing")]


def _say(case: _Case, *names: str) -> str:
    """A sentence from one of the lists; a place for a keyword is filled from the question."""
    words = {"keyword": pick(case.rng, _keywords(case)), "question": case.question[:60]}
    return say(case.rng, case.language, pick(case.rng, names), words)


def _say_many(case: _Case, name: str, count: int) -> list[str]:
    """So many different sentences of a list; three times in ten one of them names a keyword."""
    phrases = some(case.rng, load(case.language)[name], count)
    said = [fill(case.rng, case.language, phrase) for phrase in phrases]
    if chance(case.rng, 0.3):
        said[int(case.rng.integers(len(said)))] = _say(case, f"{name}_keyword")
    return said


def _insert(case: _Case, text: str, additions: Sequence[str]) -> str:
    """A text with additions, at times each on a line of its own, at some place in it."""
    gap = "\n" if chance(case.rng, 0.2) else ""
    additions = [gap + addition + gap for addition in additions]
    return insert(case.rng, text, additions, case.limit, case.language)


def _echo(case: _Case) -> str:
    """The question as it is (two in five), or with up to three small changes."""
    text = case.question
    for _ in range(int(case.rng.integers(-1, 4))):
        text = edit(case.rng, text, case.language)
    return text


def _echo_plus(case: _Case) -> str:
    """The question with sentences that cost nothing, or the question told back."""
    rng = case.rng
    if chance(rng, 0.3):
        return _told_back(case, _say(case, "stock_ending"))
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
    return _insert(case, _echo(case) if chance(rng, 0.3) else case.question, extras)


def _told_back(case: _Case, ending: str) -> str:
    """What the question says, said to the one who asked, and an ending."""
    start = _say(case, "retell")
    body = cut(case.question, case.limit - len(start) - len(ending) - 2)
    return join([start, swap_persons(body, case.language), ending], case.language)


def _stuffing(case: _Case) -> str:
    """Words or clauses of the question strung together."""
    rng, language = case.rng, case.language
    found = _keywords(case)
    if chance(rng, 0.2):
        found = clauses(case.question) or found
    words = some(rng, found, int(rng.integers(1, len(found) + 1)))
    if chance(rng, 0.5):
        words.sort(key=found.index)
    words = (words * int(rng.integers(1, 5)))[:_MOST_WORDS]
    if chance(rng, 0.3):
        strung = [say(rng, language, "keyword_clause", {"keyword": word}) for word in words]
        return join(strung, language)
    mark = pick(rng, load(language)["stuffing_mark"])
    return say(rng, language, "stuffing_frame", {"keywords": mark.join(words)})


def _borrowed(case: _Case) -> str:
    """Another question's answer with this question's words in it, or behind what it says."""
    rng = case.rng
    form = int(rng.integers(6))
    if form == 0:
        return _told_back(case, case.other)
    text = case.other if form == 1 else _with_new_words(case)
    if form > 3:
        return text
    found = _keywords(case)
    clauses_about = [
        say(rng, case.language, "keyword_clause", {"keyword": pick(rng, found)})
        for _ in range(int(rng.integers(1, 5)))
    ]
    return _insert(case, text, clauses_about)


def _with_new_words(case: _Case) -> str:
    """Another question's answer whose nouns, verbs or both become words of this question."""
    rng = case.rng
    share = pick(rng, (0.4, 0.7, 1.0))
    pools = keywords_by_class(case.question)
    if chance(rng, 0.6):
        pools.pop("v", None)
    new: dict[str, str] = {}
    parts = []
    for word, part in segments(case.other):
        name = word_class(word, part)
        if name in pools and chance(rng, share):
            word = new.setdefault(word, pick(rng, pools[name]))
        parts.append(word)
    return "".join(parts)


def _generic(case: _Case) -> str:
    """Consolation that fits any question, in one to twelve sentences."""
    rng = case.rng
    said = _say_many(case, "comfort", int(rng.integers(1, 13)))
    if chance(rng, 0.4):
        said.insert(0, _say(case, "opening"))
    if chance(rng, 0.4):
        said.append(_say(case, "closing"))
    return restyle(rng, join(said, case.language), case.language)


def _advice_only(case: _Case) -> str:
    """Advice that fits any question and nothing else, often as a numbered list."""
    rng = case.rng
    said = _say_many(case, "advice", int(rng.integers(2, 11)))
    style = pick(rng, load(case.language)["numbers"])
    said = [_number(style, index) + sentence for index, sentence in enumerate(said)]
    if chance(rng, 0.4):
        said.insert(0, _say(case, "advice_heading"))
    gap = "\n" if chance(rng, 0.4) else ""
    text = join([sentence + gap for sentence in said], case.language)
    return restyle(rng, text, case.language)


def _number(style: str, index: int) -> str:
    """What stands before the piece of advice of an index, in a style shown by its first number."""
    for row in ("一二三四五六七八九十", "①②③④⑤⑥⑦⑧⑨⑩"):
        if row[0] in style:
            return style.replace(row[0], row[index])
    if "首先" in style:
        return style.replace(
            "首先", ("首先", "其次", "再次", "然后", "接着", "另外")[min(index, 5)]
        )
    return style.replace("1", str(index + 1))


def _truncated(case: _Case) -> str:
    """A part of the answer: its beginning, its end, or some of its sentences."""
    rng, answer = case.rng, case.answer
    length = max(int(len(answer) * rng.uniform(0.1, 0.6)), 1)
    form = int(rng.integers(5))
    if form == 0:
        return answer[:length]
    if form == 1:
        return cut(answer, length)
    if form == 2:
        return answer[-length:]
    parts = sentences(answer)
    if form == 3:
        return "".join(parts[int(rng.integers(2)) :: 2])
    return "".join(part for part in parts if chance(rng, 0.4)) or answer[:length]


def _advertisement(case: _Case) -> str:
    """The answer with one advertisement or two in it."""
    additions = [_say(case, "advertisement") for _ in range(int(case.rng.integers(1, 3)))]
    return _insert(case, case.answer, additions)


def _repetition(case: _Case) -> str:
    """The answer with a sentence, a passage or the whole of it two to six times."""
    rng, language = case.rng, case.language
    times = int(rng.integers(2, 7))
    answer = case.answer
    if len(answer) > 0.7 * case.limit:
        answer = cut(answer, int(case.limit * rng.uniform(0.2, 0.7)))
    parts = sentences(answer)
    form = pick(rng, ("whole", "sentence", "passage", "scattered"))
    if form == "whole" or not parts:
        return join([answer] * times, language)
    start = int(rng.integers(len(parts)))
    longest = 1 if form == "sentence" else len(parts) - start
    end = start + int(rng.integers(1, longest + 1))
    passage = parts[start:end]
    if form == "scattered":
        for _ in range(times - 1):
            parts.insert(int(rng.integers(len(parts) + 1)), pick(rng, passage))
        return join(parts, language)
    return join([*parts[:end], *passage * (times - 1), *parts[end:]], language)


def _padding(case: _Case) -> str:
    """The answer made longer by a third to four times with sentences that say nothing."""
    rng = case.rng
    length = len(case.answer)
    room = case.limit - min(length, case.limit // 4)
    wanted = min(max(length * rng.uniform(0.3, 4.0), 20), room)
    fillers: list[str] = []
    for phrase in some(rng, load(case.language)["filler"], _MOST_WORDS):
        if sum(map(len, fillers)) >= wanted:
            break
        fillers.append(fill(rng, case.language, phrase))
    if chance(rng, 0.5):
        return _interleave(case, sentences(case.answer), fillers)
    return _insert(case, case.answer, fillers)


def _interleave(case: _Case, first: Sequence[str], second: Sequence[str]) -> str:
    """Sentences of both in turn."""
    pairs = itertools.zip_longest(first, second, fillvalue="")
    return join([part for pair in pairs for part in pair], case.language)


def _injection(case: _Case) -> str:
    """Instructions to the grader: in the answer, in another, in consolation, or alone."""
    rng = case.rng
    text = (case.answer, case.other, _generic(case), "")[rng.choice(4, p=(0.45, 0.2, 0.2, 0.15))]
    language = "en" if chance(rng, 0.2) else case.language
    writer = dataclasses.replace(case, language=language)
    additions = [_say(writer, "injection") for _ in range(int(rng.integers(1, 4)))]
    return _insert(case, text, additions)


def _tags(case: _Case) -> str:
    """Tags alone, around a few words, or strewn through the answer."""
    rng = case.rng
    form = pick(rng, ("all", "alone", "around", "strewn"))
    gap = pick(rng, ("", "", "\n", " ", "..."))
    if form == "all":
        return gap.join(TAGS)
    known = TAGS if chance(rng, 0.7) else _OTHER_TAGS
    few = some(rng, known, int(rng.integers(1, len(known) + 1))) * int(rng.integers(1, 4))
    few = [_respelled(case, tag) for tag in few]
    if form == "alone":
        return gap.join(few)
    if form == "around":
        words = [*_keywords(case)[:10], "", "…", _say(case, "comfort"), _say(case, "nothing")]
        return gap.join(tag + pick(rng, words) for tag in few)
    return _insert(case, case.answer, few[: max(2, case.limit // 40)])


def _respelled(case: _Case, tag: str) -> str:
    """A tag, one time in five in a spelling that is none."""
    if chance(case.rng, 0.8):
        return tag
    name = tag.strip("<>/[]|{}")
    forms = (tag.lower(), tag.upper(), f"[{name}]", f"【{name}】", f"{name}：", f"&lt;{name}&gt;")
    return pick(case.rng, forms)


def _empty(case: _Case) -> str:
    """Nothing, or next to nothing."""
    rng = case.rng
    form = int(rng.integers(6))
    if form == 0:
        return ""
    if form == 1:
        return pick(rng, " \n\t\u3000") * int(rng.integers(1, 30))
    if form == 2:
        return pick(rng, (*"。？！…，.?!~-、*", "。，！", "()")) * int(rng.integers(1, 12))
    if form == 3:
        return pick(rng, ("0", "1", "2", "a", "x", "👍", "❤️", "🌹", "😊", "ok", "A", "666", "null"))
    if form == 4:
        return case.answer[: int(rng.integers(1, 3))]
    return _say(case, "nothing") + pick(rng, ("", "", "。", "！", "~", "..."))


def _shuffled(case: _Case) -> str:
    """The answer with its characters or words out of order, or mixed with another answer."""
    rng = case.rng
    parts = sentences(case.answer)
    form = pick(rng, ("characters", "words", "words in sentences", "with another"))
    if form == "characters":
        return "".join("".join(some(rng, part, len(part))) for part in parts)
    if form == "with another":
        return _interleave(case, parts, sentences(case.other))
    mixed = [case.answer] if form == "words" else parts
    words = ([word for word, _ in segments(part)] for part in mixed)
    return "".join("".join(some(rng, row, len(row))) for row in words)


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
