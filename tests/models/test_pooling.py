"""Pooling against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models.pooling import KINDS, check_kind, normalise, pool
from tests.training import update_steps

# Row 0 has two texts, of two tokens and one, and a place of padding; row 1 is one text.
HIDDEN = jnp.array(
    [
        [[1.0, 0.0], [3.0, 4.0], [6.0, 8.0], [100.0, 100.0]],
        [[9.0, 9.0], [0.0, 2.0], [2.0, 4.0], [5.0, 1.0]],
    ]
)
SEGMENT_IDS = jnp.array([[1, 1, 2, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[[2.0, 2.0], [6.0, 8.0]], [[4.0, 4.0], [0.0, 0.0]]]),
        ("cls", [[[1.0, 0.0], [6.0, 8.0]], [[9.0, 9.0], None]]),
        ("last", [[[3.0, 4.0], [6.0, 8.0]], [[5.0, 1.0], None]]),
    ],
)
def test_pool_by_hand(kind, expected):
    found = pool(HIDDEN.astype(jnp.bfloat16), SEGMENT_IDS, kind, 2)
    assert found.dtype == jnp.float32 and found.shape == (2, 2, 2)
    for row, texts in enumerate(expected):
        for segment, vector in enumerate(texts):
            if vector is not None:  # "cls" and "last" of a text that is not there mean nothing
                np.testing.assert_allclose(found[row, segment], vector)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_agrees_with_numpy_on_any_packing(kind):
    random = np.random.default_rng(0)
    hidden = random.normal(size=(5, 12, 3)).astype(np.float32)
    segment_ids = np.sort(random.integers(1, 5, (5, 12)), axis=1)
    segment_ids[:, 9:] = 0
    found = pool(jnp.asarray(hidden), jnp.asarray(segment_ids), kind, 4)
    choose = {"mean": lambda x: x.mean(axis=0), "cls": lambda x: x[0], "last": lambda x: x[-1]}
    for row in range(5):
        for segment in set(segment_ids[row]) - {0}:
            own = hidden[row, segment_ids[row] == segment]
            np.testing.assert_allclose(found[row, segment - 1], choose[kind](own), rtol=1e-5)


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
    for kind in KINDS:
        clean = pool(HIDDEN, SEGMENT_IDS, kind, 2)
        noisy = pool(HIDDEN.at[0, 3].set(1e9), SEGMENT_IDS, kind, 2)
        np.testing.assert_allclose(noisy[0], clean[0])


def test_a_text_takes_no_gradient_from_another():
    for kind in KINDS:
        gradient = jax.grad(lambda x, kind=kind: pool(x, SEGMENT_IDS, kind, 2)[0, 1].sum())(HIDDEN)
        np.testing.assert_allclose(gradient[0], [[0, 0], [0, 0], [1, 1], [0, 0]])
        assert not gradient[1].any()


def test_a_row_without_tokens_has_mean_zero():
    found = pool(HIDDEN, jnp.zeros((2, 4), jnp.int32), "mean", 3)
    np.testing.assert_allclose(found, np.zeros((2, 3, 2)))


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"'max'.*mean, cls, last"):
        pool(HIDDEN, SEGMENT_IDS, "max", 2)


def test_normalise_by_hand():
    np.testing.assert_allclose(normalise(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros((1, 2)))
    assert jnp.isfinite(gradient).all()
