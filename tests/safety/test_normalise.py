"""Normalisation by hand, and that every character knows where it came from."""

import hypothesis
import hypothesis.strategies as st
import pytest

from empathy_jax.safety.normalise import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我不想活了", "我不想活了"),
        ("ＫＩＬＬ　ＭＹＳＥＬＦ", "kill myself"),  # width and case
        ("好想，", "好想,"),
        ("真的不會再見", "真的不会再见"),  # traditional
        ("自·杀", "自杀"),  # signs inside a word
        ("自**杀", "自杀"),
        ("我 想 死", "我想死"),
        ("自，杀", "自杀"),
        ("好的，我想死", "好的,我想死"),  # a comma between clauses stays
        ("想\u200b死", "想死"),  # zero width
        ("kíll", "kill"),
        ("soooo tired", "so tired"),
        ("don’t", "don't"),
        ("自sha", "自杀"),
        ("zi杀", "自杀"),
        ("z s", "自杀"),
        ("zsh", "zsh"),
        ("紫砂", "自杀"),
        ("紫砂壶", "紫砂壶"),
        ("想s", "想死"),
        ("想s个", "想s个"),  # 4, s before a measure word are what they are
        ("想4个", "想4个"),
        ("4了算了", "死了算了"),
        ("第4了", "第4了"),
        ("不想活le", "不想活了"),
        ("想tl", "想跳楼"),
        ("html", "html"),
        ("噶腕", "割腕"),
        ("kms", "kill myself"),
        ("su1cide", "suicide"),
        ("I wanna", "i want to"),
        ("", ""),
        ("\ud800", ""),  # a lone surrogate
        ("\x00 ", " "),
    ],
)
def test_by_hand(text, expected):
    assert normalise(text).text == expected


@pytest.mark.parametrize(
    ("text", "word", "shown"),
    [
        ("我想自·杀·了", "自杀", "自·杀"),
        ("ok ＫＭＳ!", "kill myself", "ＫＭＳ"),
        ("我 想sha", "想", "想"),
    ],
)
def test_a_span_covers_what_stood_there(text, word, shown):
    now = normalise(text)
    start = now.text.index(word)
    first, last = now.span(start, start + len(word))
    assert text[first:last] == shown


@hypothesis.given(st.text(alphabet=st.characters(), max_size=80))
def test_any_text_has_an_origin_for_each_character(text):
    now = normalise(text)
    assert len(now.origin) == len(now.text) + 1
    assert now.origin == sorted(now.origin)
    assert now.origin[-1] == len(text)
    assert all(0 <= place < len(text) for place in now.origin[:-1])
