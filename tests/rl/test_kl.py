"""KL estimators: hand-computed numbers, and exact expectations of what the docstrings promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import kl
from empathy_jax.rl.ratios import on_policy_log_ratio

RNG = np.random.default_rng(0)
# A distribution over 5 tokens, small enough to sum over all of them.
LOGITS, REF_LOGITS = jnp.asarray(RNG.normal(size=(2, 1, 5)).astype(np.float32))


def test_estimators_by_hand(variant):
    log_probs = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
    ref = jnp.log(jnp.array([[0.25, 0.4, 0.3]]))
    ln2 = np.log(2)
    np.testing.assert_allclose(variant(kl.kl_k1)(log_probs, ref), [[ln2, -ln2, 0]], rtol=1e-6)
    half = ln2**2 / 2
    np.testing.assert_allclose(variant(kl.kl_k2)(log_probs, ref), [[half, half, 0]], rtol=1e-6)
    expected = [[0.5 - 1 + ln2, 2 - 1 - ln2, 0]]
    np.testing.assert_allclose(variant(kl.kl_k3)(log_probs, ref), expected, rtol=1e-6)


def test_k3_keeps_its_digits_near_the_reference():
    """e^x - 1 - x is x² / 2 there, which subtraction of float32 numbers would lose."""
    difference = 1e-3
    actual = kl.kl_k3(jnp.full((1, 1), -difference), jnp.zeros((1, 1)))
    np.testing.assert_allclose(actual, [[difference**2 / 2]], rtol=1e-3)


def divergence(a, b):
    """KL(a ‖ b) of two distributions, by its definition."""
    a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return jnp.sum(jnp.exp(a) * (a - b))


def forward(logits):
    return divergence(logits, REF_LOGITS)


def reverse(logits):
    return divergence(REF_LOGITS, logits)


def mean_over_tokens(values, logits):
    """E_π of the values; π only weighs the tokens, as sampling does."""
    return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(logits)) * values)


def estimates(estimator, logits):
    return estimator(jax.nn.log_softmax(logits), jax.nn.log_softmax(REF_LOGITS))


@pytest.mark.parametrize(
    ("estimator", "unbiased"), [(kl.kl_k1, True), (kl.kl_k2, False), (kl.kl_k3, True)]
)
def test_as_a_value(estimator, unbiased):
    mean = float(mean_over_tokens(estimates(estimator, LOGITS), LOGITS))
    assert (mean == pytest.approx(float(forward(LOGITS)), rel=1e-5)) is unbiased


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [(kl.kl_k1, lambda x: 0.0 * jnp.sum(x)), (kl.kl_k2, forward), (kl.kl_k3, reverse)],
)
def test_as_a_loss(estimator, objective):
    actual = jax.grad(lambda x: mean_over_tokens(estimates(estimator, x), x))(LOGITS)
    np.testing.assert_allclose(actual, jax.grad(objective)(LOGITS), atol=1e-6)


def test_k1_as_a_loss_has_no_gradient_by_sampling_either():
    """The same with tokens that are drawn, not enumerated: it shrinks as 1 / √n; k2's does not."""
    tokens = jax.random.categorical(jax.random.key(0), LOGITS[0], shape=(100_000,))

    def sampled(estimator):
        def loss(logits):
            return jnp.mean(estimates(estimator, logits)[0, tokens])

        return jax.grad(loss)(LOGITS)

    assert np.max(np.abs(sampled(kl.kl_k1))) < 0.01
    expected = jax.grad(forward)(LOGITS)
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(sampled(kl.kl_k2), expected, atol=0.01)


def gradient_in_a_reward(estimator, logits):
    """E[k ∇ log π]: what the policy gradient makes of a charge of k on the token."""
    charge = jax.lax.stop_gradient(estimates(estimator, logits))
    return jax.grad(lambda x: mean_over_tokens(charge * jax.nn.log_softmax(x), x))(logits)


@pytest.mark.parametrize(
    ("estimator", "objective"), [(kl.kl_k1, forward), (kl.kl_k3, lambda x: forward(x) - reverse(x))]
)
def test_as_a_reward(estimator, objective):
    actual = gradient_in_a_reward(estimator, LOGITS)
    np.testing.assert_allclose(actual, jax.grad(objective)(LOGITS), atol=1e-6)


@pytest.mark.parametrize(("estimator", "order"), [(kl.kl_k1, 1), (kl.kl_k2, 2), (kl.kl_k3, 2)])
def test_k2_and_k3_in_a_reward_hardly_pull_near_the_reference(estimator, order):
    """Ten times nearer, k1 pulls ten times less, and the others a hundred times less."""
    far, near = (
        np.linalg.norm(gradient_in_a_reward(estimator, REF_LOGITS + step * (LOGITS - REF_LOGITS)))
        for step in (0.1, 0.01)
    )
    assert far / near == pytest.approx(10**order, rel=0.2)


def test_k3_times_the_importance_ratio_is_right_as_a_loss():
    def loss(logits):
        ratio = jnp.exp(on_policy_log_ratio(jax.nn.log_softmax(logits)))
        return mean_over_tokens(ratio * estimates(kl.kl_k3, logits), logits)

    np.testing.assert_allclose(jax.grad(loss)(LOGITS), jax.grad(forward)(LOGITS), atol=1e-6)


def test_k2_and_k3_are_never_negative():
    for estimator in (kl.kl_k2, kl.kl_k3):
        assert np.all(estimates(estimator, LOGITS) >= 0)
