"""Each metric against a library that people use, on 500 random and 100 real pairs, to 1e-6."""

import numpy as np
import pytest
import sacrebleu
from rouge_chinese import rouge_score

from empathy_jax.evaluation.metrics import overlap, tokens
from tests.evaluation.metrics.real_pairs import random_pairs, real_pairs

TOKENIZATIONS = pytest.mark.parametrize("tokenization", tokens.TOKENIZATIONS)


def _score(texts, places, tokenization):
    cut = tokens.tokenize(texts, tokenization)
    counts = overlap.ngram_counts(cut, overlap.orders(tokenization))
    return overlap.score_pairs(cut, counts, places)


@pytest.fixture(scope="module", params=["random", "real"])
def pairs(request):
    if request.param == "random":
        return random_pairs(500, 60)
    return real_pairs(request.getfixturevalue("shared_dir"))


@pytest.fixture(scope="module")
def scored(pairs):
    """For each tokenization the tokens of each text as lists, and the scores of the pairs."""
    found = {}
    texts = [text for pair in pairs for text in pair]
    places = np.arange(len(texts)).reshape(-1, 2)
    for name in tokens.TOKENIZATIONS:
        cut = [list(tokens.characters(t)) if name == "char" else tokens.words(t) for t in texts]
        scores = _score(texts, places, name)
        found[name] = list(zip(cut[::2], cut[1::2], strict=True)), scores
    return found


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0.01  # a metric that is the same for all pairs would prove nothing


@TOKENIZATIONS
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_that_of_sacrebleu(scored, pairs, tokenization, order):
    cut, scores = scored[tokenization]
    metric = sacrebleu.BLEU(
        tokenize="char" if tokenization == "char" else "none",
        max_ngram_order=order,
        effective_order=True,
    )
    if tokenization == "jieba":
        pairs = [(" ".join(a), " ".join(b)) for a, b in cut]
    expected = [metric.sentence_score(a, [b]).score / 100 for a, b in pairs]
    _close(scores[f"bleu_{order}"], expected)


def test_chrf_is_that_of_sacrebleu(scored, pairs):
    metric = sacrebleu.CHRF()
    expected = [metric.sentence_score(a, [b]).score / 100 for a, b in pairs]
    _close(scored["char"][1]["chrf"], expected)
    assert "chrf" not in scored["jieba"][1]


@TOKENIZATIONS
@pytest.mark.parametrize("n", [1, 2])
def test_rouge_n_is_that_of_rouge_chinese(scored, tokenization, n):
    cut, scores = scored[tokenization]
    expected = [
        rouge_score.rouge_n([" ".join(a)], [" ".join(b)], n=n, exclusive=False)["f"]
        if a and b
        else 0
        for a, b in cut
    ]
    _close(scores[f"rouge_{n}"], expected)


@TOKENIZATIONS
def test_rouge_l_is_that_of_tensorflow_text(scored, tokenization):
    tf = pytest.importorskip("tensorflow")
    metrics = pytest.importorskip("tensorflow_text").metrics
    cut, scores = scored[tokenization]
    ragged = [tf.ragged.constant(list(side), dtype=tf.string) for side in zip(*cut, strict=True)]
    _close(scores["rouge_l"], metrics.rouge_l(*ragged, alpha=0.5).f_measure.numpy())


@TOKENIZATIONS
def test_rouge_l_is_that_of_rouge_chinese(scored, tokenization):
    # Its table is a dict: the longest texts would take seconds each.
    cut, scores = scored[tokenization]
    short = [i for i, (a, b) in enumerate(cut) if 0 < len(a) * len(b) < 4000]
    assert len(short) > 40 or len(cut) < 500
    expected = [
        rouge_score.rouge_l_summary_level([" ".join(cut[i][0])], [" ".join(cut[i][1])])["f"]
        for i in short
    ]
    np.testing.assert_allclose(scores["rouge_l"][short], expected, rtol=0, atol=1e-6)


class _NoStems:
    def stem(self, word):
        return word


class _NoSynonyms:
    def synsets(self, word):
        return []


@TOKENIZATIONS
def test_meteor_is_that_of_nltk_without_stems_and_synonyms(scored, tokenization):
    nltk_meteor = pytest.importorskip("nltk.translate.meteor_score")
    cut, scores = scored[tokenization]
    expected = [
        nltk_meteor.single_meteor_score(b, a, str, _NoStems(), _NoSynonyms()) for a, b in cut
    ]
    _close(scores["meteor"], expected)


@TOKENIZATIONS
def test_corpus_bleu_of_several_references_is_that_of_sacrebleu(pairs, tokenization):
    texts = [tokens.characters(text) for pair in pairs[:90] for text in pair]
    candidates = np.arange(0, len(texts), 6)
    references = [np.arange(i + 1, i + 2 + (i // 6) % 4) for i in candidates]
    cut = tokens.tokenize(texts, tokenization)
    counts = overlap.ngram_counts(cut, 4)
    statistics = overlap.bleu_statistics(cut, counts, candidates, references)
    metric = sacrebleu.BLEU(tokenize="none", effective_order=True)
    spaced = [" ".join(text if tokenization == "char" else tokens.words(text)) for text in texts]
    streams = [
        [spaced[own[place]] if place < len(own) else None for own in references]
        for place in range(4)
    ]
    expected = metric.corpus_score([spaced[i] for i in candidates], streams).score / 100
    assert overlap.corpus_bleu(statistics.sum(axis=0)) == pytest.approx(expected, abs=1e-6)
    # And of any weights, many at a time.
    doubled = np.stack([statistics.sum(axis=0), 2 * statistics[0]])
    one = metric.corpus_score([spaced[candidates[0]]], [[spaced[index]] for index in references[0]])
    assert overlap.corpus_bleu(doubled)[0] == pytest.approx(expected, abs=1e-6)
    if one.counts[3]:  # a count of half a match for none is no multiple of itself
        assert overlap.corpus_bleu(doubled)[1] == pytest.approx(one.score / 100, abs=1e-6)


def test_scores_by_hand():
    # 我很难过 and 你很难: common 很难, 2 of 4 and of 3 characters.
    pairs = np.array([[0, 1], [1, 0], [2, 1], [0, 2], [3, 3]])
    scores = _score(["我很难过", "你很难", "", "很难"], pairs, "char")
    np.testing.assert_allclose(scores["rouge_1"], [4 / 7, 4 / 7, 0, 0, 1])
    np.testing.assert_allclose(scores["rouge_2"], [2 / 5, 2 / 5, 0, 0, 1])
    np.testing.assert_allclose(scores["rouge_l"], [4 / 7, 4 / 7, 0, 0, 1])
    # The shorter candidate pays e^(1 - 4/3).
    np.testing.assert_allclose(scores["bleu_1"], [1 / 2, 2 / 3 * np.exp(-1 / 3), 0, 0, 1])
    # Two matches in one chunk: (1 - .5 / 8) P R / (.9 P + .1 R).
    factor = (1 - 0.5 / 8) * (1 / 2) * (2 / 3)
    expected = [factor / (0.9 / 2 + 0.1 * 2 / 3), factor / (0.9 * 2 / 3 + 0.1 / 2), 0, 0]
    np.testing.assert_allclose(scores["meteor"][:4], expected)


def test_a_text_that_is_its_own_reference_has_all_in_common():
    """Its n-grams stand once in all texts, and match nothing but itself."""
    scores = _score(["先睡一觉，慢慢来", "听你说"], np.array([[0, 0], [0, 1]]), "char")
    for name, values in scores.items():
        assert values[1] == 0 and values[0] == pytest.approx(1, abs=0.01), name
    cut = tokens.tokenize(["先睡一觉，慢慢来", "听你说"], "char")
    counts = overlap.ngram_counts(cut, 4)
    groups = [np.array([1, 0]), np.array([1])]
    found = overlap.bleu_statistics(cut, counts, np.array([0, 0]), groups)
    np.testing.assert_allclose(overlap.corpus_bleu(found), [1, 0])


def test_no_pairs_have_no_scores():
    scores = _score(["a"], np.zeros((0, 2), int), "char")
    assert all(values.shape == (0,) for values in scores.values())


def test_pairs_are_scored_alike_in_one_block_and_in_several(monkeypatch):
    texts = [text for pair in random_pairs(30, 40, seed=1) for text in pair]
    places = np.arange(60).reshape(-1, 2)
    whole = _score(texts, places, "char")
    monkeypatch.setattr(overlap, "BLOCK", 7)
    parts = _score(texts, places, "char")
    for name, values in whole.items():
        np.testing.assert_array_equal(values, parts[name])
