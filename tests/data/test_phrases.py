import re

import numpy as np
import pytest

from empathy_jax.chain_of_empathy import TAGS
from empathy_jax.data import phrases
from tests.conftest import ROOT

SLOT = re.compile(r"\{([a-z_]+)\}")
# Filled from the question.
WORDS = {"keyword": "家", "keywords": "家、爱", "question": "怎么办"}


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_every_slot_is_a_list_or_a_word_of_the_question(language):
    lists = phrases.load(language)
    slots = {slot for said in lists.values() for phrase in said for slot in SLOT.findall(phrase)}
    assert slots <= lists.keys() | WORDS.keys()


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_every_list_is_used(language):
    lists = phrases.load(language)
    slots = {slot for said in lists.values() for phrase in said for slot in SLOT.findall(phrase)}
    source = (ROOT / "empathy_jax" / "data" / "corruptions.py").read_text(encoding="utf-8")
    called = {
        name for name in lists if f'"{name}"' in source or f'"{name.split("_")[0]}"' in source
    }
    assert lists.keys() == slots & lists.keys() | called


def test_both_languages_have_the_lists_that_corruptions_name():
    source = (ROOT / "empathy_jax" / "data" / "corruptions.py").read_text(encoding="utf-8")
    named = {
        language: {name for name in phrases.load(language) if f'"{name}"' in source}
        for language in phrases.LANGUAGES
    }
    assert named["zh"] == named["en"]


@pytest.mark.parametrize(
    ("language", "name", "least"),
    [
        *(("zh", "comfort", 60), ("zh", "advice", 40), ("zh", "filler", 60)),
        *(("en", "comfort", 40), ("en", "advice", 30), ("en", "filler", 30)),
    ],
)
def test_there_are_many_ways_to_say_nothing(language, name, least):
    said = phrases.load(language)[name]
    assert len(set(said)) == len(said) >= least


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_instructions_and_advertisements_hardly_ever_repeat(language):
    rng = np.random.default_rng(0)
    for name in ("injection", "advertisement"):
        said = [phrases.say(rng, language, name, WORDS) for _ in range(2000)]
        assert len(set(said)) > 1400


@pytest.mark.parametrize("language", phrases.LANGUAGES)
def test_everything_can_be_said(language):
    for name, said in phrases.load(language).items():
        for seed, phrase in enumerate(said):
            text = phrases.fill(np.random.default_rng(seed), language, phrase, WORDS)
            assert not SLOT.search(text), (name, phrase)
            assert not any(tag in text for tag in TAGS)


def test_words_are_put_in_as_they_are():
    rng = np.random.default_rng(0)
    assert phrases.fill(rng, "zh", "说{keyword}。", {"keyword": "{comfort}"}) == "说{comfort}。"


def test_draws_depend_on_the_rng_alone():
    first, second = (
        [phrases.say(np.random.default_rng(seed), "zh", "comfort") for seed in range(50)]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 25


def test_common_words():
    assert "知道" in phrases.common_words("zh") and "about" in phrases.common_words("en")


def test_another_language_is_refused():
    with pytest.raises(ValueError, match=r"\['zh', 'en'\], got 'fr'; change config.data.language"):
        phrases.load("fr")
