"""Log importance ratios: hand-computed numbers, and the gradients that each lets through."""

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax.rl import ratios

LOG_PROBS = jnp.array([[-1.0, -2.0, -3.0], [-0.5, -1.0, -4.0], [-1.0, -1.0, -1.0]])
OLD = jnp.array([[-2.0, -2.5, -9.0], [-1.0, -1.0, -2.0], [-7.0, -7.0, -7.0]])
MASK = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)


def test_token_log_ratio_by_hand(variant):
    actual = variant(ratios.token_log_ratio)(LOG_PROBS, OLD)
    np.testing.assert_allclose(actual, [[1.0, 0.5, 6.0], [0.5, 0.0, -2.0], [6.0, 6.0, 6.0]])


def test_ratios_are_taken_in_float32():
    log_probs = jnp.array([[-100.0]], jnp.bfloat16)
    old = jnp.array([[-100.25]], jnp.float32)
    for ratio in (
        ratios.token_log_ratio(log_probs, old),
        ratios.sequence_log_ratio(log_probs, old, jnp.ones((1, 1), bool)),
    ):
        assert ratio.dtype == jnp.float32 and float(ratio[0, 0]) == 0.25


def test_sequence_log_ratio_by_hand(variant):
    actual = variant(ratios.sequence_log_ratio)(LOG_PROBS, OLD, MASK)
    np.testing.assert_allclose(actual, [[0.75], [-0.5], [0.0]])


def test_sequence_log_ratio_ignores_what_is_masked_even_in_its_gradient():
    def total(log_probs):
        return jnp.sum(ratios.sequence_log_ratio(log_probs, OLD, MASK))

    bad = jnp.where(MASK, LOG_PROBS, -jnp.inf)
    assert float(total(bad)) == float(total(LOG_PROBS))
    np.testing.assert_allclose(
        jax.grad(total)(bad), [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]], rtol=1e-6
    )


def test_on_policy_log_ratio_is_zero_with_the_gradient_of_the_log_probs(variant):
    ratio = ratios.on_policy_log_ratio
    np.testing.assert_array_equal(variant(ratio)(LOG_PROBS), np.zeros((3, 3)))
    gradient = jax.grad(lambda x: jnp.sum(jnp.exp(variant(ratio)(x)) * OLD))(LOG_PROBS)
    np.testing.assert_array_equal(gradient, OLD)
