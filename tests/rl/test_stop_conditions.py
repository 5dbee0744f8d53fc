import dataclasses

import numpy as np
import pytest

from empathy_jax.rl import stop_conditions
from empathy_jax.rl.stop_conditions import Limits

OFF = Limits(max_kl=0.0, min_validity=0.0, max_overlap_rise=0.0, window=3)
CALM = {
    "kl": 0.01, "valid": 0.9, "reward": 1.0, "echo_overlap": 0.1, "template_overlap": 0.1,
}  # fmt: skip


def _watch(limits, *steps):
    """Steps until there is a reason to stop, and the reason."""
    known = stop_conditions.begin()
    for count, step in enumerate(steps, start=1):
        known = stop_conditions.observe(known, CALM | step, limits)
        if (reason := stop_conditions.reason(known, limits)) is not None:
            return count, reason
    return len(steps), None


def test_means_by_hand():
    known = stop_conditions.begin()
    for kl in (0.3, 0.6, 0.9):
        known = stop_conditions.observe(known, {"kl": kl}, OFF)
    # Weights 4/9, 6/9 and 9/9 of 1/3 each, over their sum 19/27.
    expected = (4 * 0.3 + 6 * 0.6 + 9 * 0.9) / 19
    assert stop_conditions._smoothed(known, OFF)["kl"] == pytest.approx(expected, rel=1e-6)
    assert known["start"][0] == pytest.approx(expected, rel=1e-6)
    later = stop_conditions.observe(known, {"kl": 9.0}, OFF)
    assert later["start"][0] == known["start"][0] and later["steps"] == 4
    # What an absent figure counts for, and that all of it can lie in a checkpoint.
    assert stop_conditions._smoothed(later, OFF)["reward"] == 0
    assert all(np.asarray(value).dtype == np.float32 for value in later.values())


def test_kl_above_its_bound():
    limits = dataclasses.replace(OFF, max_kl=0.5)
    assert _watch(limits, *[{}] * 9) == (9, None)
    # One wild step is no reason, and nothing is before the window is full.
    assert _watch(limits, {}, {}, {}, {"kl": 1.1}, {}, {}) == (6, None)
    count, reason = _watch(limits, {"kl": 9.0}, {"kl": 9.0}, {"kl": 9.0})
    assert count == 3 and reason.endswith("KL 9 a token is above config.rl.max_kl 0.5")
    assert _watch(OFF, *[{"kl": 9.0}] * 9) == (9, None)


def test_validity_collapses_only_from_a_height():
    limits = dataclasses.replace(OFF, min_validity=0.5)
    assert _watch(limits, *[{"valid": 0.2}] * 9) == (9, None)
    count, reason = _watch(limits, *[{}] * 4, *[{"valid": 0.0}] * 6)
    assert count == 6
    assert reason == (
        "chains have collapsed: 35% are valid, after 90%; config.rl.min_validity is 0.5"
    )
    # From below to above it and down again.
    steps = [*[{"valid": 0.0}] * 3, *[{"valid": 1.0}] * 6, *[{"valid": 0.0}] * 6]
    count, reason = _watch(limits, *steps)
    assert 9 < count < 15 and "collapsed" in reason


@pytest.mark.parametrize("name", stop_conditions.PROBES)
def test_a_reward_that_rises_with_an_overlap_is_being_fooled(name):
    limits = dataclasses.replace(OFF, max_overlap_rise=0.2)
    rising = [{name: 0.1 + 0.05 * t, "reward": 1 + 0.1 * t} for t in range(20)]
    count, reason = _watch(limits, *rising)
    assert 6 < count < 12 and reason.startswith("the reward is being fooled: it rose from 1.")
    assert f"while {name} rose from 0.1" in reason
    # The overlap alone, the reward alone, or both falling, are not that.
    assert _watch(limits, *[{name: step[name]} for step in rising])[1] is None
    assert _watch(limits, *[{"reward": step["reward"]} for step in rising])[1] is None
    falling = [{name: 0.9 - 0.04 * t, "reward": 1 - 0.1 * t} for t in range(20)]
    assert _watch(limits, *falling) == (20, None)
    assert _watch(OFF, *rising) == (20, None)


def test_a_window_of_one_step_judges_each_step():
    limits = Limits(max_kl=0.5, min_validity=0.0, max_overlap_rise=0.0, window=1)
    assert _watch(limits, {}, {"kl": 0.6})[0] == 2
