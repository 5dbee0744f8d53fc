"""What a run of RL remembers from step to step beside its weights, and a checkpoint with it.

Everything is a float32 array, so that a resumed run goes on with the same bits.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from empathy_jax.rl import entropy, stop_conditions
from empathy_jax.training import reward_terms
from empathy_jax.training.rl_settings import Settings

ENTROPY_STEP = 0.005  # of the coefficient, each step: Skywork-OR1, https://arxiv.org/abs/2505.22312
LARGEST_ENTROPY_WEIGHT = 0.1  # beside advantages of the order of 1

Carried = dict[str, Any]


def begin() -> Carried:
    """Before the first step: no baseline, no entropy bonus, nothing watched."""
    return {
        "baseline": reward_terms.NO_BASELINE,
        "entropy": np.asarray(np.inf, np.float32),
        "entropy_coefficient": np.zeros((), np.float32),
        "watched": stop_conditions.begin(),
    }


def entropy_weight(carried: Carried, settings: Settings) -> jnp.ndarray:
    """The weight of the entropy bonus in the next update; 0 while the entropy is high enough."""
    coefficient, measured = (jnp.asarray(carried[n]) for n in ("entropy_coefficient", "entropy"))
    return entropy.applied_coefficient(coefficient, measured, settings.entropy_target)


def after(
    carried: Carried, baseline: np.ndarray, measured: Mapping[str, float], settings: Settings
) -> Carried:
    """What is remembered after a step.

    Args:
      carried: before it.
      baseline: of `reward_terms.advantages`.
      measured: all metrics of the step.
      settings: of the update.
    """
    coefficient = carried["entropy_coefficient"]
    if settings.entropy_target:
        coefficient = entropy.next_coefficient(
            jnp.asarray(coefficient),
            jnp.asarray(measured["entropy"], jnp.float32),
            settings.entropy_target,
            ENTROPY_STEP,
            LARGEST_ENTROPY_WEIGHT,
        )
    return {
        "baseline": np.asarray(baseline, np.float32),
        "entropy": np.asarray(measured["entropy"], np.float32),
        "entropy_coefficient": np.asarray(coefficient),
        "watched": stop_conditions.observe(carried["watched"], measured, settings.limits),
    }


def stop_reason(carried: Carried, settings: Settings) -> str | None:
    """Why the run should end here, or None."""
    return stop_conditions.reason(carried["watched"], settings.limits)
