"""What a reader of a run sees of a rollout batch. Every name here is explained in docs."""

import numpy as np
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy
from empathy_jax.training import reward_terms
from empathy_jax.training.rollout import Rollout


def measure(rollout: Rollout, reward: np.ndarray, config: ConfigDict) -> dict[str, float]:
    """All monitors of a batch that need no model.

    Args:
      rollout: with every term that has a weight.
      reward: what the policy is trained on, [N].
      config: of the run.
    """
    names = list(reward_terms.training_weights(rollout.terms, config))
    measured = {"reward": float(reward.mean())}
    for name in names:
        measured[f"reward_{name}"] = float(rollout.terms[name].mean())
    for name, values in {"reward": reward, **{n: rollout.terms[n] for n in names}}.items():
        spread, no_signal = spread_in_groups(values, config.rl.group_size)
        measured |= {f"spread_{name}": spread, f"no_signal_{name}": no_signal}
    measured |= lengths(rollout.rows) | validity(rollout.rows)
    for name in ("similarity", "echo_overlap", "template_overlap", "answer_characters"):
        measured[name] = float(rollout.terms[name].mean())
    return measured | {"refills": float(rollout.refills)}


def spread_in_groups(values: np.ndarray, group_size: int) -> tuple[float, float]:
    """Mean standard deviation within groups, and the share of groups whose values are all equal."""
    groups = np.asarray(values, np.float64).reshape(-1, group_size)
    return float(groups.std(axis=1).mean()), float((np.ptp(groups, axis=1) == 0).mean())


def lengths(rows: list[dict]) -> dict[str, float]:
    """Tokens of completions, of valid ones (0 without any), and the share that was cut off."""
    tokens = np.asarray([row["tokens"] for row in rows], np.float64)
    valid = np.asarray([row["valid"] for row in rows])
    return {
        "completion_tokens": float(tokens.mean()),
        "completion_tokens_max": float(tokens.max()),
        "valid_tokens": float(tokens[valid].mean()) if valid.any() else 0.0,
        "cut_off": float(np.mean([not row["finished"] for row in rows])),
    }


def validity(rows: list[dict]) -> dict[str, float]:
    """Share of valid chains, of each layer that is whole, and of each rule that is broken first."""
    shares = {"valid": float(np.mean([row["valid"] for row in rows]))}
    for layer in chain_of_empathy.LAYERS:
        shares[f"whole_{layer}"] = float(np.mean([row["layers"][layer] for row in rows]))
    for rule in chain_of_empathy.RULES:
        shares[f"broken_{rule}"] = float(np.mean([row["rule"] == rule for row in rows]))
    return shares
