import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.data import text_edits

TEXTS = st.one_of(st.text(), st.text(alphabet='我你。！？. \n"”a1…'))
LANGUAGES = st.sampled_from(("zh", "en"))
RNGS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def _is_subsequence(part: str, whole: str) -> bool:
    letters = iter(whole)
    return all(letter in letters for letter in part)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("没有句号", ["没有句号"]),
        ("他说：“走吧。”我没动！！好吗？", ["他说：“走吧。”", "我没动！！", "好吗？"]),
        ("It cost 3.50 at x.com. Why?  Oh", ["It cost 3.50 at x.com. ", "Why?  ", "Oh"]),
        ("……一\n\n二", ["……", "一\n\n", "二"]),
    ],
)
def test_sentences(text, expected):
    assert text_edits.sentences(text) == expected


@hypothesis.given(TEXTS)
def test_sentences_are_the_text(text):
    parts = text_edits.sentences(text)
    assert "".join(parts) == text
    assert all(parts)


def test_sentences_of_a_very_long_text():
    for piece in ("a.", ".", "”", "a", "。"):
        assert "".join(text_edits.sentences(piece * 100_000)) == piece * 100_000


def test_clauses():
    assert text_edits.clauses("我累了，真的 累。为什么？ so very tired, why") == [
        *("我累了", "真的", "累", "为什么", "so very tired", "why")
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(-1, ""), (0, ""), (2, "一二"), (4, "一二三。"), (6, "一二三。"), (7, "一二三。四五。")],
)
def test_cut(length, expected):
    assert text_edits.cut("一二三。四五。", length) == expected


@hypothesis.given(TEXTS, st.integers(0, 30))
def test_cut_keeps_as_many_whole_sentences_as_fit(text, length):
    kept = text_edits.cut(text, length)
    parts = text_edits.sentences(text)
    fitting = ["".join(parts[:n]) for n in range(1, len(parts) + 1)]
    fitting = [beginning for beginning in fitting if len(beginning) <= length]
    assert kept == (fitting[-1] if fitting else text[:length])


def test_join_puts_a_space_between_english_parts_only():
    parts = ["One.", "", "Two.\n", "Three. ", "Four."]
    assert text_edits.join(parts, "en") == "One. Two.\nThree. Four."
    assert text_edits.join(["一。", "", "二。"], "zh") == "一。二。"


@hypothesis.given(
    RNGS, TEXTS, st.lists(st.text("xyz", min_size=1), min_size=1, max_size=4), LANGUAGES
)
def test_insert_shows_every_addition_within_the_limit(rng, text, additions, language):
    limit = sum(len(addition) + 2 for addition in additions) + 5
    result = text_edits.insert(rng, text, additions, limit, language)
    assert len(result) <= limit
    assert all(addition in result for addition in additions)


@hypothesis.given(RNGS, st.text("我。你a. "), LANGUAGES)
def test_insert_loses_nothing_where_there_is_room(rng, text, language):
    result = text_edits.insert(rng, text, ["#1", "#2"], 1000, language)
    assert _is_subsequence(text, result)
    left = result.replace("#1", "").replace("#2", "")
    assert "".join(left.split()) == "".join(text.split())


def test_insert_uses_every_place():
    rng = np.random.default_rng(0)
    found = {text_edits.insert(rng, "一二。三四。", ["#"], 99, "zh").index("#") for _ in range(200)}
    assert found == set(range(7))


def test_some_takes_each_item_once():
    rng = np.random.default_rng(0)
    items = list("abcdef")
    assert sorted(text_edits.some(rng, items, 9)) == items
    assert len(set(text_edits.some(rng, items, 4))) == 4
    firsts = {text_edits.some(rng, items, 1)[0] for _ in range(200)}
    assert firsts == set(items)


def test_swap_persons():
    assert text_edits.swap_persons("我恨你，我们", "zh") == "你恨我，你们"
    assert (
        text_edits.swap_persons("I'm sad. My dog hates me, I am alone. You see?", "en")
        == "you're sad. your dog hates you, you are alone. You see?"
    )


@hypothesis.given(TEXTS)
def test_swapping_chinese_persons_twice_changes_nothing(text):
    assert text_edits.swap_persons(text_edits.swap_persons(text, "zh"), "zh") == text


@pytest.mark.parametrize("change", text_edits.EDITS)
@hypothesis.given(RNGS, TEXTS, LANGUAGES)
def test_edits_take_any_text(change, rng, text, language):
    assert isinstance(change(rng, text, language), str)


@pytest.mark.parametrize("change", text_edits.EDITS)
def test_edits_leave_a_text_recognisable_and_change_it(change):
    text = "我和我妈吵架了，很难过。她不懂我！我想搬出去，可是没有钱。该怎么办？"
    results = [change(np.random.default_rng(seed), text, "zh") for seed in range(20)]
    letters = {letter for letter in text if letter.isalpha()} | {"你"}
    for result in results:
        kept = [letter for letter in result if letter.isalpha()]
        assert set(kept) <= letters
        assert 12 <= len(kept) <= 45
    assert any(result != text for result in results)


def test_half_of_the_texts_keep_their_style():
    text = "你好。你很累。慢慢来。"
    results = [text_edits.restyle(np.random.default_rng(s), text, "zh") for s in range(400)]
    assert 0.4 < np.mean([result == text for result in results]) < 0.6
    assert {
        "您好。您很累。慢慢来。",
        "你好！你很累！慢慢来！",
        "你好。\n你很累。\n慢慢来。",
    } <= set(results)
