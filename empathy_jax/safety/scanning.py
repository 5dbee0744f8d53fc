"""Many regular expressions over one text in a time linear in the text.

Repetition in a pattern is bounded, so that a try at one place takes bounded time; and a pattern is
tried only where one of the characters stands that it can begin with. A text in which few of them
stand is passed quickly.
"""

import re
from collections.abc import Hashable, Iterable, Mapping
from re import _constants as ops  # no public way leads to the parts of a pattern
from re import _parser
from typing import NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)

_NAME = re.compile(r"<(\w+)>")


class Scanner(NamedTuple):
    """Patterns by what they can begin with.

    Attributes:
      leads: any character that a pattern begins with.
      tried: for each of them the patterns, with their names, that begin so.
    """

    leads: re.Pattern
    tried: Mapping[str, tuple[tuple[Hashable, re.Pattern], ...]]


def compile_pattern(text: str, lexicon: Mapping[str, str] | None = None) -> re.Pattern:
    """A pattern with the lexicon's entries in the places of their names, `<name>`.

    Raises:
      ValueError: for an unknown name, unbounded repetition, or no regular expression.
    """
    lexicon = lexicon or {}

    def entry(match: re.Match) -> str:
        if match[1] not in lexicon:
            raise ValueError(f"<{match[1]}> is not in the lexicon, which has {sorted(lexicon)}")
        return f"(?:{_NAME.sub(entry, lexicon[match[1]].strip())})"

    full = _NAME.sub(entry, text)
    try:
        parsed = _parser.parse(full, re.ASCII)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error}): {full!r}") from error
    if not _bounded(parsed):
        raise ValueError(f"repetition must be bounded, e.g. {{0,8}} in place of *: {full!r}")
    return re.compile(full, re.ASCII)


def scanner(patterns: Mapping[Name, re.Pattern]) -> Scanner:
    """A scanner of patterns with these names.

    Raises:
      ValueError: for a pattern that can begin with any character, or match nothing at all.
    """
    tried: dict[str, list[tuple[Hashable, re.Pattern]]] = {}
    for name, pattern in patterns.items():
        leads, empty = _leads(_parser.parse(pattern.pattern, pattern.flags))
        if leads is None or empty:
            raise ValueError(
                f"the pattern of {name!r} must begin with characters that are named, not with . or"
                f" [^...] or nothing: {pattern.pattern!r}"
            )
        for lead in leads:
            tried.setdefault(lead, []).append((name, pattern))
    return Scanner(
        re.compile("[" + "".join(map(re.escape, sorted(tried))) + "]"),
        {lead: tuple(found) for lead, found in tried.items()},
    )


def scan(scanner: Scanner, text: str) -> list[tuple[Hashable, int, int]]:
    """Name, start and end of every match, as each pattern's `finditer` gives them, by their start."""
    found = []
    done: dict[Hashable, int] = {}
    for lead in scanner.leads.finditer(text):
        start = lead.start()
        for name, pattern in scanner.tried[lead[0]]:
            if done.get(name, 0) <= start and (match := pattern.match(text, start)):
                done[name] = match.end()
                found.append((name, start, match.end()))
    return found


def _bounded(parsed: Iterable) -> bool:
    """Whether no repetition of a pattern is without a limit."""
    for op, value in parsed:
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
            if value[1] == ops.MAXREPEAT or not _bounded(value[2]):
                return False
        elif not all(_bounded(part) for part in _parts(op, value)):
            return False
    return True


def _parts(op: int, value) -> list:
    """The patterns within one element of a pattern, repetition aside."""
    if op is ops.BRANCH:
        return value[1]
    if op is ops.SUBPATTERN:
        return [value[3]]
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return [value[1]]
    if op is ops.ATOMIC_GROUP:
        return [value]
    return []


def _leads(parsed: Iterable) -> tuple[set[str] | None, bool]:
    """The characters that a match can begin with, None: any, and whether a match can be empty."""
    leads: set[str] = set()
    for op, value in parsed:
        if op in (ops.AT, ops.ASSERT, ops.ASSERT_NOT):
            continue
        if op is ops.LITERAL:
            return leads | {chr(value)}, False
        if op is ops.IN:
            own, empty = _of_class(value), False
        elif op is ops.MAX_REPEAT:
            own, empty = _leads(value[2])
            empty = empty or value[0] == 0
        elif parts := _parts(op, value):
            each = [_leads(part) for part in parts]
            own = (
                None if any(one is None for one, _ in each) else set().union(*(o for o, _ in each))
            )
            empty = any(nothing for _, nothing in each)
        else:
            own, empty = None, False
        if own is None:
            return None, empty
        leads |= own
        if not empty:
            return leads, False
    return leads, True


def _of_class(items: list) -> set[str] | None:
    """The characters of a class; None for one that is negated or named, such as \\w."""
    leads: set[str] = set()
    for op, value in items:
        if op is ops.LITERAL:
            leads.add(chr(value))
        elif op is ops.RANGE:
            leads |= {chr(code) for code in range(value[0], value[1] + 1)}
        else:
            return None
    return leads
