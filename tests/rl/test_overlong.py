"""What long completions are charged, by hand and as TRL computes it."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.rl import overlong


def test_soft_penalty_by_hand(variant):
    lengths = jnp.array([[0, 80, 81], [90, 100, 130]])
    penalty = variant(functools.partial(overlong.soft_penalty, max_length=100, buffer=20))
    np.testing.assert_allclose(penalty(lengths), [[0, 0, 0.05], [0.5, 1, 1]], rtol=1e-6)


def test_the_whole_length_may_be_the_buffer():
    actual = overlong.soft_penalty(jnp.array([0, 1, 4]), max_length=4, buffer=4)
    np.testing.assert_allclose(actual, [0, 0.25, 1])


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_a_buffer_outside_the_length_is_refused(buffer):
    with pytest.raises(ValueError, match=f"buffer is {buffer}; .* max_length, 100"):
        overlong.soft_penalty(jnp.array([1]), max_length=100, buffer=buffer)


def test_without_cut_off_by_hand(variant):
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    actual = variant(overlong.without_cut_off)(mask, jnp.array([False, True, False]))
    np.testing.assert_array_equal(actual, [[1, 1, 0], [0, 0, 0], [0, 1, 0]])
