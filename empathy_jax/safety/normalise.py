"""One spelling for texts that say the same: width, case, script, inserted signs, known evasions.

Every character of the normalised text remembers which character of the original it came from, so
that a match can be shown where it stands. The evasions are data, in `spellings.yaml`.
"""

import functools
import importlib.resources
import itertools
import re
import unicodedata
from typing import NamedTuple

import yaml

from empathy_jax.corpus.rules import characters

_CHINESE = "\u3400-\u9fff"
_DROPPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Mn", "Me"}  # controls, joiners, lone surrogates, accents
_SPACE = re.compile(r"[^\S\n]{2,}|[^\S\n ]")
_REPEATED = re.compile(r"([a-z])\1{2,}")
# Signs that end nothing are dropped between two Chinese characters, white space beside one.
_SIGN = re.compile(
    rf"(?<=[{_CHINESE}])[^\w\s,;:!?。、“”\"'‘’「」『』《》()]{{1,3}}(?=[{_CHINESE}])"
)
_SPACE_BESIDE = re.compile(rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")
# A comma ends nothing where a single character stands between it and another sign.
_LONE = re.compile(rf"[{_CHINESE}]+")
_COMMAS = set(",、")


class Normalised(NamedTuple):
    """A text in one spelling.

    Attributes:
      text: the normalised text.
      origin: for each of its characters, and for its end, an offset in the original.
    """

    text: str
    origin: list[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Offsets in the original, end exclusive, of a non-empty span of the normalised text."""
        return self.origin[start], self.origin[end - 1] + 1


def normalise(text: str) -> Normalised:
    """The text without differences that carry no meaning; any string will do.

    Compatibility forms and accents (NFKD), case, traditional characters, control and zero-width
    characters, signs and spaces between Chinese characters, letters written three times or more,
    and the evasions of `spellings.yaml`. Takes time linear in the length.
    """
    folded = {character: _fold(character) for character in set(text)}
    pieces = [folded[character] for character in text]
    origin = [index for index, piece in enumerate(pieces) for _ in piece]
    now = Normalised("".join(pieces), [*origin, len(text)])
    now = _replace(now, _SPACE, lambda match: " ")
    now = _replace(now, _REPEATED, lambda match: match[1])
    now = _replace(now, _SIGN, lambda match: "")
    now = _replace(now, _SPACE_BESIDE, lambda match: "")
    now = _without_lone_commas(now)
    pattern, replacements = _spellings()
    return _replace(now, pattern, lambda match: replacements[match.lastindex - 1])


@functools.lru_cache(maxsize=1 << 16)
def _fold(character: str) -> str:
    if character in "\n\r\u2028\u2029":
        return "\n"
    if character.isspace():
        return " "
    kept = [
        part
        for part in unicodedata.normalize("NFKD", character).casefold()
        if unicodedata.category(part) not in _DROPPED
    ]
    simple = "".join(kept).translate({0x2018: "'", 0x2019: "'"})
    if "\u3400" <= simple[:1] <= "\u9fff":
        return characters.script(simple, "simplified")[0]
    return simple


def _replace(now: Normalised, pattern: re.Pattern, replacement) -> Normalised:
    """What `pattern.sub` gives, with offsets; a replacement points to where its match begins."""
    parts, origin, done = [], [], 0
    for match in pattern.finditer(now.text):
        start, end = match.span()
        new = replacement(match)
        parts += [now.text[done:start], new]
        origin += now.origin[done:start]
        # The last character stands for the rest of the match, so that spans cover all of it.
        places = now.origin[start:end]
        origin += [places[min(index, len(places) - 1)] for index in range(len(new) - 1)]
        origin += places[-1:] if new else []
        done = end
    if not done:
        return now
    return Normalised("".join([*parts, now.text[done:]]), origin + now.origin[done:])


def _without_lone_commas(now: Normalised) -> Normalised:
    """Without the commas around a single Chinese character: 自,杀 but not 好的,我想死."""
    drop = set()
    for match in _LONE.finditer(now.text):
        start, end = match.span()
        if end - start == 1:
            drop |= {
                i for i in (start - 1, end) if 0 <= i < len(now.text) and now.text[i] in _COMMAS
            }
    if not drop:
        return now
    kept = [index for index in range(len(now.text)) if index not in drop]
    return Normalised(
        "".join(now.text[index] for index in kept),
        [now.origin[index] for index in kept] + now.origin[-1:],
    )


@functools.cache
def _spellings() -> tuple[re.Pattern, list[str]]:
    """One pattern with a group for each evasion, and what each stands for."""
    file = importlib.resources.files("empathy_jax.safety") / "spellings.yaml"
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    groups = "|".join(
        f"({entry.get('pattern') or _mixture(entry['spelled'])})" for entry in entries
    )
    return re.compile(groups, re.ASCII), [entry["means"] for entry in entries]


def _mixture(spelled: list[list[str]]) -> str:
    """A pattern of two characters in any of their spellings, one of them Chinese at least."""
    either = "|".join(
        f"{first} ?{second}"
        for first, second in itertools.product(*spelled)
        if not f"{first}{second}".isascii()
    )
    return f"(?<![a-z0-9])(?:{either})(?![a-z0-9]|(?<=[a-z0-9])[个年月天次点号份本楼])"
