"""The adaptive entropy coefficient: steps by hand, and that it holds an entropy at its target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import entropy


def test_next_coefficient_by_hand(variant):
    step = variant(functools.partial(entropy.next_coefficient, target=0.5, delta=0.1, largest=0.25))
    coefficient, seen = jnp.array(0.0), []
    for measured in (0.4, 0.5, 0.3, 0.6, 0.6, 0.6, 0.6):
        coefficient = step(coefficient, jnp.array(measured))
        seen.append(float(coefficient))
    np.testing.assert_allclose(seen, [0.1, 0.2, 0.25, 0.15, 0.05, 0.0, 0.0], atol=1e-6)


def test_applied_coefficient_by_hand(variant):
    applied = variant(functools.partial(entropy.applied_coefficient, target=0.5))
    seen = [float(applied(jnp.array(0.25), jnp.array(e))) for e in (0.1, 0.5, 0.51)]
    assert seen == [0.25, 0.25, 0.0]


def test_it_holds_a_falling_entropy_at_its_target():
    """A policy whose reward prefers one token of four loses its entropy, unless it is held."""

    def mean_entropy(logits):
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs)

    def train(largest):
        def step(state, _):
            logits, coefficient = state
            measured = mean_entropy(logits)
            alpha = entropy.applied_coefficient(coefficient, measured, target=0.8)
            gradient = jax.grad(lambda x: jax.nn.softmax(x)[0] + alpha * mean_entropy(x))(logits)
            coefficient = entropy.next_coefficient(
                coefficient, measured, target=0.8, delta=0.05, largest=largest
            )
            return (logits + 0.2 * gradient, coefficient), measured

        return jax.lax.scan(step, (jnp.zeros(4), jnp.array(0.0)), length=2000)[1]

    assert float(train(largest=0.0)[-1]) < 0.1
    np.testing.assert_allclose(train(largest=2.0)[-500:], 0.8, atol=0.1)


@pytest.mark.parametrize(("delta", "largest"), [(0.0, 1.0), (-0.1, 1.0), (0.1, -1.0)])
def test_steps_that_make_no_sense_are_refused(delta, largest):
    with pytest.raises(ValueError, match=f"delta is {delta} and largest {largest}"):
        entropy.next_coefficient(jnp.array(0.0), jnp.array(0.0), 0.5, delta, largest)
