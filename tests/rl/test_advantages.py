"""Advantages against TRL's formulas in torch, and hand-computed numbers."""

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
    for function in (advantages.group_relative, advantages.group_centered):
        with pytest.raises(ValueError, match="at least 2 completions"):
            function(jnp.ones((4, 1)))


def test_zero_signal_share_is_what_binary_rewards_predict():
    rewards = jnp.asarray((RNG.random((20000, 8)) < 0.9).astype(np.float32))
    share = float(advantages.zero_signal_share(rewards))
    assert abs(share - (0.9**8 + 0.1**8)) < 0.015
