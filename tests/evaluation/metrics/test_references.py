import numpy as np
import pytest

from empathy_jax.evaluation.metrics import references


@pytest.mark.parametrize("size", [2, 3, 10, 101])
def test_derangement_moves_everything_and_is_a_permutation(size):
    for seed in range(5):
        result = references.derangement(size, seed)
        assert sorted(result) == list(range(size))
        assert not np.any(result == np.arange(size))
    np.testing.assert_array_equal(result, references.derangement(size, 4))


def test_derangement_of_one_is_refused():
    with pytest.raises(ValueError, match="received 1"):
        references.derangement(1, 0)


def test_floor_gives_each_question_the_answers_of_another():
    known = [["0", "0"], [], ["2"], ["3", "3", "3"]]
    found = references.floor_texts(known, seed=3)
    assert sorted({owner for owner, _ in found}) == [0, 2, 3]
    assert sorted(text for _, text in found) == list("002333")
    assert all(str(owner) != text for owner, text in found)
    assert references.floor_texts(known[:2], seed=3) == []


def test_the_sets_say_which_references_each_text_meets():
    known = [["a", "b", "c"], ["d"], []]
    sets = references.candidate_sets(known, ["x", "y", "z"], [0, 1, 2], seed=0)
    assert list(sets) == list(references.SETS)
    assert sets["model"].references == [["a", "b", "c"], ["d"], []]
    assert sets["ceiling"].texts == ["a", "b", "c"]
    assert sets["ceiling"].references == [["b", "c"], ["a", "c"], ["a", "b"]]
    # What stands beside the ceiling has as many references as that.
    assert sets["beside"].texts == ["x"] * 3
    assert sets["beside"].references == sets["ceiling"].references
    assert sets["floor"].texts == ["d", "a", "b", "c"]
    assert sets["floor"].references == [["a", "b", "c"], ["d"], ["d"], ["d"]]
    nothing = references.candidate_sets([], [], [], seed=0)
    assert all(own.texts == [] and own.owners.shape == (0,) for own in nothing.values())


def test_each_pair_is_scored_once_and_reaches_every_set():
    known = [["a", "b", "a"], ["c", "d"]]
    sets = references.candidate_sets(known, ["x", "c"], [0, 1], seed=0)
    pairs = references.Pairs(sets)
    assert len(set(pairs.texts)) == len(pairs.texts) == 5
    named = [(pairs.texts[i], pairs.texts[j]) for i, j in pairs.pairs]
    assert len(set(named)) == len(named)
    # Those of the first question stand before those of the second.
    asked = [("c" if reference in "cd" else "a") for _, reference in named]
    assert asked == sorted(asked)
    scores = np.array([10 * ord(a) + ord(b) for a, b in named], np.float64)
    for name, own in sets.items():
        found = pairs.best_and_mean(name, scores)
        for index, (text, refs) in enumerate(zip(own.texts, own.references, strict=True)):
            expected = [10 * ord(text) + ord(reference) for reference in refs]
            assert found["max"][index] == max(expected)
            assert found["mean"][index] == pytest.approx(np.mean(expected))


def test_a_text_without_references_has_no_score():
    sets = references.candidate_sets([["a"], []], ["x", "y"], [0, 1], seed=0)
    pairs = references.Pairs(sets)
    found = pairs.best_and_mean("model", np.array([0.5]))
    np.testing.assert_array_equal(found["max"], [0.5, np.nan])
    some, own = pairs.with_references("model")
    assert some.tolist() == [0] and [pairs.texts[i] for i in own[0]] == ["a"]
