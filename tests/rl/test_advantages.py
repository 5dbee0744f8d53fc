"""Advantages against TRL's formulas in torch, and hand-computed numbers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from empathy_jax.rl import advantages

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(3, 5, 4)).astype(np.float32)  # R terms, Q questions, G completions


def test_group_relative_matches_torch():
    rewards = torch.tensor(REWARDS[0])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    actual = advantages.group_relative(jnp.asarray(REWARDS[0]))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_group_relative_by_hand():
    rewards = jnp.array([[0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    actual = advantages.group_relative(rewards, epsilon=0.0)[0]
    np.testing.assert_allclose(actual, np.array([-1, -1, 1, 1]) * 0.5 / np.sqrt(1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(advantages.group_relative(rewards)[1], np.zeros(4))


def test_group_relative_ignores_shift_and_scale_but_centered_keeps_scale():
    rewards = jnp.asarray(REWARDS[0])
    np.testing.assert_allclose(
        advantages.group_relative(10 * rewards + 5, epsilon=0.0),
        advantages.group_relative(rewards, epsilon=0.0),
        atol=1e-4,
    )
    np.testing.assert_allclose(
        advantages.group_centered(10 * rewards + 5),
        10 * advantages.group_centered(rewards),
        atol=1e-4,
    )
    np.testing.assert_allclose(advantages.group_centered(jnp.array([[1.0, 4.0]])), [[-1.5, 1.5]])


def test_leave_one_out_by_hand(variant):
    actual = variant(advantages.leave_one_out)(jnp.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    np.testing.assert_allclose(actual, [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]], atol=1e-6)


def test_leave_one_out_is_each_reward_less_the_mean_of_the_others():
    actual = advantages.leave_one_out(jnp.asarray(REWARDS))
    for i in range(4):
        others = np.delete(REWARDS, i, axis=-1).mean(axis=-1)
        np.testing.assert_allclose(actual[..., i], REWARDS[..., i] - others, atol=1e-6)


def test_batch_scaled_by_hand(variant):
    # Deviations from 2: -2, 0, 1, 1, of squares 6 over 3.
    actual = variant(advantages.batch_scaled)(jnp.array([[0.0, 2.0], [3.0, 3.0]]))
    scale = np.sqrt(2.0) + 1e-4
    np.testing.assert_allclose(actual, np.array([[-1, 1], [0, 0]]) / scale, rtol=1e-6)


def test_batch_scaled_keeps_a_nearly_equal_group_small():
    rewards = jnp.array([[0.500, 0.501], [0.0, 1.0]])
    by_group, by_batch = advantages.group_relative(rewards), advantages.batch_scaled(rewards)
    assert by_group[0, 1] > 0.6 and by_batch[0, 1] < 0.002
    np.testing.assert_allclose(by_batch[0] / by_batch[1], [0.001, 0.001], rtol=1e-3)


def test_running_baseline_by_hand(variant):
    step = variant(functools.partial(advantages.running_baseline, decay=0.75))
    first, baseline = step(jnp.array([[1.0, 3.0]]), jnp.array(0.0))
    np.testing.assert_allclose(first, [[1.0, 3.0]])  # less the baseline before the batch
    assert float(baseline) == 0.5
    second, baseline = step(jnp.array([[4.0], [0.5]]), baseline)
    np.testing.assert_allclose(second, [[3.5], [0.0]])
    assert float(baseline) == 0.75 * 0.5 + 0.25 * 2.25


def test_running_baseline_comes_to_the_mean_reward():
    baseline = jnp.array(0.0)
    for _ in range(200):
        _, baseline = advantages.running_baseline(jnp.full((2, 2), 0.7), baseline, 0.9)
    assert float(baseline) == pytest.approx(0.7, abs=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_forgets_or_learns_nothing_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        advantages.running_baseline(jnp.zeros((1, 1)), jnp.array(0.0), decay)


def test_per_reward_matches_the_formula_in_torch():
    weights = np.array([1.0, 0.5, -0.3], np.float32)
    terms = torch.tensor(REWARDS).permute(1, 2, 0)  # [Q, G, R]
    mean, std = terms.mean(1, keepdim=True), terms.std(1, keepdim=True)
    summed = ((terms - mean) / (std + 1e-4) * torch.tensor(weights)).sum(-1)
    expected = (summed - summed.mean()) / (summed.std() + 1e-4)
    actual = advantages.per_reward(jnp.asarray(REWARDS), jnp.asarray(weights))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_per_reward_tells_outcomes_apart_that_a_sum_confuses():
    """GDPO's example: passing one term of two is the same sum whichever term it is."""
    terms = jnp.array([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]])
    summed = advantages.group_relative(terms.sum(0))[0]
    assert summed[0] == summed[1]
    decoupled = advantages.per_reward(terms, jnp.ones(2))[0]
    assert decoupled[0] > decoupled[1] + 0.1


def test_a_group_of_one_is_refused():
    for function in (
        advantages.group_relative,
        advantages.group_centered,
        advantages.leave_one_out,
        advantages.batch_scaled,
    ):
        with pytest.raises(ValueError, match="at least 2 completions"):
            function(jnp.ones((4, 1)))


def test_zero_signal_share_is_what_binary_rewards_predict():
    rewards = jnp.asarray((RNG.random((20000, 8)) < 0.9).astype(np.float32))
    share = float(advantages.zero_signal_share(rewards))
    assert abs(share - (0.9**8 + 0.1**8)) < 0.015
