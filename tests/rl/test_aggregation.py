"""Sums and counts by hand, and that microbatches add up to the batch."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import aggregation

VALUES = jnp.array([[1.0, 3.0, 99.0], [4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
MASK = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
AGGREGATIONS = {
    "sequence_mean_token_mean": aggregation.sequence_mean_token_mean,
    "token_mean": aggregation.token_mean,
    "constant_length": functools.partial(aggregation.constant_length, length=4),
}
EXPECTED = {
    "sequence_mean_token_mean": (6.0, 2.0),
    "token_mean": (8.0, 3.0),
    "constant_length": (2.0, 2.0),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_by_hand(variant, name):
    aggregate = variant(AGGREGATIONS[name])
    assert tuple(map(float, aggregate(VALUES, MASK))) == EXPECTED[name]
    outside = jnp.where(MASK, VALUES, jnp.nan)
    assert tuple(map(float, aggregate(outside, MASK))) == EXPECTED[name]


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_one_value_a_completion_is_that_of_each_of_its_tokens(name):
    values = jnp.array([[1.0], [4.0], [99.0]])
    np.testing.assert_array_equal(
        AGGREGATIONS[name](values, MASK),
        AGGREGATIONS[name](jnp.broadcast_to(values, MASK.shape), MASK),
    )


def test_one_value_a_completion_by_hand():
    values = jnp.array([[1.0], [4.0], [99.0]])
    sums = {name: tuple(map(float, f(values, MASK))) for name, f in AGGREGATIONS.items()}
    assert sums == {
        "sequence_mean_token_mean": (5.0, 2.0),
        "token_mean": (6.0, 3.0),
        "constant_length": (1.5, 2.0),
    }


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_microbatches_add_up_to_the_batch(name):
    parts = [AGGREGATIONS[name](VALUES[i : i + 1], MASK[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(np.sum(parts, axis=0), EXPECTED[name])
