"""When a run of RL should not go on: it left its reference, forgot its format, or fools its reward.

Figures are smoothed before they are judged, for one step's mean over a few questions says little:

    m_t = d m_{t-1} + (1 - d) x_t,  d = 1 - 1 / window;   the smoothed figure is m_t / (1 - d^t)

(the correction of https://arxiv.org/abs/1412.6980). What is known of a run is a flat dictionary of
float32, so that it can lie in a checkpoint.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

WATCHED = ("kl", "valid", "reward", "echo_overlap", "template_overlap")
PROBES = ("echo_overlap", "template_overlap")
SMALLEST_RISE = 0.01  # of a reward, whose terms are of the order of 1

Known = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends a run; 0 turns a condition off.

    Attributes:
      max_kl: per token, of the policy from its reference.
      min_validity: share of valid chains; it ends a run only after validity had been above it.
      max_overlap_rise: by which echo or template overlap may rise while the reward rises too.
      window: steps over which figures are smoothed; no verdict comes before so many.
    """

    max_kl: float
    min_validity: float
    max_overlap_rise: float
    window: int


def begin() -> dict[str, np.ndarray]:
    """What is known before the first step: of WATCHED the means `m` and the smoothed first window."""
    zeros = np.zeros(len(WATCHED), np.float32)
    nought = np.zeros((), np.float32)
    return {"steps": nought, "means": zeros, "start": zeros, "best_validity": nought}


def observe(known: Known, measured: Mapping[str, float], limits: Limits) -> dict[str, np.ndarray]:
    """What is known after one more step; a figure of WATCHED that was not measured counts as 0."""
    values = np.array([measured.get(name, 0.0) for name in WATCHED], np.float32)
    decay = np.float32(1 - 1 / limits.window)
    now = {
        **known,
        "steps": np.asarray(known["steps"] + 1, np.float32),
        "means": decay * known["means"] + (1 - decay) * values,
    }
    smoothed = _smoothed(now, limits)
    if now["steps"] <= limits.window:
        now["start"] = np.array([smoothed[name] for name in WATCHED], np.float32)
    if now["steps"] >= limits.window:
        best = max(known["best_validity"], smoothed["valid"])
        now["best_validity"] = np.asarray(best, np.float32)
    return now


def reason(known: Known, limits: Limits) -> str | None:
    """Why the run should end after what is known, in one line; None when it should go on."""
    if known["steps"] < limits.window:
        return None
    now = _smoothed(known, limits)
    if limits.max_kl and now["kl"] > limits.max_kl:
        return (
            f"the policy has left its reference: KL {now['kl']:.3g} a token is above "
            f"config.rl.max_kl {limits.max_kl:g}"
        )
    if now["valid"] < limits.min_validity <= known["best_validity"]:
        return (
            f"chains have collapsed: {now['valid']:.0%} are valid, after "
            f"{known['best_validity']:.0%}; config.rl.min_validity is {limits.min_validity:g}"
        )
    before = dict(zip(WATCHED, map(float, known["start"]), strict=True))
    if not limits.max_overlap_rise or now["reward"] - before["reward"] < SMALLEST_RISE:
        return None
    for name in PROBES:
        if now[name] - before[name] > limits.max_overlap_rise:
            return (
                f"the reward is being fooled: it rose from {before['reward']:.3g} to "
                f"{now['reward']:.3g} while {name} rose from {before[name]:.2f} to {now[name]:.2f}; "
                f"config.rl.max_overlap_rise is {limits.max_overlap_rise:g}"
            )
    return None


def _smoothed(known: Known, limits: Limits) -> dict[str, float]:
    decay = 1 - 1 / limits.window
    means = known["means"] / (1 - decay ** float(known["steps"]))
    return dict(zip(WATCHED, map(float, means), strict=True))
