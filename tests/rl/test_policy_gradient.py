"""Policy-gradient losses against TRL's formulas in torch, exact expectations and hand numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from empathy_jax.rl import policy_gradient as pg

RNG = np.random.default_rng(0)
LOG_PROBS, OLD, REF = jnp.asarray(-RNG.random((3, 4, 6)).astype(np.float32) * 2)
ADVANTAGES = jnp.asarray(RNG.normal(size=(4, 1)).astype(np.float32))
MASK = jnp.arange(6) < jnp.array([6, 1, 4, 0])[:, None]


def to_torch(x):
    return torch.tensor(np.array(x))


def trl_token_loss(log_probs, beta=0.04):
    """The per-token loss of TRL's GRPOTrainer, from its formulas."""
    old, ref, advantages = map(to_torch, (OLD, REF, ADVANTAGES))
    coef = torch.exp(log_probs - old)
    clipped = torch.clamp(coef, 1 - 0.2, 1 + 0.28)
    loss = -torch.min(coef * advantages, clipped * advantages)
    kl = torch.exp(ref - log_probs) - (ref - log_probs) - 1
    return loss + beta * kl


def our_token_loss(log_probs, beta=0.04):
    surrogate = pg.clipped_surrogate(log_probs, OLD, ADVANTAGES, 0.2, 0.28)
    return surrogate + beta * pg.kl_k3(log_probs, REF)


TRL_AGGREGATIONS = {
    "grpo": lambda x, m: ((x * m).sum(-1) / m.sum(-1).clamp(min=1.0)).mean(),
    "dapo": lambda x, m: (x * m).sum() / m.sum().clamp(min=1.0),
    "dr_grpo": lambda x, m: (x * m).sum() / (x.size(0) * 6),
}
OUR_AGGREGATIONS = {
    "grpo": pg.sequence_mean_token_mean,
    "dapo": pg.token_mean,
    "dr_grpo": lambda x, m: pg.constant_length(x, m, 6),
}


@pytest.mark.parametrize("name", TRL_AGGREGATIONS)
def test_loss_and_gradient_match_trl(name):
    rows = slice(0, 3)  # TRL also counts completions that are wholly masked; we do not
    mask = to_torch(MASK[rows]).float()
    log_probs = to_torch(LOG_PROBS).requires_grad_()
    expected = TRL_AGGREGATIONS[name](trl_token_loss(log_probs)[rows], mask)
    expected.backward()

    def loss(log_probs):
        total, count = OUR_AGGREGATIONS[name](our_token_loss(log_probs), MASK)
        return total / count

    actual, gradient = jax.value_and_grad(loss)(LOG_PROBS)
    np.testing.assert_allclose(actual, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, log_probs.grad, atol=1e-6)


def test_clipped_surrogate_by_hand():
    ratio = jnp.array([[0.5, 0.9, 1.1, 2.0]])
    zeros = jnp.zeros((1, 4))

    def loss(advantage):
        return pg.clipped_surrogate(jnp.log(ratio), zeros, jnp.array([[advantage]]), 0.2, 0.3)[0]

    np.testing.assert_allclose(loss(1.0), [-0.5, -0.9, -1.1, -1.3], rtol=1e-6)
    np.testing.assert_allclose(loss(-1.0), [0.8, 0.9, 1.1, 2.0], rtol=1e-6)


def test_is_clipped_marks_exactly_the_tokens_without_gradient():
    def total(log_probs):
        return jnp.sum(pg.clipped_surrogate(log_probs, OLD, ADVANTAGES, 0.2, 0.28))

    gradient = jax.grad(total)(LOG_PROBS)
    clipped = pg.is_clipped(LOG_PROBS, OLD, ADVANTAGES, 0.2, 0.28)
    assert 0 < np.sum(clipped) < clipped.size
    np.testing.assert_array_equal(clipped, gradient == 0)


def test_on_policy_gradient_is_the_plain_policy_gradient():
    gradient = jax.grad(
        lambda x: jnp.sum(pg.clipped_surrogate(x, LOG_PROBS, ADVANTAGES, 0.2, 0.2))
    )(LOG_PROBS)
    np.testing.assert_allclose(gradient, np.broadcast_to(-ADVANTAGES, LOG_PROBS.shape), rtol=1e-6)


# Exact expectations over a distribution of 5 outcomes.
LOGITS, REF_LOGITS = jnp.asarray(RNG.normal(size=(2, 1, 5)).astype(np.float32))


def expected_estimate(estimator, logits):
    """E_π of the estimate, π held fixed where it only weighs the outcomes."""
    log_probs, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(REF_LOGITS)
    weights = jax.lax.stop_gradient(jnp.exp(log_probs))
    return jnp.sum(weights * estimator(log_probs, ref))


def kl(a, b):
    return jnp.sum(jnp.exp(a) * (a - b))


def true_kl(logits):
    return kl(jax.nn.log_softmax(logits), jax.nn.log_softmax(REF_LOGITS))


def reverse_kl(logits):
    return kl(jax.nn.log_softmax(REF_LOGITS), jax.nn.log_softmax(logits))


@pytest.mark.parametrize("estimator", [pg.kl_k1, pg.kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    np.testing.assert_allclose(expected_estimate(estimator, LOGITS), true_kl(LOGITS), rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [(pg.kl_k1, lambda x: 0.0 * jnp.sum(x)), (pg.kl_k2, true_kl), (pg.kl_k3, reverse_kl)],
)
def test_expected_gradient_as_a_loss_is_what_the_docstring_says(estimator, objective):
    actual = jax.grad(lambda x: expected_estimate(estimator, x))(LOGITS)
    np.testing.assert_allclose(actual, jax.grad(objective)(LOGITS), atol=1e-6)


def test_k2_and_k3_are_never_negative():
    assert np.all(pg.kl_k2(LOG_PROBS, REF) >= 0) and np.all(pg.kl_k3(LOG_PROBS, REF) >= 0)
    np.testing.assert_allclose(pg.kl_k2(LOG_PROBS, REF), (LOG_PROBS - REF) ** 2 / 2, rtol=1e-5)


def test_aggregations_by_hand():
    values = jnp.array([[1.0, 3.0, 99.0], [4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    assert [float(x) for x in pg.sequence_mean_token_mean(values, mask)] == [6.0, 2.0]
    assert [float(x) for x in pg.token_mean(values, mask)] == [8.0, 3.0]
    assert [float(x) for x in pg.constant_length(values, mask, 4)] == [2.0, 2.0]


@pytest.mark.parametrize("name", OUR_AGGREGATIONS)
def test_microbatches_add_up_to_the_batch(name):
    aggregate = OUR_AGGREGATIONS[name]
    values = LOG_PROBS
    parts = [aggregate(values[i : i + 1], MASK[i : i + 1]) for i in range(4)]
    whole = aggregate(values, MASK)
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)
