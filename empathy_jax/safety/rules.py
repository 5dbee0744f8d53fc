"""The rules of the grading of risk: read from YAML, checked, compiled.

`rules.yaml` says what is found, `modifiers.yaml` what takes it back. Patterns have bounded repetition
only, so that a search takes time linear in the text; a pattern that has not is refused.
"""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any

import yaml

from empathy_jax.safety.scanning import Scanner, compile_pattern, scanner

MAX_GRADE = 6
LANGUAGES = ("zh", "en")
_KEYS = {"id", "element", "grade", "language", "why", "patterns"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is looked for.

    Attributes:
      id: its name in findings.
      element: kind of thing that it finds, for `Combination.needs`.
      grade: of a finding that nothing lowers; 0: counts in combinations only.
      language: "zh" or "en".
      why: what a finding means, in words.
      pattern: of normalised text.
      unless: in the sentence of a finding it takes the finding back; None: nothing does.
    """

    id: str
    element: str
    grade: int
    language: str
    why: str
    pattern: re.Pattern
    unless: re.Pattern | None


@dataclasses.dataclass(frozen=True)
class Combination:
    """Elements that mean more together.

    Attributes:
      id, grade, why: as in `Rule`.
      needs: one element of each of these sets.
      sentences: how many sentences in a row they may lie in, 1 or 2.
    """

    id: str
    needs: tuple[frozenset[str], ...]
    sentences: int
    grade: int
    why: str


@dataclasses.dataclass(frozen=True)
class Modifiers:
    """What takes a finding back or lowers it; `modifiers.yaml` says of each when it applies."""

    idioms: re.Pattern
    negation: re.Pattern
    no_negation: re.Pattern
    denial_behind: re.Pattern
    subjects: Mapping[str, re.Pattern]
    frames: Mapping[str, re.Pattern]
    also_me: re.Pattern
    insults: re.Pattern
    imperative: re.Pattern
    grief: re.Pattern
    past: re.Pattern
    still: re.Pattern


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order of the file."""
    document = _read("rules.yaml")
    return tuple(parse_rule(entry, document["lexicon"]) for entry in document["rules"])


@functools.cache
def combinations() -> tuple[Combination, ...]:
    """All combinations, in the order of the file."""
    known = {rule.element for rule in rules()}
    return tuple(parse_combination(entry, known) for entry in _read("rules.yaml")["combinations"])


@functools.cache
def rule_scanner() -> Scanner:
    """Finds the matches of all rules; their names are places in `rules()`."""
    return scanner({index: rule.pattern for index, rule in enumerate(rules())})


@functools.cache
def context_scanner() -> Scanner:
    """Finds idioms, subjects and frames; their names are the modifier's and its kind's."""
    words = modifiers()
    kinds = {"subjects": words.subjects, "frames": words.frames, "idioms": {"": words.idioms}}
    return scanner(
        {(kind, name): pattern for kind, named in kinds.items() for name, pattern in named.items()}
    )


@functools.cache
def modifiers() -> Modifiers:
    """All modifiers."""
    values = {
        name: {key: compile_pattern(text) for key, text in value.items()}
        if isinstance(value, dict)
        else compile_pattern("|".join(value) if isinstance(value, list) else value)
        for name, value in _read("modifiers.yaml").items()
    }
    return Modifiers(**values)


def parse_rule(entry: Mapping[str, Any], lexicon: Mapping[str, str]) -> Rule:
    """One rule of the file.

    Raises:
      ValueError: for a key, grade, language or pattern that cannot be; the message names the rule.
    """
    name = entry.get("id")
    if set(entry) - {"unless"} != _KEYS:
        raise ValueError(
            f"rule {name!r} must have the keys {sorted(_KEYS)} and may have `unless`, got {sorted(entry)}"
        )
    if entry["grade"] not in range(MAX_GRADE + 1):
        raise ValueError(f"rule {name!r}: grade must be 0 to {MAX_GRADE}, got {entry['grade']!r}")
    if entry["language"] not in LANGUAGES:
        raise ValueError(f"rule {name!r}: language must be zh or en, got {entry['language']!r}")
    try:
        pattern = compile_pattern("|".join(entry["patterns"]), lexicon)
        unless = compile_pattern(entry["unless"], lexicon) if "unless" in entry else None
    except ValueError as error:
        raise ValueError(f"rule {name!r}: {error}") from error
    kept = {key: entry[key] for key in ("id", "element", "grade", "language", "why")}
    return Rule(**kept, pattern=pattern, unless=unless)


def parse_combination(entry: Mapping[str, Any], elements: set[str]) -> Combination:
    """One combination of the file.

    Raises:
      ValueError: for an element that no rule finds, or a window that there is not.
    """
    windows = {"sentence": 1, "two": 2}
    needs = tuple(frozenset(need) for need in entry["needs"])
    if unknown := frozenset().union(*needs) - elements:
        raise ValueError(f"combination {entry['id']!r}: no rule finds {sorted(unknown)}")
    if entry["within"] not in windows:
        raise ValueError(
            f"combination {entry['id']!r}: within must be one of {list(windows)}, got {entry['within']!r}"
        )
    return Combination(entry["id"], needs, windows[entry["within"]], entry["grade"], entry["why"])


def _read(name: str) -> Any:
    file = importlib.resources.files("empathy_jax.safety") / name
    return yaml.safe_load(file.read_text(encoding="utf-8"))
