import itertools
from collections import Counter

import numpy as np
import pytest

from empathy_jax.evaluation.metrics import diversity, overlap, tokens
from tests.evaluation.metrics.real_pairs import random_pairs, real_pairs


def _by_definition(words, n):
    grams = list(itertools.pairwise(words)) if n == 2 else words
    return len(set(grams)) / len(grams) if grams else np.nan


@pytest.mark.parametrize("source", ["random", "real"])
@pytest.mark.parametrize("tokenization", tokens.TOKENIZATIONS)
def test_distinct_of_each_text_is_the_definition(tokenization, source, request):
    if source == "random":
        pairs = random_pairs(500, 60, seed=3)
    else:
        pairs = real_pairs(request.getfixturevalue("shared_dir"))
    texts = [text for pair in pairs for text in pair]
    cut = tokens.tokenize(texts, tokenization)
    counts = overlap.ngram_counts(cut, 2)
    words = [tokens.words(t) if tokenization == "jieba" else tokens.characters(t) for t in texts]
    for n in (1, 2):
        expected = [_by_definition(list(text), n) for text in words]
        np.testing.assert_allclose(diversity.distinct(cut, counts, n), expected, atol=1e-12)


def _counts(texts, questions=None, n=1, tokenization="char"):
    """Counts by question of one system."""
    cut = tokens.tokenize(texts, tokenization)
    places = np.arange(len(texts))
    owners = places if questions is None else np.asarray(questions)
    return diversity.counts_by_question(cut, n, [places], [owners], int(owners.max()) + 1)[0]


def test_rarefaction_is_the_mean_over_all_samples():
    text = "一一一二二三四五"
    for length in (1, 3, 8):
        ways = itertools.combinations(range(len(text)), length)
        expected = np.mean([len({text[i] for i in way}) for way in ways]) / length
        found = diversity.rarefied(np.array(list(Counter(text).values())), length)
        assert found == pytest.approx(expected)
    assert np.isnan(diversity.rarefied(np.array([2]), 3))


def test_counts_are_those_of_the_texts_of_a_question():
    counts = _counts(["一一二", "二三", "一"], [0, 0, 2]).toarray()
    assert counts.sum(axis=1).tolist() == [5, 0, 1]
    assert sorted(counts[0]) == [1, 2, 2]


def test_twice_the_text_in_the_same_words_is_not_less_diverse():
    rng = np.random.default_rng(0)
    words = [chr(0x4E00 + i) for i in range(400)]
    short = ["".join(rng.choice(words, 50)) for _ in range(80)]
    long = ["".join(rng.choice(words, 100)) for _ in range(80)]
    cut = tokens.tokenize(short + long, "char")
    asked = np.arange(80)
    counts = diversity.counts_by_question(cut, 1, [asked, asked + 80], [asked, asked], 80)
    length, (first, second), _ = diversity.at_equal_length(counts, seed=0)
    assert length == 80 * 50 // 3
    assert first == pytest.approx(second, rel=0.02)
    whole = [len(np.unique(c.nonzero()[1])) / c.sum() for c in counts]
    assert whole[0] > 1.8 * whole[1]


def test_half_samples_vary_as_fresh_questions_do(monkeypatch):
    monkeypatch.setattr(diversity, "HALVES", 30)
    rng = np.random.default_rng(0)
    words, chances = [chr(0x4E00 + i) for i in range(3000)], 1 / np.arange(1, 3001)

    def answers():
        """Each question has words of its own."""
        made = []
        for _ in range(40):
            own = rng.choice(words, 30, p=chances / chances.sum())
            made.append("".join(rng.choice(own, 60)))
        return made

    values, errors = [], []
    for _ in range(60):
        length, (value,), (halves,) = diversity.at_equal_length([_counts(answers())], seed=0)
        values.append(value)
        errors.append(halves.std())
    assert length == 800
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_systems_without_text_have_no_value():
    counts = _counts(["一二三四", ""])
    length, values, halves = diversity.at_equal_length([counts, counts * 0], seed=0)
    assert length == 0 and np.isnan(values).all() and np.isnan(halves).all()
