"""Packing and batches: nothing lost, nothing doubled, every step its own batch."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.data import pipeline

PAD = 0


def _examples(lengths):
    """Examples whose tokens are all different, the second half of each in the loss."""
    examples, start = [], 1
    for number, length in enumerate(lengths):
        tokens = np.arange(start, start + length, dtype=np.int32)
        mask = np.arange(length) >= length // 2
        examples.append({"id": str(number), "tokens": tokens, "loss_mask": mask})
        start += length
    return examples


packable = st.integers(1, 30).flatmap(
    lambda row: st.tuples(st.lists(st.integers(1, row), max_size=40), st.just(row))
)


@hypothesis.given(packable)
def test_packing_loses_and_doubles_nothing(case):
    lengths, row_length = case
    rows = pipeline.pack(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    fill = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < places <= row_length for places in fill)
    # No two rows fit into one, as for any best fit.
    assert sum(sorted(fill)[:2]) > row_length or len(fill) < 2
    assert rows == pipeline.pack(tuple(lengths), row_length)


def test_packing_is_best_fit_decreasing():
    # 7 and 6 open rows, 4 best fills the second, 3 the first, 2 and 1 share what is left.
    assert pipeline.pack([2, 7, 3, 6, 4, 1], 10) == [[1, 2], [3, 4], [0, 5]]
    # The same with two items a row at most: 2 finds the first two rows closed, 1 joins it.
    assert pipeline.pack([2, 5, 3, 6, 4, 1], 20, max_items=2) == [[3, 1], [4, 2], [0, 5]]


@hypothesis.given(packable, st.integers(1, 4))
def test_a_row_has_no_more_items_than_allowed(case, most):
    lengths, row_length = case
    rows = pipeline.pack(lengths, row_length, most)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= row_length for row in rows)
    assert all(len(row) <= most for row in rows)
    # Where the limit does not bind it changes nothing.
    assert pipeline.pack(lengths, row_length, 40) == pipeline.pack(lengths, row_length)


@pytest.mark.parametrize("length", [0, 11])
def test_an_example_that_fits_no_row_is_refused(length):
    with pytest.raises(ValueError, match=rf"Example 1 fills {length} .*config.sft.row_tokens"):
        pipeline.pack([5, length], 10)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.integers(2, 13), min_size=1, max_size=20))
def test_rows_hold_each_example_whole(lengths):
    examples = _examples(lengths)
    source = pipeline.PackedRows(examples, 12, PAD)
    seen = []
    for number in range(len(source)):
        row = source[number]
        assert {len(value) for value in row.values()} == {12}
        for segment, index in enumerate(source.rows[number], 1):
            here = row["segment_ids"] == segment
            tokens, mask = examples[index]["tokens"], examples[index]["loss_mask"]
            np.testing.assert_array_equal(row["tokens"][here], tokens[:-1])
            np.testing.assert_array_equal(row["targets"][here], tokens[1:])
            np.testing.assert_array_equal(row["loss_mask"][here], mask[1:])
            np.testing.assert_array_equal(row["positions"][here], np.arange(len(tokens) - 1))
            seen.append(index)
        padding = row["segment_ids"] == 0
        assert (row["tokens"][padding] == PAD).all() and not row["loss_mask"][padding].any()
        assert row["segment_ids"].max() == len(source.rows[number])
    assert sorted(seen) == list(range(len(examples)))


def test_a_row_by_hand():
    examples = [
        {"tokens": np.array([5, 6, 7]), "loss_mask": np.array([False, False, True])},
        {"tokens": np.array([8, 9]), "loss_mask": np.array([False, True])},
    ]
    row = pipeline.PackedRows(examples, 4, PAD)[0]
    assert {name: value.astype(int).tolist() for name, value in row.items()} == {
        "tokens": [5, 6, 8, 0],
        "targets": [6, 7, 9, 0],
        "loss_mask": [0, 1, 1, 0],
        "segment_ids": [1, 1, 2, 0],
        "positions": [0, 1, 0, 0],
    }


def test_a_step_has_the_same_batch_after_rebuilding():
    examples = _examples([9, 8, 10, 7, 9, 10, 8])
    one, two, other = (pipeline.packed_dataset(examples, 10, 3, PAD, seed) for seed in (1, 1, 2))
    steps = (0, 5, 1, 1_000_000)
    for step in steps:
        for name, value in one[step].items():
            assert value.shape == (3, 10)
            np.testing.assert_array_equal(value, two[step][name])
    assert any((one[step]["tokens"] != other[step]["tokens"]).any() for step in range(5))


def test_every_epoch_visits_each_row_once_in_its_own_order():
    examples = _examples([9, 8, 10, 7, 9, 10, 8])
    dataset = pipeline.packed_dataset(examples, 10, 3, PAD, seed=0)
    first_tokens = [int(row[0]) for step in range(14) for row in dataset[step]["tokens"]]
    epochs = [first_tokens[start : start + 7] for start in range(0, 42, 7)]
    everything = sorted(int(example["tokens"][0]) for example in examples)
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_is_the_same_however_its_rows_are_read():
    """Batches of 4 of 7 rows, so that some span two epochs, read by one, by two and by three."""
    examples = _examples([9, 8, 10, 7, 9, 10, 8])
    whole = pipeline.packed_dataset(examples, 10, 4, PAD, seed=0)
    for parts in ([[0, 1], [2, 3]], [[3], [0, 2], [1]]):
        readers = [pipeline.packed_dataset(examples, 10, 4, PAD, 0, read) for read in parts]
        for step in (0, 1, 2, 100):
            for read, reader in zip(parts, readers, strict=True):
                for name, value in reader[step].items():
                    np.testing.assert_array_equal(value, whole[step][name][read])


def test_padded_batches_show_each_example_once_in_order():
    examples = _examples([3, 5, 2, 4, 6])
    batches = list(pipeline.padded_batches(examples, 6, 2, PAD))
    assert [batch["tokens"].shape for batch in batches] == [(2, 6)] * 3
    rows = [row for batch in batches for row in zip(*batch.values(), strict=True)]
    for example, (tokens, targets, mask, segments, positions) in zip(examples, rows, strict=False):
        length = len(example["tokens"]) - 1
        np.testing.assert_array_equal(tokens[:length], example["tokens"][:-1])
        np.testing.assert_array_equal(targets[:length], example["tokens"][1:])
        assert mask.sum() == example["loss_mask"][1:].sum()
        assert segments.tolist() == [1] * length + [0] * (6 - length)
        assert positions.max() == length - 1
    assert not rows[5][2].any() and not rows[5][3].any()
    with pytest.raises(ValueError, match=r"config.sft.row_tokens"):
        next(pipeline.padded_batches(examples, 4, 2, PAD))


def test_prompt_batches_pad_on_the_right_and_name_their_examples():
    examples = _examples([3, 5, 2, 4])
    dataset = pipeline.prompt_dataset(examples, 5, 2, PAD, seed=0)
    seen = []
    for step in (0, 1):
        batch = dataset[step]
        assert batch["tokens"].shape == (2, 5)
        for index, tokens, length in zip(
            batch["index"], batch["tokens"], batch["lengths"], strict=True
        ):
            expected = examples[index]["tokens"]
            np.testing.assert_array_equal(tokens[:length], expected)
            assert length == len(expected) and (tokens[length:] == PAD).all()
            seen.append(int(index))
    assert sorted(seen) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"'1' has 5 tokens.*config.data.max_prompt_tokens"):
        pipeline.prompt_dataset(examples, 4, 2, PAD, seed=0)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match=r"config.data.chains"):
        pipeline.packed_dataset([], 10, 2, PAD, seed=0)
    with pytest.raises(ValueError, match=r"config.batch_size"):
        pipeline.packed_dataset(_examples([3]), 10, 0, PAD, seed=0)
