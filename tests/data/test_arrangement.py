"""Companies of alike questions: everyone once, no question twice at a table, alike ones together."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.data import arrangement


def _random_case(seed, count, questions):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, count)), random.integers(questions, size=count)


cases = st.tuples(
    st.integers(0, 99), st.integers(1, 6), st.integers(1, 5), st.integers(1, 8), st.integers(1, 30)
)


@hypothesis.settings(deadline=None)
@hypothesis.given(cases)
def test_every_item_appears_once(case):
    seed, batch_size, batches, company, questions = case
    similarity, groups = _random_case(seed, batch_size * batches, questions)
    found = arrangement.by_similarity(similarity, groups, batch_size, company, (0, seed))
    assert [len(batch) for batch in found] == [batch_size] * batches
    assert sorted(item for batch in found for item in batch) == list(range(batch_size * batches))
    assert found == arrangement.by_similarity(similarity, groups, batch_size, company, (0, seed))


def _companies(batches, size):
    order = [item for batch in batches for item in batch]
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_a_company_is_the_first_and_the_most_similar_of_other_questions():
    """Every company by an oracle: greedily, among those that were left over."""
    similarity, _ = _random_case(1, 24, 1)
    groups = np.repeat(np.arange(12), 2)  # two answers to every question
    found = arrangement.by_similarity(similarity, groups, 8, 4, (5,))
    companies = {company[0]: company for company in _companies(found, 4)}
    assert len(companies) == 6
    left = set(range(24))
    for first in np.random.default_rng((5,)).permutation(24):
        if first not in left:
            continue
        members = [first]
        for item in sorted(left - {first}, key=lambda i: -similarity[first, i]):
            if len(members) < 4 and groups[item] not in groups[members]:
                members.append(item)
        assert companies[first] == members
        left -= set(members)
    for company in companies.values():
        assert len(set(groups[company])) == 4


def test_companies_are_where_the_similarity_has_them():
    """Eight clusters of four in random order are the eight companies."""
    random = np.random.default_rng(0)
    cluster = random.permutation(np.repeat(np.arange(8), 4))
    similarity = (cluster[:, None] == cluster) + 0.1 * random.normal(size=(32, 32))
    found = arrangement.by_similarity(similarity, range(32), 16, 4, (0,))
    for company in _companies(found, 4):
        assert len(set(cluster[company])) == 1
    # Of another seed they are the same companies in another order.
    other = arrangement.by_similarity(similarity, range(32), 16, 4, (1,))
    assert other != found
    assert {frozenset(c) for c in _companies(other, 4)} == {
        frozenset(c) for c in _companies(found, 4)
    }


def test_the_similarity_is_of_questions_to_answers():
    """Item 0's question is near answer 3; that answer's own question is near others."""
    similarity = np.zeros((4, 4))
    similarity[0, 3], similarity[3, 1], similarity[1, 2], similarity[2, 1] = 1, 1, 1, 1
    expected = {0: [0, 3], 1: [1, 2], 2: [2, 1], 3: [3, 1]}
    for seed in range(5):
        first, *_ = np.random.default_rng((seed,)).permutation(4)
        found = arrangement.by_similarity(similarity, range(4), 2, 2, (seed,))
        assert expected[first] in found


def test_a_company_of_one_is_random():
    similarity, groups = _random_case(2, 40, 40)
    found = arrangement.by_similarity(similarity, groups, 8, 1, (3,))
    # What is alike plays no part.
    assert found == arrangement.by_similarity(-similarity, groups, 8, 1, (3,))
    assert found != arrangement.by_similarity(similarity, groups, 8, 1, (4,))
    assert [item for batch in found for item in batch] != list(range(40))


def test_one_question_alone_has_companies_of_one():
    similarity = np.ones((6, 6))
    found = arrangement.by_similarity(similarity, [7] * 6, 3, 2, (0,))
    assert sorted(item for batch in found for item in batch) == list(range(6))


def test_items_must_fill_their_batches():
    with pytest.raises(ValueError, match="7 items do not make batches of 2"):
        arrangement.by_similarity(np.zeros((7, 7)), range(7), 2, 1, (0,))


def test_topics_by_hand():
    found = arrangement.by_topic(["work", None, "sleep", "work", None])
    expected = np.eye(5)
    expected[0, 3] = expected[3, 0] = 1
    expected[1, 1] = expected[4, 4] = 0  # without a topic is not a topic
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_companies_of_one_topic():
    random = np.random.default_rng(0)
    topics = [str(number) for number in random.permutation(np.repeat(np.arange(6), 4))]
    found = arrangement.by_similarity(arrangement.by_topic(topics), range(24), 8, 4, (0,))
    for company in _companies(found, 4):
        assert len({topics[item] for item in company}) == 1


def test_no_topics_at_all_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"in_batch is 'same_topic'.*config\.corpus\.topic_enc"):
        arrangement.by_topic([None, None])
