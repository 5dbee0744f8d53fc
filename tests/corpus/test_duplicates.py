"""Near duplicates: against brute force, deterministic, and bounded work on hostile input."""

import json
import lzma
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.corpus import duplicates

ALPHABET = "".join(map(chr, range(0x4E00, 0x4E80)))  # 128 Chinese characters
SMILECHAT = Path(__file__).parents[3] / "shared" / "data" / "smilechat_all"


def _family(rng: random.Random, size: int, length: int, edits: int) -> list[str]:
    """A random text and copies of it with up to `edits` characters replaced, dropped or added."""
    base = rng.choices(ALPHABET, k=length)
    texts = ["".join(base)]
    for _ in range(size - 1):
        copy = list(base)
        for _ in range(rng.randint(1, edits)):
            place = rng.randrange(len(copy))
            copy[place] = rng.choice(["", rng.choice(ALPHABET), copy[place] + "好"])
        texts.append("".join(copy))
    return texts


def _brute_force(texts: list[str], ngram: int = duplicates.NGRAM) -> np.ndarray:
    """Jaccard similarity of all pairs, by the incidence matrix of texts and n-grams."""
    sets = [{t[i : i + ngram] for i in range(max(len(t) - ngram + 1, 1))} for t in texts]
    column = {gram: place for place, gram in enumerate(sorted(set().union(*sets)))}
    incidence = np.zeros((len(texts), len(column)), np.float32)
    for row, grams in enumerate(sets):
        incidence[row, [column[gram] for gram in grams]] = 1
    shared = incidence @ incidence.T
    sizes = np.diag(shared)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def _components(joined: np.ndarray) -> np.ndarray:
    labels = np.arange(len(joined))
    while True:
        lower = np.where(joined, labels[None, :], len(joined)).min(axis=1)
        if np.array_equal(lower, labels):
            return labels
        labels = lower


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_groups_against_brute_force(threshold):
    rng = random.Random(0)
    texts = [text for _ in range(60) for text in _family(rng, 6, rng.randint(60, 400), 9)]
    rng.shuffle(texts)
    groups = duplicates.near_duplicate_groups(texts, threshold)
    similarity = _brute_force(texts)
    together = groups[:, None] == groups[None, :]

    near = (similarity >= threshold + 0.05) & ~np.eye(len(texts), dtype=bool)
    assert near.sum() > 100
    assert together[near].mean() >= 0.97

    # Whoever is in a group is there because of a near duplicate, never by chance.
    truth = _components(similarity >= threshold - 1e-6)
    assert all(truth[index] == truth[group] for index, group in enumerate(groups))
    partners = together & (similarity >= threshold - 1e-6) & ~np.eye(len(texts), dtype=bool)
    in_company = together.sum(axis=1) > 1
    assert partners.any(axis=1)[in_company].all()


@pytest.mark.parametrize("length", [15, 60, 600])
def test_recall_of_single_pairs_at_every_length(length):
    """Pairs without a third text that could join them by another way."""
    rng = random.Random(1)
    texts = [text for _ in range(300) for text in _family(rng, 2, length, max(length // 30, 1))]
    groups = duplicates.near_duplicate_groups(texts, 0.8)
    near = [
        index
        for index in range(0, len(texts), 2)
        if duplicates.jaccard(texts[index], texts[index + 1]) >= 0.85
    ]
    assert len(near) > 30
    assert np.mean([groups[index] == groups[index + 1] for index in near]) >= 0.97


def test_signatures_estimate_the_similarity_without_bias():
    rng = random.Random(2)
    errors = []
    for _ in range(400):
        first, second = _family(rng, 2, rng.randint(30, 200), 10)
        agreeing = np.mean(duplicates.signature(first) == duplicates.signature(second))
        errors.append(agreeing - duplicates.jaccard(first, second))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 1.3 * 0.5 / duplicates.HASHES**0.5  # 0.5 = √(J(1-J)) at its most


def test_chance_of_meeting_at_the_threshold():
    for threshold in (0.3, 0.5, 0.8, 0.9, 0.97, 1.0):
        rows = duplicates.rows_per_band(threshold)
        bands = duplicates.HASHES // rows
        assert 1 - (1 - threshold**rows) ** bands >= duplicates.FOUND
    assert duplicates.rows_per_band(0.8) == 6  # 21 bands: 1 - (1 - 0.8⁶)²¹ = 0.998


def test_hand_computed_jaccard():
    # abcde: abc bcd cde; abcdf: abc bcd cdf: 2 of 4.
    assert duplicates.jaccard("abcde", "abcdf") == 0.5
    assert duplicates.jaccard("A,b c d!e", "ａｂｃｄｅ") == 1.0
    assert duplicates.jaccard("ab", "ab") == 1.0
    assert duplicates.jaccard("ab", "abc") == 0.0
    groups = duplicates.near_duplicate_groups(["abcde", "xyz", "abcdf"], 0.5)
    assert groups.tolist() == [0, 1, 0]
    groups = duplicates.near_duplicate_groups(["abcde", "xyz", "abcdf"], 0.51)
    assert groups.tolist() == [0, 1, 2]


def test_copies_that_differ_in_trifles_are_one_group_and_the_first_leads():
    texts = ["别的事", "我睡不着，怎么办？", "我 睡不着 怎么办", "", "我睡不着怎么办！！", ""]
    groups = duplicates.near_duplicate_groups(texts)
    assert groups.dtype == np.int64
    assert groups.tolist() == [0, 1, 1, 3, 1, 3]
    assert duplicates.near_duplicate_groups([]).tolist() == []


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.lists(st.text("ab我，", max_size=12), max_size=20), st.randoms())
def test_groups_do_not_hang_on_the_order(texts, rng):
    """Labels are first members; the partition is the same in any order (all pairs are compared)."""
    groups = duplicates.near_duplicate_groups(texts)
    assert all(group <= index for index, group in enumerate(groups))
    assert all(groups[group] == group for group in groups)
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = duplicates.near_duplicate_groups([texts[index] for index in order])
    for place, index in enumerate(order):
        for other_place, other in enumerate(order):
            same = shuffled[place] == shuffled[other_place]
            assert same == (groups[index] == groups[other])


def test_any_text_is_read_even_half_a_surrogate_pair():
    texts = ["\ud83d", "😀😀😀", "\x00", "a\u0301bc"]
    assert duplicates.near_duplicate_groups(texts).tolist() == [0, 1, 2, 3]


def test_work_stays_linear_where_all_texts_meet_in_one_bucket():
    crowd = np.zeros((3000, duplicates.HASHES), np.uint32)
    pairs = duplicates._candidates(crowd, 0.8)
    assert len(pairs) < 3000 * duplicates.NEIGHBOURS
    # And a crowd of true near duplicates is one group all the same.
    rng = random.Random(3)
    texts = _family(rng, 2000, 300, 4)
    assert set(duplicates.near_duplicate_groups(texts).tolist()) == {0}


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=r"config\.corpus\.near_duplicate_threshold"):
        duplicates.near_duplicate_groups(["a"], threshold)


def test_an_empty_ngram_is_refused():
    with pytest.raises(ValueError, match="1 character or more, got 0"):
        duplicates.near_duplicate_groups(["a"], ngram=0)


def test_real_questions_against_brute_force():
    archive = SMILECHAT / "smilechat_all.jsonl.xz"
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} does not exist")
    with lzma.open(archive, "rt", encoding="utf-8") as lines:
        messages = [json.loads(next(lines))["messages"] for _ in range(2500)]
    texts = list(dict.fromkeys(turns[0]["content"] for turns in messages if turns))
    groups = duplicates.near_duplicate_groups(texts)
    similarity = _brute_force([duplicates.split_key(text) for text in texts])
    near = np.argwhere(np.triu(similarity >= 0.85, 1))
    assert len(near) > 20
    assert np.mean([groups[first] == groups[second] for first, second in near]) >= 0.97
    truth = _components(similarity >= 0.8 - 1e-6)
    assert all(truth[index] == truth[group] for index, group in enumerate(groups))
