"""Masked reductions against numpy.ma, and what they keep out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import masked

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(3.0, 2.0, (4, 5, 6)).astype(np.float32))
MASK = jnp.asarray(RNG.random((4, 5, 6)) < 0.6)
AXES = [None, 0, -1, (0, 2)]


def masked_array():
    return np.ma.masked_array(np.asarray(X), ~np.asarray(MASK))


@pytest.mark.parametrize("axis", AXES)
def test_sum_and_count_match_numpy(axis):
    expected = masked_array()
    np.testing.assert_allclose(masked.masked_sum(X, MASK, axis), expected.sum(axis), rtol=1e-5)
    np.testing.assert_array_equal(masked.masked_count(X, MASK, axis), expected.count(axis))


@pytest.mark.parametrize("axis", AXES)
def test_mean_matches_numpy(axis):
    actual = masked.masked_mean(X, MASK, axis)
    np.testing.assert_allclose(actual, masked_array().mean(axis), rtol=1e-5)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_var_matches_numpy(axis, ddof):
    actual = masked.masked_var(X, MASK, axis, ddof)
    np.testing.assert_allclose(actual, masked_array().var(axis, ddof=ddof), rtol=1e-4)


def test_var_keeps_its_digits_beside_a_large_mean():
    x = jnp.array([10000.0, 10001.0, 10002.0, 0.0])
    mask = jnp.array([True, True, True, False])
    np.testing.assert_allclose(masked.masked_var(x, mask), 2.0 / 3.0, rtol=1e-6)


def test_mask_is_broadcast():
    rows = jnp.array([True, False, True, True])[:, None, None]
    expected = np.asarray(X)[[0, 2, 3]]
    np.testing.assert_allclose(masked.masked_mean(X, rows), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked.masked_var(X, rows), expected.var(), rtol=1e-5)


def test_nothing_counted_gives_zero():
    none = jnp.zeros_like(MASK)
    for reduce in (masked.masked_sum, masked.masked_mean, masked.masked_var):
        assert float(reduce(jnp.full(X.shape, jnp.nan), none)) == 0.0
    one = none.at[0, 0, 0].set(True)
    assert float(masked.masked_var(X, one, ddof=1)) == 0.0


@pytest.mark.parametrize("reduce", [masked.masked_sum, masked.masked_mean, masked.masked_var])
@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_what_is_outside_reaches_neither_value_nor_gradient(reduce, outside):
    dirty = jnp.where(MASK, X, outside)
    value, gradient = jax.value_and_grad(lambda x: reduce(x, MASK))(dirty)
    clean_value, clean_gradient = jax.value_and_grad(lambda x: reduce(x, MASK))(X)
    np.testing.assert_allclose(value, clean_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, clean_gradient, rtol=1e-6)
    assert np.all(gradient[~MASK] == 0)


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones(1000, jnp.bfloat16)
    total = masked.masked_sum(x, jnp.ones(1000, bool))
    assert total.dtype == jnp.float32 and float(total) == 1000.0
