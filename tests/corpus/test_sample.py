"""The sample corpus that ships with the package keeps its promises."""

import unicodedata

import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.corpus import readers, sample, splits

LENGTHS = {"zh": ((150, 500), (200, 500)), "en": ((450, 1500), (500, 1600))}
COUNTS = {"zh": 120, "en": 20}

languages = pytest.mark.parametrize("language", sample.LANGUAGES)


@languages
def test_there_are_enough_records_of_the_promised_length(language):
    found = sample.sample_records(language)
    assert len(found) >= COUNTS[language]
    (shortest, longest), (shortest_answer, longest_answer) = LENGTHS[language]
    for record in found:
        assert shortest <= len(record["question"]) <= longest, record["question"]
        assert shortest_answer <= len(record["answer"]) <= longest_answer, record["question"]


def test_the_chinese_sample_is_broad():
    found = sample.sample_records("zh")
    assert len({record["topic"] for record in found}) >= 15
    assert sum(bool(record.get("other_answers")) for record in found) >= len(found) / 2


@languages
def test_some_records_are_about_crisis(language):
    assert any(record.get("crisis") for record in sample.sample_records(language))


def test_chinese_crisis_answers_name_the_line():
    for record in sample.sample_records("zh"):
        if record.get("crisis"):
            assert "12356" in record["answer"], record["question"]


@languages
def test_nothing_appears_twice(language):
    found = sample.sample_records(language)
    assert len({record["id"] for record in found}) == len(found)
    for name in ("question", "answer", *chain_of_empathy.LAYERS):
        keys = [splits.split_key(record[name]) for record in found]
        assert len(set(keys)) == len(keys), name


@languages
def test_questions_have_the_main_answer_first_and_best(language):
    for stored, record in zip(
        sample.sample_records(language), sample.sample_questions(language), strict=True
    ):
        texts = [answer["text"] for answer in record["answers"]]
        scores = [answer["score"] for answer in record["answers"]]
        others = stored.get("other_answers", [])
        assert texts == [stored["answer"], *(other["text"] for other in others)]
        assert scores[0] == 5 and all(score in (1, 2, 3, 4) for score in scores[1:])
        assert (record["topic"], record["source"]) == (stored["topic"], "sample")
        assert unicodedata.is_normalized("NFC", record["question"])


@languages
def test_every_chain_is_valid(language):
    for record in sample.sample_chains(language):
        fields = (*chain_of_empathy.LAYERS, "answer")
        chain = chain_of_empathy.Chain(*(record[name] for name in fields))
        assert chain_of_empathy.parse(chain_of_empathy.render(chain)) == chain


@languages
def test_the_readers_give_the_sample(language):
    assert readers.read_questions("sample", language) == (sample.sample_questions(language), [])
    assert readers.read_chains("sample", language) == (sample.sample_chains(language), [])
    for record in sample.sample_chains(language):
        assert record["id"] == sample.records_lib.content_id(record["question"])


def test_another_language_is_refused():
    with pytest.raises(ValueError, match=r"config.data.language"):
        sample.sample_records("fr")
