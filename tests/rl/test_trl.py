"""Losses, gradients, advantages and weights equal those that TRL's own trainer computes.

`GRPOTrainer._compute_loss` and `_generate_and_score_completions` run on a stand-in for the trainer
that holds their settings, and whose model, generation and rewards are given tensors.
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import rewards as trl_rewards
from trl.trainer.grpo_trainer import GRPOTrainer

from empathy_jax.rl import (
    advantages,
    aggregation,
    corrections,
    entropy,
    kl,
    overlong,
    policy_gradient,
    ratios,
)

RNG = np.random.default_rng(0)
ROWS, TOKENS, LONGEST = 6, 5, 9
LOW, HIGH, TARGET = 0.2, 0.28, 0.5
LOG_PROBS = -RNG.uniform(0.1, 3.0, (ROWS, TOKENS)).astype(np.float32)
# Rows far above and far below the old policy, each with either sign, so that every clip is in force.
DRIFT = np.array([[0.6], [-0.6], [0.6], [-0.6], [0.1], [0.0]], np.float32)
ADVANTAGES = np.array([[1.1], [0.7], [-0.9], [-1.3], [0.4], [-0.2]], np.float32)
OLD, REF, SAMPLER = LOG_PROBS - RNG.normal(DRIFT, 0.3, (3, ROWS, TOKENS)).astype(np.float32)
ENTROPY = RNG.uniform(0, 1, (ROWS, TOKENS)).astype(np.float32)
# Each row counts a token: TRL averages wholly masked rows in as zeros, and we leave them out.
MASK = np.arange(TOKENS) < np.array([5, 1, 3, 4, 2, 5])[:, None]


def trainer(log_probs: torch.Tensor, **settings) -> types.SimpleNamespace:
    """What the two methods read of a `GRPOTrainer` that trains on one device without a model."""
    args = {
        "delta": None,
        "use_bias_correction_kl": False,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "per_device_train_batch_size": ROWS,
        "gradient_checkpointing_kwargs": None,
    }
    accelerator = types.SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    settings = {
        "_get_per_token_logps_and_entropies": lambda *_, **__: (
            log_probs,
            torch.tensor(ENTROPY),
            None,
        ),
        "_metrics": {"train": collections.defaultdict(list)},
        "_logs": collections.defaultdict(list, rewards=collections.defaultdict(list)),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_tokenizer": types.SimpleNamespace(pad_token_id=0),
        "_entropy_bonus_enabled": False,
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "beta": 0.0,
        "current_gradient_accumulation_steps": 1,
        "environment_factories": None,
        "environments": None,
        "eos_token_ids": [1],
        "epsilon_high": HIGH,
        "epsilon_low": LOW,
        "importance_sampling_level": "token",
        "mask_truncated_completions": False,
        "max_completion_length": LONGEST,
        "model": types.SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "multi_objective_aggregation": "sum_then_normalize",
        "num_iterations": 1,
        "off_policy_mask_threshold": None,
        "pad_to_multiple_of": None,
        "scale_rewards": "group",
        "tools": None,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        **settings,
        "args": types.SimpleNamespace(**{**args, **settings.pop("args", {})}),
    }
    return types.SimpleNamespace(**settings)


def trl_loss(log_probs: torch.Tensor, stand_in: types.SimpleNamespace, **inputs) -> torch.Tensor:
    tokens = torch.ones((ROWS, TOKENS), dtype=torch.long)
    return GRPOTrainer._compute_loss(
        stand_in,
        None,
        {
            "prompt_ids": tokens[:, :1],
            "prompt_mask": tokens[:, :1],
            "completion_ids": tokens,
            "completion_mask": torch.tensor(MASK).long(),
            "advantages": torch.tensor(ADVANTAGES[:, 0]),
            "old_per_token_logps": torch.tensor(OLD),
            "ref_per_token_logps": torch.tensor(REF),
            "num_items_in_batch": torch.tensor(MASK.sum()),
            **inputs,
        },
    )


AGGREGATIONS = {
    "grpo": aggregation.sequence_mean_token_mean,
    "dr_grpo": lambda values, mask: aggregation.constant_length(values, mask, LONGEST),
    "dapo": aggregation.token_mean,
    "bnpo": aggregation.token_mean,
    "cispo": aggregation.token_mean,
}


def our_loss(
    log_probs: jax.Array,
    loss_type: str,
    per_sequence: bool = False,
    ceiling: float | None = None,
    kl_weight: float = 0.0,
    kl_times_ratio: bool = False,
    weights: jax.Array | None = None,
) -> jax.Array:
    mask, old = jnp.asarray(MASK), jnp.asarray(OLD)
    log_ratio = (
        ratios.sequence_log_ratio(log_probs, old, mask)
        if per_sequence
        else ratios.token_log_ratio(log_probs, old)
    )
    if loss_type == "cispo":
        losses = policy_gradient.cispo(log_ratio, log_probs, jnp.asarray(ADVANTAGES), HIGH)
    else:
        limits = {"clip_low": LOW, "clip_high": HIGH, "ceiling": ceiling}
        losses = policy_gradient.clipped_surrogate(log_ratio, jnp.asarray(ADVANTAGES), **limits)
    if weights is not None:
        losses = losses * weights
    if kl_weight:
        penalty = kl.kl_k3(log_probs, jnp.asarray(REF))
        losses = losses + kl_weight * penalty * (jnp.exp(log_ratio) if kl_times_ratio else 1.0)
    total, count = AGGREGATIONS[loss_type](losses, mask)
    return total / count


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("ceiling", [None, 1.6])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_loss_and_gradient(loss_type, per_sequence, ceiling, kl_weight):
    """GSPO is loss type grpo with ratios per sequence."""
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    expected = trl_loss(
        log_probs,
        trainer(
            log_probs,
            loss_type=loss_type,
            importance_sampling_level="sequence" if per_sequence else "token",
            beta=kl_weight,
            # TRL's bound of CISPO's weight is the weight itself, not its distance from 1.
            epsilon_high=1 + HIGH if loss_type == "cispo" else HIGH,
            args={"delta": ceiling},
        ),
    )
    expected.backward()
    actual, gradient = jax.value_and_grad(our_loss)(
        jnp.asarray(LOG_PROBS), loss_type, per_sequence, ceiling, kl_weight
    )
    np.testing.assert_allclose(actual, expected.item(), atol=1e-5)
    np.testing.assert_allclose(gradient, log_probs.grad, atol=1e-5)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_every_clip_is_in_force_in_these_tests(per_sequence):
    log_ratio = (LOG_PROBS - OLD) * MASK
    if per_sequence:
        log_ratio = log_ratio.sum(axis=1, keepdims=True) / MASK.sum(axis=1, keepdims=True)
    ratio = np.exp(log_ratio)
    assert np.any((ratio < 1 - LOW) & (ADVANTAGES < 0))
    assert np.any((ratio > 1 + HIGH) & (ADVANTAGES > 0))
    assert np.any((ratio > 1.6) & (ADVANTAGES < 0))


def test_kl_times_the_importance_ratio():
    """The KL of DeepSeek-V3.2, TRL's `use_bias_correction_kl`."""
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    settings = {"loss_type": "grpo", "beta": 0.3, "args": {"use_bias_correction_kl": True}}
    expected = trl_loss(log_probs, trainer(log_probs, **settings))
    expected.backward()
    actual, gradient = jax.value_and_grad(our_loss)(
        jnp.asarray(LOG_PROBS), "grpo", kl_weight=0.3, kl_times_ratio=True
    )
    np.testing.assert_allclose(actual, expected.item(), atol=1e-5)
    np.testing.assert_allclose(gradient, log_probs.grad, atol=1e-5)


def test_clipped_shares_are_those_that_trl_logs():
    stand_in = trainer(torch.tensor(LOG_PROBS), loss_type="grpo")
    trl_loss(torch.tensor(LOG_PROBS), stand_in)
    log_ratio = ratios.token_log_ratio(jnp.asarray(LOG_PROBS), jnp.asarray(OLD))
    masks = policy_gradient.is_clipped(log_ratio, jnp.asarray(ADVANTAGES), LOW, HIGH)
    for name, mask in zip(("low_mean", "high_mean"), masks, strict=True):
        assert np.mean(mask[MASK]) == pytest.approx(
            stand_in._metrics["train"][f"clip_ratio/{name}"][0]
        )


def rollout(rewards: np.ndarray, **settings) -> dict[str, torch.Tensor]:
    """What TRL makes of completions of MASK's lengths with rewards [ROWS, R]."""
    lengths = MASK.sum(axis=1)
    ids = [[2] * (n - 1) + [1] for n in lengths]
    ids[0][-1] = 2  # the first was cut off
    sampler = [row[:n].tolist() for row, n in zip(SAMPLER, lengths, strict=True)]
    generated = ([[2]] * ROWS, ids, None, ids, sampler, None, None, None)
    stand_in = trainer(
        torch.tensor(OLD),
        _generate=lambda prompts: generated,
        _calculate_rewards=lambda *_: torch.tensor(rewards),
        num_generations=3,
        reward_func_names=[f"term {i}" for i in range(rewards.shape[1])],
        reward_funcs=[None] * rewards.shape[1],
        reward_weights=torch.tensor(WEIGHTS[: rewards.shape[1]]),
        **settings,
    )
    return GRPOTrainer._generate_and_score_completions(stand_in, [{"prompt": ""}] * ROWS)


REWARDS = RNG.normal(size=(ROWS, 2)).astype(np.float32)
WEIGHTS = np.array([1.0, -0.4], np.float32)
BAND = (0.6, 1.5)


@pytest.mark.parametrize(
    ("scale", "function"),
    [
        ("group", advantages.group_relative),
        ("none", advantages.group_centered),
        ("batch", advantages.batch_scaled),
    ],
)
def test_advantages(scale, function):
    expected = rollout(REWARDS[:, :1], scale_rewards=scale)["advantages"].reshape(2, 3)
    np.testing.assert_allclose(
        function(jnp.asarray(REWARDS[:, 0]).reshape(2, 3)), expected, atol=1e-5
    )


def test_advantages_per_reward():
    expected = rollout(REWARDS, multi_objective_aggregation="normalize_then_sum")["advantages"]
    actual = advantages.per_reward(jnp.asarray(REWARDS).T.reshape(2, 2, 3), jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(actual, expected.reshape(2, 3), atol=1e-5)


@pytest.mark.parametrize("bound", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_and_weighted_loss(level, bound):
    sampled = {"use_vllm": True, "vllm_importance_sampling_correction": True}
    expected = rollout(
        REWARDS[:, :1],
        vllm_importance_sampling_mode=f"{level}_{bound}",
        vllm_importance_sampling_clip_min=BAND[0],
        vllm_importance_sampling_clip_max=BAND[1],
        **sampled,
    )["importance_sampling_ratio"]
    log_weight = {
        "token": corrections.token_log_weight,
        "sequence": corrections.sequence_log_weight,
    }[level](jnp.asarray(OLD), jnp.asarray(SAMPLER), jnp.asarray(MASK))
    bounded = {
        "truncate": corrections.truncated_weights,
        "mask": corrections.masked_weights,
    }[bound]
    weights = bounded(log_weight, *BAND)
    plain = np.exp(log_weight)
    assert np.any(plain < BAND[0]) and np.any(plain > BAND[1])
    np.testing.assert_allclose(weights, expected, atol=1e-5)

    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    stand_in = trainer(log_probs, loss_type="dapo", **sampled)
    loss = trl_loss(log_probs, stand_in, importance_sampling_ratio=expected)
    loss.backward()
    actual, gradient = jax.value_and_grad(our_loss)(jnp.asarray(LOG_PROBS), "dapo", weights=weights)
    np.testing.assert_allclose(actual, loss.item(), atol=1e-5)
    np.testing.assert_allclose(gradient, log_probs.grad, atol=1e-5)


def test_overlong_penalty():
    lengths = np.arange(1, 140)
    charge = trl_rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    actual = overlong.soft_penalty(jnp.asarray(lengths), max_length=100, buffer=20)
    np.testing.assert_allclose(-actual, charge([[0] * n for n in lengths]), atol=1e-6)


def test_overlong_filter():
    expected = rollout(REWARDS[:, :1], mask_truncated_completions=True)["completion_mask"]
    actual = overlong.without_cut_off(jnp.asarray(MASK), jnp.arange(ROWS) == 0)
    np.testing.assert_array_equal(actual, expected)
    assert not np.any(actual[0]) and np.any(actual[1])


def test_adaptive_entropy_coefficient():
    """TRL applies a step's coefficient by the entropy of the step before."""
    entropies = [0.4, 0.3, 0.7, 0.2, 0.5, 0.8, 0.9, 0.9]
    limits = {"target": TARGET, "delta": 0.1, "largest": 0.25}
    log_probs = torch.tensor(LOG_PROBS)
    plain = trl_loss(log_probs, trainer(log_probs, loss_type="grpo"))
    stand_in = trainer(
        log_probs,
        loss_type="grpo",
        _entropy_bonus_enabled=True,
        _entropy_window_stats=None,
        _last_world_entropy=float("inf"),
        entropy_coef=0.0,
        use_adaptive_entropy=True,
        args={
            "entropy_target": TARGET,
            "entropy_coef_delta": limits["delta"],
            "entropy_coef_min": 0.0,
            "entropy_coef_max": limits["largest"],
        },
    )
    coefficient, before, seen = jnp.array(0.0), jnp.array(jnp.inf), []
    for measured in entropies:
        stand_in._get_per_token_logps_and_entropies = lambda *_, e=measured, **__: (
            log_probs,
            torch.full((ROWS, TOKENS), e),
            None,
        )
        loss = trl_loss(log_probs, stand_in)
        applied = entropy.applied_coefficient(coefficient, before, TARGET)
        seen.append(float(applied))
        assert float(plain - loss) == pytest.approx(seen[-1] * measured, abs=1e-5)
        before = jnp.array(measured)
        coefficient = entropy.next_coefficient(coefficient, before, **limits)
        assert stand_in.entropy_coef == pytest.approx(float(coefficient), abs=1e-6)
    np.testing.assert_allclose(seen, [0, 0.1, 0.2, 0, 0.2, 0.25, 0, 0], atol=1e-6)
