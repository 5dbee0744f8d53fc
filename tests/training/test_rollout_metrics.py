import math

import pytest

from empathy_jax import chain_of_empathy
from empathy_jax.training import reward_terms, rollout_metrics
from tests.training.judged_rows import make_config, make_rollout, make_row


def test_a_batch_by_hand():
    config = make_config(template_weight=0.0)
    made = make_rollout(["好", "差", "好", None], config)
    reward = reward_terms.combine(made.terms, config)
    measured = rollout_metrics.measure(made, reward, config)
    assert all(isinstance(value, float) for value in measured.values())
    assert measured["reward"] == pytest.approx((1.75 + 1.25 + 1.75) / 4)
    assert measured["reward_format"] == 0.75 and measured["reward_echo"] == 0
    assert measured["reward_answer"] == pytest.approx((0.75 + 0.25 + 0.75) / 4)
    assert measured["similarity"] == pytest.approx((0.75 + 0.25 + 0.75 + 0.9) / 4)
    # Spreads of pairs are half their difference.
    assert measured["spread_reward"] == pytest.approx((0.25 + 0.875) / 2)
    assert measured["spread_format"] == 0.25 and measured["no_signal_format"] == 0.5
    assert measured["no_signal_reward"] == measured["no_signal_answer"] == 0
    assert 1 - measured["no_signal_echo"] == 0
    # Completions of 1, 2, 3 and 1 tokens, the second and the last cut off.
    assert measured["completion_tokens"] == 7 / 4 and measured["completion_tokens_max"] == 3
    assert measured["valid_tokens"] == 2 and measured["cut_off"] == 0.5
    assert measured["refills"] == 0 and "reward_kl" not in measured


def test_charges_are_measured_where_there_are_any():
    config = make_config(overlong_buffer=2, kl_placement="reward", kl_weight=0.1)
    config.data.max_completion_tokens = 3
    made = make_rollout(["好", "差"], config)
    made.terms["kl"] = made.terms["format"] * 0.5
    measured = rollout_metrics.measure(made, reward_terms.combine(made.terms, config), config)
    assert measured["reward_overlong"] == 0.25 and measured["reward_kl"] == 0.5
    assert measured["reward"] == pytest.approx(1.5 - 0.25 - 0.05)


def test_validity_by_layer_and_by_rule():
    whole = dict.fromkeys(chain_of_empathy.LAYERS, True)
    rows = [
        make_row("好"),
        make_row(None, rule="empty_L2", layers=whole | {"L2": False}),
        make_row(None, rule="empty_L2", layers=whole | {"L2": False, "L4": False}),
        make_row(None),
    ]
    shares = rollout_metrics.validity(rows)
    assert [shares[f"whole_{layer}"] for layer in ("L1", "L2", "L3", "L4")] == [
        0.75, 0.25, 0.75, 0.5,
    ]  # fmt: skip
    broken = {name: value for name, value in shares.items() if name.startswith("broken_") and value}
    assert broken == {"broken_empty_L2": 0.5, "broken_missing_think": 0.25}
    assert shares["valid"] == 0.25 == 1 - sum(broken.values())
    # Every rule is there in every step, so that a curve has no gaps.
    assert len(shares) == 1 + 4 + len(chain_of_empathy.RULES)


def test_without_a_valid_completion_nothing_is_undefined():
    measured = rollout_metrics.lengths([make_row(None), make_row(None, tokens=6)])
    assert measured["valid_tokens"] == 0 and measured["completion_tokens"] == 5
    assert all(math.isfinite(value) for value in measured.values())
