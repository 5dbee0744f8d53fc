"""The scanner finds what `finditer` finds, and refuses what would not be linear."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from empathy_jax.safety.scanning import compile_pattern, scan, scanner

PATTERNS = {
    "alternatives": "ab|ba",
    "optional": "(?:a|b)?c",
    "behind": "(?<!a)b[ab]{0,2}",
    "class": "[a-c]d",
    "word": r"\bab\b",
    "ahead": "a(?!b)",
}


@hypothesis.given(st.text(alphabet="abcd ", max_size=40))
def test_finds_what_finditer_finds(text):
    patterns = {name: compile_pattern(pattern) for name, pattern in PATTERNS.items()}
    expected = {
        (name, *match.span())
        for name, pattern in patterns.items()
        for match in pattern.finditer(text)
    }
    found = scan(scanner(patterns), text)
    assert set(found) == expected and len(found) == len(expected)
    assert [start for _, start, _ in found] == sorted(start for _, start, _ in found)


def test_names_of_the_lexicon_are_replaced_wherever_they_stand():
    pattern = compile_pattern("(?:x)?<one>", {"one": "a|<two>", "two": "b"})
    assert [pattern.fullmatch(text) is not None for text in ("a", "xb", "x")] == [True, True, False]
    with pytest.raises(ValueError, match="<three> is not in the lexicon"):
        compile_pattern("<three>", {"one": "a"})


@pytest.mark.parametrize(
    "pattern", ["a*", "a+", "a{2,}", "(?:ab|c+)", "a(?=b*)", "a*?", "(a|(?>b+))"]
)
def test_unbounded_repetition_is_refused(pattern):
    with pytest.raises(ValueError, match="bounded"):
        compile_pattern(pattern)


def test_what_is_no_pattern_is_refused():
    with pytest.raises(ValueError, match="not a regular expression"):
        compile_pattern("(a")


@pytest.mark.parametrize("pattern", [".a", "[^a]b", r"\wa", "a?", "(?:a|.)b", "a{0,2}"])
def test_a_pattern_without_a_known_beginning_is_refused(pattern):
    with pytest.raises(ValueError, match="must begin"):
        scanner({"one": re.compile(pattern)})
