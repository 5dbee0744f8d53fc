"""Pooling against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models.pooling import check_kind, normalise, pool
from tests.training import update_steps

HIDDEN = jnp.array([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]], [[9.0, 9.0], [0.0, 2.0], [2.0, 4.0]]])
RIGHT_THEN_LEFT = jnp.array([[True, True, False], [False, True, True]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[2.0, 2.0], [1.0, 3.0]]),
        ("cls", [[1.0, 0.0], [0.0, 2.0]]),
        ("last", [[3.0, 4.0], [2.0, 4.0]]),
    ],
)
def test_pool_by_hand(kind, expected):
    found = pool(HIDDEN.astype(jnp.bfloat16), RIGHT_THEN_LEFT, kind)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("config", "fitting", "other"),
    [
        (update_steps.ENCODER, ("mean", "cls"), "last"),
        (update_steps.DECODER, ("mean", "last"), "cls"),
    ],
)
def test_each_architecture_has_its_poolings(config, fitting, other):
    for kind in fitting:
        check_kind(kind, config, "config.reward_model.pooling")
    for kind in (other, "max"):
        with pytest.raises(
            ValueError,
            match=rf"config\.reward_model\.pooling is '{kind}', allowed .* {' and '.join(fitting)}",
        ):
            check_kind(kind, config, "config.reward_model.pooling")


def test_padding_may_hold_anything():
    found = pool(HIDDEN.at[0, 2].set(jnp.nan), RIGHT_THEN_LEFT, "mean")
    np.testing.assert_allclose(found[0], [2.0, 2.0])


def test_a_row_without_tokens_has_mean_zero():
    np.testing.assert_allclose(pool(HIDDEN, jnp.zeros((2, 3), bool), "mean"), np.zeros((2, 2)))


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"'max'.*mean, cls, last"):
        pool(HIDDEN, RIGHT_THEN_LEFT, "max")


def test_normalise_by_hand():
    np.testing.assert_allclose(normalise(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros((1, 2)))
    assert jnp.isfinite(gradient).all()
