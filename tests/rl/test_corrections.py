"""Weights for the sampler's mismatch: hand-computed numbers, and what bounds them.

`test_trl.py` compares the same functions with TRL's.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import corrections

LN2 = math.log(2.0)
SAMPLER = jnp.array([[-1.0, -1.0, -1.0], [-1.0, -1.0, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])
TRAINER = SAMPLER + LN2 * jnp.array([[0.0, 2.0, -1.0], [-2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)

# Weights 1, 4, 1/2; 1/4, 1/2 of the tokens; 2, 1/8 and, of the empty one, 1 of the completions.
CASES = {
    ("token", "truncated"): [[1, 3, 0.5], [0.4, 0.5, 1], [1, 1, 1]],
    ("token", "masked"): [[1, 0, 0.5], [0, 0.5, 1], [1, 1, 1]],
    ("sequence", "truncated"): [[2], [0.4], [1]],
    ("sequence", "masked"): [[2], [0], [1]],
}


@pytest.mark.parametrize(("level", "bound"), CASES)
def test_weights_by_hand(variant, level, bound):
    log_weight = variant(getattr(corrections, f"{level}_log_weight"))(TRAINER, SAMPLER, MASK)
    weights = functools.partial(getattr(corrections, f"{bound}_weights"), smallest=0.4, largest=3.0)
    np.testing.assert_allclose(variant(weights)(log_weight), CASES[level, bound], rtol=1e-6)


@pytest.mark.parametrize("bound", [corrections.truncated_weights, corrections.masked_weights])
def test_without_bounds_the_weights_are_the_plain_ones(bound):
    log_weight = jnp.array([[-30.0, 0.0, 30.0]])
    np.testing.assert_allclose(bound(log_weight, 0.0, math.inf), np.exp(log_weight), rtol=1e-6)


def test_a_long_completion_far_from_the_trainer_overflows_into_its_bound():
    log_weight = jnp.array([[500.0], [-500.0]])
    np.testing.assert_array_equal(corrections.truncated_weights(log_weight, 0.5, 2.0), [[2], [0.5]])
    np.testing.assert_array_equal(corrections.masked_weights(log_weight, 0.5, 2.0), [[0], [0]])


@pytest.mark.parametrize("bound", [corrections.truncated_weights, corrections.masked_weights])
def test_a_weight_has_no_gradient(bound):
    gradient = jax.grad(lambda x: jnp.sum(bound(x, 0.5, 2.0)))(jnp.array([[0.1, 5.0]]))
    np.testing.assert_array_equal(gradient, [[0, 0]])


def test_weights_make_the_samplers_mean_the_trainers():
    """Σ_y sampler(y) w(y) f(y) = Σ_y trainer(y) f(y), over all completions of two tokens."""
    rng = np.random.default_rng(0)

    def completions(logits):
        """Log-probabilities [16, 2] of all pairs of 4 tokens: the second token knows the first."""
        log_probs = jax.nn.log_softmax(logits)
        first, second = np.divmod(np.arange(16), 4)
        return jnp.stack([log_probs[0, first], log_probs[1 + first, second]], axis=1)

    sampler = completions(jnp.asarray(rng.normal(size=(5, 4)).astype(np.float32)))
    trainer = completions(jnp.asarray(rng.normal(size=(5, 4)).astype(np.float32)))
    values = rng.normal(size=16)
    log_weight = corrections.sequence_log_weight(trainer, sampler, jnp.ones((16, 2), bool))
    weights = corrections.truncated_weights(log_weight, 0.0, math.inf)[:, 0]
    expected = np.sum(np.exp(trainer.sum(axis=1)) * values)
    actual = np.sum(np.exp(sampler.sum(axis=1)) * weights * values)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("limits", [(-0.1, 2.0), (1.1, 2.0), (0.5, 0.9), (0.0, math.nan)])
def test_a_band_without_1_is_refused(limits):
    for function in (corrections.truncated_weights, corrections.masked_weights):
        with pytest.raises(ValueError, match="0 <= smallest <= 1 <= largest"):
            function(jnp.zeros((1, 1)), *limits)
