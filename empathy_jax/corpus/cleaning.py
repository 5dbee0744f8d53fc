"""The cleaning of one text: repairs first, then reasons to reject it.

    clean_text      mends the text; says how often each repair changed something
    reject_reason   the name of the first rule that rejects the text, or None

Every rule is a pure function of its own, switched by the field of `Rules` that has its name.
`RULES` lists them all in their order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from empathy_jax.corpus.rules import (
    advertising,
    boilerplate,
    characters,
    markup,
    personal_data,
    rejections,
)

Part = Literal["question", "answer"]

SCRIPTS = ("keep", "simplified", "traditional")
LANGUAGES = ("any", "zh", "en")
_MOST_PASSES = 20  # texts settle in two or three; only made-up nests of entities need more


@dataclass(frozen=True)
class Rules:
    """Which rules run, and their limits; fields as in `config.corpus.clean`."""

    # Repairs.
    mojibake: bool = True
    markup: bool = True
    invisible: bool = True
    whitespace: bool = True
    script: str = "keep"  # keep | simplified | traditional
    speaker_label: bool = True
    platform_mask: bool = True
    repeated_characters: bool = True
    solicitation: bool = True
    boilerplate: bool = True
    email: bool = True
    user_url: bool = True
    id_card: bool = True
    bank_card: bool = True
    phone: bool = True
    wechat: bool = True
    qq: bool = True
    full_name: bool = True
    # Reasons to reject.
    broken_encoding: bool = True
    advertising: bool = True
    too_short: bool = True
    too_long: bool = True
    symbol_soup: bool = True
    language: str = "zh"  # zh | en | any
    repetition: bool = True
    copied_question: bool = True
    # Limits, in characters.
    min_question_characters: int = 6
    min_answer_characters: int = 100
    max_question_characters: int = 10_000
    max_answer_characters: int = 10_000

    def __post_init__(self) -> None:
        _check("script", self.script, SCRIPTS)
        _check("language", self.language, LANGUAGES)
        for part in ("question", "answer"):
            low = getattr(self, f"min_{part}_characters")
            high = getattr(self, f"max_{part}_characters")
            if not 0 <= low <= high:
                raise ValueError(
                    f"lengths of {part}s must satisfy 0 <= min <= max, got {low} and {high}: change "
                    f"config.corpus.clean.min_{part}_characters or "
                    f"config.corpus.clean.max_{part}_characters"
                )


def clean_text(text: str, part: Part, rules: Rules) -> tuple[str, dict[str, int]]:
    """Runs the repairs until none changes the text.

    Cleaning a cleaned text changes nothing. One pass can lay open what another rule must take (an
    entity that is a tag, a label behind a mask), therefore the repetition.

    Args:
      text: as it was read.
      part: "question" or "answer".
      rules: which repairs run.

    Returns:
      the text, and for each repair that changed it how many places it changed.
    """
    counts: dict[str, int] = {}
    for _ in range(_MOST_PASSES):
        before = text
        for name, repair, _ in REPAIRS:
            if not getattr(rules, name):
                continue
            text, changes = repair(text, part, rules)
            if changes:
                counts[name] = counts.get(name, 0) + changes
        if text == before:
            break
    return text, counts


def without_personal_data(text: str, rules: Rules) -> str:
    """A name or label with placeholders for the personal data in it."""
    for name, rule, _ in personal_data.RULES:
        if getattr(rules, name):
            text, _ = rule(text)
    return text


def reject_reason(text: str, part: Part, rules: Rules, question: str | None = None) -> str | None:
    """The name of the first rule that rejects the text, None where all let it pass.

    Args:
      text: after `clean_text`.
      part: "question" or "answer".
      rules: which rules run, and their limits.
      question: the cleaned question of an answer, where known.
    """
    for name, rejects, _ in REJECTIONS:
        if getattr(rules, name) and rejects(text, part, rules, question):
            return name
    return None


def _check(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"config.corpus.clean.{field} must be one of {', '.join(allowed)}, got {value!r}"
        )


def _repair(function: Callable[[str], tuple[str, int]]) -> Callable[..., tuple[str, int]]:
    """A repair that asks for the text alone, called as all are."""

    def repair(text: str, part: Part, rules: Rules) -> tuple[str, int]:
        del part, rules
        return function(text)

    return repair


def _script(text: str, part: Part, rules: Rules) -> tuple[str, int]:
    del part
    return characters.script(text, rules.script)


def _speaker_label(text: str, part: Part, rules: Rules) -> tuple[str, int]:
    del rules
    return boilerplate.speaker_label(text, part)


def _too_short(text: str, part: Part, rules: Rules, question: str | None) -> bool:
    del question
    return len(text) < getattr(rules, f"min_{part}_characters")


def _too_long(text: str, part: Part, rules: Rules, question: str | None) -> bool:
    del question
    return len(text) > getattr(rules, f"max_{part}_characters")


def _foreign(text: str, part: Part, rules: Rules, question: str | None) -> bool:
    del part, question
    return rejections.foreign(text, rules.language)


def _copied(text: str, part: Part, rules: Rules, question: str | None) -> bool:
    del rules
    return part == "answer" and question is not None and rejections.copied(text, question)


def _rejection(function: Callable[[str], bool]) -> Callable[..., bool]:
    """A reason that asks for the text alone, called as all are."""

    def rejects(text: str, part: Part, rules: Rules, question: str | None) -> bool:
        del part, rules, question
        return function(text)

    return rejects


REPAIRS = (
    ("mojibake", _repair(characters.mojibake), "text decoded with the wrong encoding is mended"),
    ("markup", _repair(markup.markup), "HTML tags, entities, embedded images, MS Word's XML go"),
    ("invisible", _repair(characters.invisible), "control, zero-width and private characters go"),
    ("whitespace", _repair(characters.whitespace), "NFC; line feeds, single spaces"),
    ("script", _script, "characters become simplified or traditional"),
    ("speaker_label", _speaker_label, "speaker labels go, and the turns of the other speaker"),
    (
        "platform_mask",
        _repair(boilerplate.platform_mask),
        "masks and names of pictures are mended or go",
    ),
    (
        "repeated_characters",
        _repair(boilerplate.repeated_characters),
        "seven or more of a character become three",
    ),
    (
        "solicitation",
        _repair(advertising.solicitation),
        "single sentences that advertise or ask for contact go",
    ),
    ("boilerplate", _repair(boilerplate.boilerplate), "sign-offs of platforms and signatures go"),
    *((name, _repair(rule), description) for name, rule, description in personal_data.RULES),
)

REJECTIONS = (
    ("broken_encoding", _rejection(characters.broken), "the encoding is lost"),
    (
        "advertising",
        _rejection(advertising.is_advertising),
        "over a third advertises or asks for contact",
    ),
    ("too_short", _too_short, "fewer characters than the least allowed"),
    ("too_long", _too_long, "more characters than the most allowed"),
    (
        "symbol_soup",
        _rejection(rejections.symbol_soup),
        "fewer than three tenths of the characters are letters",
    ),
    ("language", _foreign, "fewer than half of the letters belong to the language"),
    ("repetition", _rejection(rejections.repetitive), "two fifths of the text were said before"),
    ("copied_question", _copied, "half of the answer stands in the question"),
)

RULES = REPAIRS + REJECTIONS
