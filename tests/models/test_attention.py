"""Attention and masks against numpy; rotary positions against complex numbers and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models.attention import QUERY_BLOCK, attention, causal_mask
from empathy_jax.models.rope import (
    RopeScaling,
    apply_rope,
    rope_angles,
    rope_frequencies,
    yarn_attention_factor,
)


def numpy_attention(q, k, v, mask):
    """One head at a time, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            scores = q[row, :, head] @ k[row, :, head // group].T / np.sqrt(q.shape[-1])
            weights = np.where(mask[row], np.exp(scores - scores.max()), 0)
            weights = weights / weights.sum(-1, keepdims=True)
            out[row, :, head] = weights @ v[row, :, head // group]
    return out


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_attention_is_numpys(length, heads):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, length, heads[0], 8))
    k, v = rng.normal(size=(2, 2, 7, heads[1], 8))
    mask = rng.random((2, length, 7)) < 0.6
    mask[..., 0] = True
    found = attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask))
    np.testing.assert_allclose(found, numpy_attention(q, k, v, mask), atol=1e-6)


@pytest.mark.parametrize("length", [1, 3])
def test_a_query_that_sees_nothing_is_finite(length):
    x = jax.random.normal(jax.random.key(0), (1, length, 2, 4))
    mask = jnp.zeros((1, length, length), bool)
    found, gradient = jax.value_and_grad(lambda x: attention(x, x, x, mask).sum())(x)
    assert jnp.isfinite(found) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_long_causal_sequences_block_by_block_are_the_whole(heads):
    """Packed and padded, longer than a block and not a multiple of it: values and gradients."""
    length = QUERY_BLOCK + 44
    keys = jax.random.split(jax.random.key(0), 4)
    q, weights = (jax.random.normal(key, (2, length, heads[0], 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, length, heads[1], 8)) for key in keys[2:])
    position = np.arange(length)
    segment_ids = np.stack([1 + (position > 100) + (position > 260), position < 280]).astype(int)
    mask = causal_mask(jnp.asarray(segment_ids))

    def loss(qkv, is_causal):
        found = attention(*qkv, mask, is_causal)
        # Rows of padding mean nothing.
        return jnp.sum(jnp.where(segment_ids[..., None, None] > 0, found * weights, 0.0)), found

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, blocks), block_gradients = compiled((q, k, v), True)
    (_, whole), whole_gradients = compiled((q, k, v), False)
    counts = segment_ids > 0
    np.testing.assert_allclose(blocks[counts], whole[counts], atol=1e-5)
    for found, expected in zip(block_gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert jnp.isfinite(blocks).all()


def test_causal_mask_by_hand():
    found = causal_mask(jnp.array([[1, 1, 2, 2, 0]]))[0].astype(int)
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(found, expected)


def test_rope_turns_complex_numbers():
    x = np.random.default_rng(0).normal(size=(1, 6, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 50, 51]])
    found = apply_rope(jnp.asarray(x), *rope_angles(jnp.asarray(positions), 8, 1e4, None))
    turn = np.exp(1j * positions[..., None, None] * 1e4 ** (-np.arange(4) / 4))
    expected = (x[..., :4] + 1j * x[..., 4:]) * turn
    np.testing.assert_allclose(found[..., :4], expected.real, atol=1e-5)
    np.testing.assert_allclose(found[..., 4:], expected.imag, atol=1e-5)


def test_rope_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(position_q, position_k):
        turned = [
            apply_rope(x, *rope_angles(jnp.array([[p]]), 16, 1e4, None))
            for x, p in ((q, position_q), (k, position_k))
        ]
        return float(jnp.vdot(*turned))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("linear", {"factor": 3.0}),
        (
            "llama3",
            {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32768}),
        ("yarn", {"factor": 40.0, "original_max_position_embeddings": 64, "truncate": False}),
    ],
)
def test_scaled_frequencies_are_torchs(kind, parameters):
    """At the sizes of real models: head dim 128 and theta 500,000."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": kind, "rope_theta": 5e5, **parameters}
    config = LlamaConfig(head_dim=128, max_position_embeddings=131072, rope_parameters=rope)
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    scaling = RopeScaling(
        kind,
        parameters["factor"],
        parameters.get("original_max_position_embeddings", 0),
        attention_factor=factor,
        truncate=parameters.get("truncate", True),
    )
    np.testing.assert_allclose(rope_frequencies(128, 5e5, scaling), expected.numpy(), rtol=1e-6)
    if kind == "yarn":
        assert yarn_attention_factor(parameters["factor"]) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "dynamic"),
        ({"kind": "linear", "factor": 0.0}, "positive"),
        ({"kind": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        (
            {
                "kind": "llama3",
                "factor": 2.0,
                "original_max_positions": 9,
                "low_freq_factor": 4.0,
            },
            "high_freq_factor",
        ),
    ],
)
def test_impossible_scaling_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)
