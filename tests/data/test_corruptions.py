import itertools
import re
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.chain_of_empathy import TAGS
from empathy_jax.corpus.sample import sample_records
from empathy_jax.data import corruptions
from empathy_jax.data.corruptions import KINDS, corrupt
from empathy_jax.data.keywords import keywords
from empathy_jax.data.phrases import load
from empathy_jax.data.text_edits import clauses, sentences, swap_persons
from empathy_jax.overlap import ngram_overlap

LIMIT = 512
DRAWS = 200
# Kinds that add something to the whole answer when there is room for it.
ADDING = ("advertisement", "padding", "repetition")

QUESTION = {
    "zh": "我和妈妈因为考研吵架了。她说读书没有用，让我回老家工作。我很难过，晚上总是失眠，该怎么办？",
    "en": "I argued with my mother about the scholarship. She wants me to join her bakery. "
    "I cannot sleep, and my stomach hurts every morning. What would you do?",
}
ANSWER = {
    "zh": "听上去，妈妈那句“没有用”伤到你了。你准备了这么久，却没有得到一句支持。"
    "能不能找一个安静的晚上，告诉她这个专业对你意味着什么？失眠若是拖过两周，记得去校医院看看。",
    "en": "That bakery has been your mother's whole life, and saying no to it feels like saying no to her. "
    "You have not done anything wrong. Could you show her the letter, and tell her what you hope for? "
    "If the nights stay this bad, please see a doctor.",
}
OTHER = {
    "zh": "被室友冷落的滋味不好受。你主动打过招呼，她却低头看手机。要不要先约其中一个人吃饭？",
    "en": "Being left out by your flatmates hurts. You said hello and she stared at her phone. "
    "Perhaps ask one of them for a coffee first?",
}
LANGUAGES = tuple(QUESTION)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        ("", " ", "。", "a", "😊", "嗯", "哈" * 3000, "a. " * 3000, "{comfort}", "？？")
    ),
)


def _draws(kind: str, language: str, count: int = DRAWS) -> list[str]:
    texts = (QUESTION[language], ANSWER[language], OTHER[language])
    return [
        corrupt(kind, np.random.default_rng(seed), *texts, LIMIT, language) for seed in range(count)
    ]


def _without_space(text: str) -> str:
    return "".join(text.split())


def _is_subsequence(part: str, whole: str) -> bool:
    letters = iter(whole)
    return all(letter in letters for letter in part)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_rng_alone(kind, language):
    assert _draws(kind, language, 30) == _draws(kind, language, 30)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_differ(kind, language):
    fewest = {"empty": 0.25, "truncated": 0.25, "repetition": 0.35, "echo": 0.5, "tags": 0.6}
    assert len(set(_draws(kind, language))) >= fewest.get(kind, 0.7) * DRAWS


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.integers(0, 2**32 - 1), TEXTS, TEXTS, TEXTS, st.integers(1, 700), st.sampled_from(LANGUAGES)
)
def test_any_texts_give_something_else_that_is_visible(
    kind, seed, question, answer, other, max_characters, language
):
    text = corrupt(
        kind, np.random.default_rng(seed), question, answer, other, max_characters, language
    )
    assert len(text) <= max_characters
    assert _without_space(text) != _without_space(answer[:max_characters])


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_answer_is_shortened_to_make_room(kind):
    answer = "".join(f"这是第{n}句话，说的是你和妈妈。" for n in range(200))
    for seed in range(100):
        rng = np.random.default_rng(seed)
        text = corrupt(kind, rng, QUESTION["zh"], answer, OTHER["zh"], LIMIT, "zh")
        assert len(text) <= LIMIT
        assert not answer.startswith(text) or kind in ("truncated", "empty")
        parts = sentences(text)
        assert kind != "repetition" or len(set(parts)) < len(parts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_echo_is_the_question(language):
    found = _draws("echo", language)
    assert 0.3 < np.mean([text == QUESTION[language] for text in found]) < 0.6
    swapped = QUESTION[language] + swap_persons(QUESTION[language], language)
    overlaps = [ngram_overlap(swapped, text, 2) for text in found]
    assert min(overlaps) > 0.5 and np.mean(overlaps) > 0.9


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_echo_with_more_holds_most_of_the_question(language):
    swapped = swap_persons(QUESTION[language], language)
    shares = [
        max(ngram_overlap(text, QUESTION[language], 4), ngram_overlap(text, swapped, 4))
        for text in _draws("echo_plus", language)
    ]
    assert np.mean(shares) > 0.9
    assert np.mean(np.asarray(shares) > 0.5) > 0.9  # less where each word is misspelt or swapped
    assert np.mean([text in QUESTION[language] for text in _draws("echo_plus", language)]) < 0.02


def test_a_question_is_told_back_to_the_one_who_asked():
    body = swap_persons(QUESTION["zh"], "zh")
    assert np.mean([body in text for text in _draws("echo_plus", "zh")]) > 0.2


@pytest.mark.parametrize("language", LANGUAGES)
def test_stuffing_is_made_of_the_questions_words(language):
    words = keywords(QUESTION[language])
    for text in _draws("stuffing", language):
        assert any(word in text for word in [*words, *clauses(QUESTION[language])])
        assert not any(sentence in text for sentence in sentences(ANSWER[language]))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_borrowed_answer_is_another_ones_with_this_questions_words(language):
    words = keywords(QUESTION[language])
    found = _draws("borrowed", language)
    assert np.mean([any(word in text for word in words) for text in found]) > 0.9
    assert np.mean([ngram_overlap(text, OTHER[language], 3) for text in found]) > 0.4
    assert not any(sentence in text for text in found for sentence in sentences(ANSWER[language]))


@pytest.mark.parametrize("language", LANGUAGES)
def test_consolation_does_not_know_the_question(language):
    found = _draws("generic", language)
    lengths = [len(sentences(text)) for text in found]
    assert min(lengths) == 1 and max(lengths) >= 12
    words = keywords(QUESTION[language])
    assert np.mean([any(word in text for word in words) for text in found]) < 0.45


@pytest.mark.parametrize("language", LANGUAGES)
def test_advice_comes_without_consolation(language):
    comfort = [phrase for phrase in load(language)["comfort"] if "{" not in phrase]
    found = _draws("advice_only", language)
    assert not any(phrase in text for text in found for phrase in comfort)
    numbered = [
        bool(re.search(r"2[.)、）：]|二[，、]|②|其次|\(2|Step 2|#2", text)) for text in found
    ]
    assert 0.4 < np.mean(numbered) < 0.9


@pytest.mark.parametrize(
    ("style", "index", "expected"),
    [
        *(("1. ", 9, "10. "), ("①", 1, "②"), ("第一，", 2, "第三，"), ("首先，", 1, "其次，")),
        *(("首先，", 9, "另外，"), ("- ", 3, "- "), ("", 3, ""), ("Step 1: ", 1, "Step 2: ")),
    ],
)
def test_numbers(style, index, expected):
    assert corruptions._number(style, index) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_truncated_answer_is_a_part_of_it(language):
    for text in _draws("truncated", language):
        assert 0 < len(text) < len(ANSWER[language])
        assert _is_subsequence(text, ANSWER[language])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ADDING)
def test_additions_come_on_top_of_the_answer(kind, language):
    found = _draws(kind, language)
    whole = [_is_subsequence(_without_space(ANSWER[language]), _without_space(t)) for t in found]
    assert np.mean(whole) > 0.5
    assert np.median([len(text) for text in found]) > len(ANSWER[language])


@pytest.mark.parametrize("kind", ("advertisement", "injection", "tags"))
def test_additions_stand_at_the_start_in_the_middle_and_at_the_end(kind):
    parts = sentences(ANSWER["zh"])
    found = [text for text in _draws(kind, "zh") if parts[0] in text or parts[-1] in text]
    starts = np.mean([not text.lstrip().startswith(parts[0][:4]) for text in found])
    ends = np.mean([not text.rstrip().endswith(parts[-1][-4:]) for text in found])
    assert 0.1 < starts < 0.6 and 0.1 < ends < 0.6


@pytest.mark.parametrize("language", LANGUAGES)
def test_repetition_says_something_again(language):
    parts = sentences(ANSWER[language])
    for text in _draws("repetition", language):
        assert any(text.count(part.strip()[:12]) > 1 for part in parts)
        assert set(text) <= set(ANSWER[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_injections_address_the_grader_everywhere(language):
    found = _draws("injection", language)
    with_answer = np.mean([sentences(ANSWER[language])[-1][:8] in text for text in found])
    assert 0.25 < with_answer < 0.6
    texts = ANSWER[language] + OTHER[language]
    assert all(ngram_overlap(texts, text, 3) < 1 for text in found)


def test_tags_are_spelled_as_the_chain_spells_them():
    found = _draws("tags", "zh")
    assert "".join(TAGS) in found
    assert np.mean([any(tag in text for tag in TAGS) for text in found]) > 0.6


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_short(language):
    found = _draws("empty", language)
    assert "" in found
    assert max(len(text.strip()) for text in found) <= 33  # eleven times three marks
    assert any(text and not text.strip() for text in found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_shuffled_answer_has_the_same_characters(language):
    same = [
        sorted(_without_space(text)) == sorted(_without_space(ANSWER[language]))
        for text in _draws("shuffled", language)
    ]
    assert 0.6 < np.mean(same) < 0.9  # one form in four takes in another answer


def test_a_draw_that_is_the_answer_is_thrown_away():
    for seed in range(50):
        text = corrupt("echo", np.random.default_rng(seed), "为什么？", "为 什么？", "", 20, "zh")
        assert _without_space(text) != "为什么？"


@pytest.mark.parametrize(("answer", "expected"), [("我", ""), (" \n", "?")])
def test_when_every_draw_is_the_answer_nothing_takes_its_place(answer, expected, monkeypatch):
    monkeypatch.setattr(corruptions, "_MAKERS", {"echo": lambda case: answer})
    rng = np.random.default_rng(0)
    assert corrupt("echo", rng, "问", answer, "", 20, "zh") == expected


def test_what_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"kind must be one of \['echo', .*, got 'bad'"):
        corrupt("bad", rng, "问", "答", "", 20, "zh")
    with pytest.raises(ValueError, match="max_characters must be 1 or more, got 0"):
        corrupt("echo", rng, "问", "答", "", 0, "zh")
    with pytest.raises(ValueError, match="got 'fr'"):
        corrupt("empty", rng, "问", "答", "", 20, "fr")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sample_can_be_corrupted_quickly(language):
    records = sample_records(language)
    rng = np.random.default_rng(0)
    started, count = time.process_time(), 0
    for record, other in itertools.pairwise(records):
        for kind in KINDS:
            corrupt(
                kind, rng, record["question"], record["answer"], other["answer"], LIMIT, language
            )
            count += 1
    assert (time.process_time() - started) / count < 0.005  # seconds; about 0.0001 on one core
