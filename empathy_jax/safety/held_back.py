"""What a reply may not say: details of a method, a dosage, a diagnosis.

`held_back.yaml` holds the patterns, of normalised text, under the discipline of scanning.py: the time is
linear in the text. They know plain words; what is said in a roundabout way passes.
"""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping
from typing import Any

import yaml

from empathy_jax.safety.normalise import normalise
from empathy_jax.safety.rules import LANGUAGES
from empathy_jax.safety.scanning import Scanner, compile_pattern, scan, scanner

CODES = ("method", "dosage", "diagnosis")  # the gravest first
_KEYS = {"id", "code", "language", "why", "patterns"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is held back.

    Attributes:
      id: its name.
      code: one of CODES.
      why: what a finding means, in words.
      pattern: of normalised text.
      near: must stand in the sentence or shortly before it for a finding to count; None: nothing must.
      unless: in the sentence it takes a finding back; None: nothing does.
    """

    id: str
    code: str
    why: str
    pattern: re.Pattern
    near: re.Pattern | None
    unless: re.Pattern | None


def find(sentence: str, before: str = "") -> str | None:
    """The gravest code of what a sentence says, or None.

    Args:
      sentence: of a reply.
      before: what the reply said right before it; what ends there is not found again.
    """
    now = normalise(before + sentence)
    # The first normalised character that comes from the sentence.
    start = next((i for i, at in enumerate(now.origin) if at >= len(before)), len(now.text))
    found = set()
    for index, first, end in scan(_scanner(), now.text):
        rule = rules()[index]
        if (
            end > start
            and (rule.near is None or rule.near.search(now.text))
            and not (rule.unless and rule.unless.search(now.text, min(first, start)))
        ):
            found.add(rule.code)
    return next((code for code in CODES if code in found), None)


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order of the file."""
    file = importlib.resources.files("empathy_jax.safety") / "held_back.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(parse_rule(entry, document["lexicon"]) for entry in document["rules"])


@functools.cache
def _scanner() -> Scanner:
    return scanner({index: rule.pattern for index, rule in enumerate(rules())})


def parse_rule(entry: Mapping[str, Any], lexicon: Mapping[str, str]) -> Rule:
    """One rule of the file.

    Raises:
      ValueError: for a key, code, language or pattern that cannot be; the message names the rule.
    """
    name = entry.get("id")
    if set(entry) - {"near", "unless"} != _KEYS:
        raise ValueError(
            f"rule {name!r} must have the keys {sorted(_KEYS)} and may have `near` and `unless`, got "
            f"{sorted(entry)}"
        )
    for key, allowed in (("code", CODES), ("language", LANGUAGES)):
        if entry[key] not in allowed:
            raise ValueError(f"rule {name!r}: {key} must be one of {allowed}, got {entry[key]!r}")
    try:
        pattern = compile_pattern("|".join(entry["patterns"]), lexicon)
        near, unless = (
            compile_pattern(entry[key], lexicon) if key in entry else None
            for key in ("near", "unless")
        )
    except ValueError as error:
        raise ValueError(f"rule {name!r}: {error}") from error
    return Rule(name, entry["code"], entry["why"], pattern, near, unless)
