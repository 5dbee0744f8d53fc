import numpy as np
import pytest

from empathy_jax.data import pairs

RECORDS = [
    {
        "question": f"q{i}",
        "answers": [
            {"text": f"a{i}.0"},
            {"text": f"a{i}.1", "score": 3},
            {"text": f"a{i}.2", "score": 2},
        ],
    }
    for i in range(5)
] + [{"question": "alone", "answers": []}]


def _tokenize(text: str) -> list[int]:
    return list(text.encode())


def _dataset(seed=0, batch_size=4, records=RECORDS):
    return pairs.pair_dataset(records, _tokenize, 512, batch_size, pad_id=0, seed=seed)


def _texts(batch, name):
    return [
        bytes(row[mask].tolist()).decode()
        for row, mask in zip(batch[f"{name}_tokens"], batch[f"{name}_mask"], strict=True)
    ]


def test_positives_are_ungraded_or_graded_three_and_more():
    assert pairs.positives(RECORDS[0]) == ["a0.0", "a0.1"]
    assert pairs.positives(RECORDS[5]) == []


def test_rows_are_padded_to_a_step_and_none_is_empty():
    tokens, mask = pairs.pad([[5, 6], [], [7] * 129], pad_id=9, max_tokens=512)
    assert tokens.shape == mask.shape == (3, 256)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert tokens[0, :3].tolist() == [5, 6, 9] and mask.sum(axis=1).tolist() == [2, 1, 129]
    assert tokens[1, 0] == 9
    tokens, _ = pairs.pad([[7] * 129], pad_id=9, max_tokens=200)
    assert tokens.shape == (1, 200)


def test_a_batch_holds_questions_with_their_own_answers():
    dataset = _dataset()
    for step in range(5):
        batch = dataset[step]
        assert batch["group"].dtype == np.int32 and batch["group"].shape == (4,)
        for group, question, answer in zip(
            batch["group"], _texts(batch, "question"), _texts(batch, "answer"), strict=True
        ):
            assert question == f"q{group}" and answer in (f"a{group}.0", f"a{group}.1")


def test_every_pair_once_an_epoch_and_epochs_differ():
    # 10 pairs in batches of 2: five batches an epoch.
    dataset = _dataset(batch_size=2)
    epochs = [
        [text for step in range(start, start + 5) for text in _texts(dataset[step], "answer")]
        for start in (0, 5)
    ]
    everything = sorted(f"a{i}.{j}" for i in range(5) for j in range(2))
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]


def test_a_step_depends_on_seed_and_number_alone():
    one, other = _dataset(seed=3), _dataset(seed=3)
    later = {step: other[step] for step in (7, 2, 7)}  # any order, any number of times
    for step, batch in later.items():
        for name, value in one[step].items():
            np.testing.assert_array_equal(value, batch[name])
    assert any(_texts(one[s], "answer") != _texts(_dataset(seed=4)[s], "answer") for s in range(3))


def test_too_few_pairs_name_the_fields():
    with pytest.raises(ValueError, match=r"10 question-answer pairs.*config\.batch_size"):
        _dataset(batch_size=11)
