"""Policy-gradient losses: hand-computed numbers, and which tokens keep a gradient.

`test_trl.py` compares the same functions with TRL's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import policy_gradient as pg
from empathy_jax.rl import ratios

RNG = np.random.default_rng(0)
LOG_RATIO = jnp.asarray(RNG.normal(size=(4, 6)).astype(np.float32))
LOG_PROBS = jnp.asarray(-RNG.random((4, 6)).astype(np.float32) * 2)
ADVANTAGES = jnp.asarray(RNG.normal(size=(4, 1)).astype(np.float32))

RATIO = jnp.array([[0.75, 0.9, 1.25, 2.0, 9.0]])


@pytest.mark.parametrize(
    ("advantage", "ceiling", "expected"),
    [
        (1.0, None, [-0.75, -0.9, -1.25, -1.3, -1.3]),
        (-1.0, None, [0.8, 0.9, 1.25, 2.0, 9.0]),
        (1.0, 4.0, [-0.75, -0.9, -1.25, -1.3, -1.3]),
        (-1.0, 4.0, [0.8, 0.9, 1.25, 2.0, 4.0]),
        (-3.0, 4.0, [2.4, 2.7, 3.75, 6.0, 12.0]),
        (0.0, 4.0, [0.0] * 5),
    ],
)
def test_clipped_surrogate_by_hand(variant, advantage, ceiling, expected):
    loss = functools.partial(pg.clipped_surrogate, clip_low=0.2, clip_high=0.3, ceiling=ceiling)
    actual = variant(loss)(jnp.log(RATIO), jnp.array([[advantage]]))
    np.testing.assert_allclose(actual, [expected], rtol=1e-6)


def test_is_clipped_by_hand(variant):
    masks = variant(functools.partial(pg.is_clipped, clip_low=0.2, clip_high=0.3, ceiling=4.0))
    log_ratio = jnp.log(jnp.concatenate([RATIO, RATIO, RATIO]))
    too_low, too_high = masks(log_ratio, jnp.array([[1.0], [-1.0], [0.0]]))
    np.testing.assert_array_equal(too_low, [[0] * 5, [1, 0, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(too_high, [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0] * 5])


@pytest.mark.parametrize("ceiling", [None, 1.5])
def test_is_clipped_marks_exactly_the_tokens_without_gradient(ceiling):
    limits = {"clip_low": 0.2, "clip_high": 0.28, "ceiling": ceiling}
    gradient = jax.grad(lambda x: jnp.sum(pg.clipped_surrogate(x, ADVANTAGES, **limits)))(LOG_RATIO)
    too_low, too_high = pg.is_clipped(LOG_RATIO, ADVANTAGES, **limits)
    assert np.any(too_low) and np.any(too_high) and not np.any(too_low & too_high)
    np.testing.assert_array_equal(too_low | too_high, gradient == 0)


def test_a_completion_may_have_one_ratio_or_one_advantage():
    """[B, 1] and [B, T] arguments mix: repeated over the tokens they give the same."""
    per_token, per_completion = LOG_RATIO, LOG_RATIO[:, :1]
    advantages = jnp.broadcast_to(ADVANTAGES, LOG_RATIO.shape)
    limits = (0.2, 0.28, 3.0)
    np.testing.assert_array_equal(
        pg.clipped_surrogate(per_token, ADVANTAGES, *limits),
        pg.clipped_surrogate(per_token, advantages, *limits),
    )
    short = pg.clipped_surrogate(per_completion, ADVANTAGES, *limits)
    assert short.shape == (4, 1)
    repeated = jnp.broadcast_to(per_completion, LOG_RATIO.shape)
    for actual in (short, pg.clipped_surrogate(per_completion, advantages, *limits)):
        np.testing.assert_array_equal(
            jnp.broadcast_to(actual, LOG_RATIO.shape),
            pg.clipped_surrogate(repeated, advantages, *limits),
        )


def test_cispo_by_hand(variant):
    loss = variant(functools.partial(pg.cispo, clip_high=1.0))
    log_probs = jnp.full((1, 5), -0.5)
    expected = [0.375, 0.45, 0.625, 1.0, 1.0]  # the ratio, at most 2, times 0.5
    for advantage in (1.0, -2.0):
        actual = loss(jnp.log(RATIO), log_probs, jnp.array([[advantage]]))
        np.testing.assert_allclose(actual, advantage * np.array([expected]), rtol=1e-6)


def test_cispo_learns_from_every_token_with_a_bounded_weight():
    def total(log_probs):
        log_ratio = ratios.token_log_ratio(log_probs, LOG_PROBS - LOG_RATIO)
        return jnp.sum(pg.cispo(log_ratio, log_probs, ADVANTAGES, 0.5))

    weight = np.minimum(np.exp(LOG_RATIO), 1.5)
    assert np.any(weight == 1.5) and np.any(weight < 1.5)
    np.testing.assert_allclose(jax.grad(total)(LOG_PROBS), -weight * ADVANTAGES, rtol=1e-5)


@pytest.mark.parametrize("name", ["clipped_surrogate", "cispo"])
def test_on_policy_gradient_is_the_plain_policy_gradient(name):
    def total(log_probs):
        log_ratio = ratios.on_policy_log_ratio(log_probs)
        if name == "cispo":
            return jnp.sum(pg.cispo(log_ratio, log_probs, ADVANTAGES, 0.2))
        return jnp.sum(pg.clipped_surrogate(log_ratio, ADVANTAGES, 0.2, 0.2))

    gradient = jax.grad(total)(LOG_PROBS)
    np.testing.assert_allclose(gradient, np.broadcast_to(-ADVANTAGES, LOG_PROBS.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((-0.1, 0.2), "clip_low is -0.1"),
        ((1.1, 0.2), "clip_low is 1.1"),
        ((0.2, -0.1), "clip_high is -0.1"),
        ((0.2, 0.5, 1.5), "ceiling is 1.5; it must be above 1 \\+ clip_high = 1.5"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    for function in (pg.clipped_surrogate, pg.is_clipped):
        with pytest.raises(ValueError, match=message):
            function(LOG_RATIO, ADVANTAGES, *limits)
    if limits[1] < 0:
        with pytest.raises(ValueError, match=message):
            pg.cispo(LOG_RATIO, LOG_PROBS, ADVANTAGES, limits[1])
