"""Packed rows of completions: by hand, and against a naive reading of what they must hold."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from empathy_jax.training import rollout_rows

PAD = 99


def pack(prompts, completions, per_row, advantages=None):
    """Rows of completions given as lists; log-probs are minus token / 10."""
    lengths = np.asarray([len(completion) for completion in completions])
    tokens = np.full((len(completions), max(lengths)), PAD, np.int32)
    for index, completion in enumerate(completions):
        tokens[index, : len(completion)] = completion
    if advantages is None:
        advantages = np.arange(len(completions)) + 0.5
    return rollout_rows.pack_rollouts(
        prompts, tokens, -tokens / 10, lengths, advantages, per_row, PAD
    )


def test_a_row_by_hand():
    rows = pack([[1, 2, 3]], [[4, 5, 6], [7, 8]], 2)
    assert rows["tokens"][0, :8].tolist() == [1, 2, 3, 4, 5, 3, 7, PAD]
    assert rows["targets"][0, :8].tolist() == [PAD, PAD, 4, 5, 6, 7, 8, PAD]
    assert rows["positions"][0, :8].tolist() == [0, 1, 2, 3, 4, 2, 3, 0]
    assert rows["segment_ids"][0, :8].tolist() == [1, 1, 2, 2, 2, 3, 3, 0]
    assert rows["loss_mask"][0, :8].tolist() == [False, False, *[True] * 5, False]
    assert rows["prompt_mask"][0, :3].tolist() == [True, True, False]
    assert rows["places"][0, :, :3].tolist() == [[2, 3, 4], [5, 6, 0]]
    assert rows["completion_mask"].sum(axis=-1).tolist() == [[3, 2]]
    np.testing.assert_allclose(
        rows["sampler_log_probs"][0, :, :3], [[-0.4, -0.5, -0.6], [-0.7, -0.8, 0]], rtol=1e-6
    )
    assert rows["advantages"].tolist() == [[[0.5], [1.5]]]
    assert rows["completion_ids"].tolist() == [[0, 1]]


def test_a_group_is_dealt_over_rows_of_like_length():
    completions = [[1] * n for n in (9, 1, 8, 2)]
    rows = pack([[5, 6]], completions, 2)
    assert rows["completion_ids"].tolist() == [[0, 1], [2, 3]]
    assert (rows["segment_ids"] == rollout_rows.PROMPT).sum(axis=1).tolist() == [1, 1]


def test_advantages_per_token():
    advantages = np.arange(6).reshape(2, 3)
    rows = pack([[1, 2]], [[4, 5, 6], [7, 8]], 2, advantages)
    assert rows["advantages"][0, :, :3].tolist() == [[0, 1, 2], [3, 4, 0]]


COMPLETION = st.lists(st.integers(0, 50), min_size=1, max_size=90)


@st.composite
def rollouts(draw):
    """(prompts, completions, completions per row)."""
    per_row, rows_each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    prompts = draw(st.lists(COMPLETION, min_size=1, max_size=3))
    count = len(prompts) * per_row * rows_each
    return prompts, draw(st.lists(COMPLETION, min_size=count, max_size=count)), per_row


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(rollouts())
def test_every_token_is_there_once_and_behind_its_own_prompt(drawn):
    prompts, completions, per_row = drawn
    rows = pack(prompts, completions, per_row)
    group_size = len(completions) // len(prompts)
    assert sorted(rows["completion_ids"].ravel()) == list(range(len(completions)))
    assert rows["loss_mask"].sum() == sum(map(len, completions))
    for row, ids in enumerate(rows["completion_ids"]):
        (question,) = set(ids // group_size)
        prompt = prompts[question]
        shared = rows["prompt_mask"][row].sum()
        assert rows["tokens"][row, :shared].tolist() == prompt[:-1]
        for member, index in enumerate(ids):
            mask = rows["completion_mask"][row, member]
            places = rows["places"][row, member][mask]
            assert rows["targets"][row, places].tolist() == completions[index]
            before = [prompt[-1], *completions[index][:-1]]
            assert rows["tokens"][row, places].tolist() == before
            assert rows["positions"][row, places].tolist() == list(
                range(len(prompt) - 1, len(prompt) - 1 + len(before))
            )
            assert set(rows["segment_ids"][row, places]) == {member + 2}
            assert rows["loss_mask"][row, places].all()
            assert rows["advantages"][row, member] == index + 0.5
        used = rows["segment_ids"][row] > 0
        assert used.sum() == shared + sum(len(completions[index]) for index in ids)
        assert (rows["tokens"][row, ~used] == PAD).all()
        # `slots` is the inverse of `places`.
        slots = rows["slots"][row]
        longest = rows["places"].shape[2]
        flat = np.concatenate(
            [np.arange(rows["prompt_mask"].shape[1]), rows["places"][row].ravel()]
        )
        np.testing.assert_array_equal(flat[slots[used]], np.flatnonzero(used))
        assert longest >= max(map(len, completions))


def test_lengths_are_bucketed():
    two = sorted({rollout_rows.bucket(n, 2) for n in range(1, 2049)})
    assert two == [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    many = {n: rollout_rows.bucket(n, 16) for n in range(1, 9000)}
    assert all(n <= padded <= max(64 + n, 1.0625 * n + 1) for n, padded in many.items())
    assert many[1087] == 1088 and many[1025] == 1088 and many[1024] == 1024
    assert len(set(many.values())) <= 66


@pytest.mark.parametrize(
    ("group_size", "per_pass", "devices", "expected"),
    [(8, 64, 1, 8), (8, 2, 1, 2), (8, 12, 1, 4), (8, 3, 1, 1), (8, 16, 8, 2), (6, 24, 4, 6)],
)
def test_a_pass_is_whole_rows_of_whole_groups(group_size, per_pass, devices, expected):
    found = rollout_rows.completions_per_row(group_size, per_pass, devices)
    assert found == expected
    assert group_size % found == 0 and per_pass % (found * devices) == 0


def test_groups_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="3 completions of 1 questions cannot be dealt 2"):
        pack([[1]], [[1], [2], [3]], 2)
