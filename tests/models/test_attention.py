"""Attention and masks against numpy, each kernel against plain einsums; rotary positions against
complex numbers and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import flash_attention, plain_attention, splash_attention
from empathy_jax.models.attention import (
    SHORT,
    SegmentMask,
    attention,
    causal_mask,
    segment_mask,
)
from empathy_jax.models.masks import dense
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


def random_arrays(mask, heads=4, kv_heads=2, head_dim=8):
    """Queries, keys, values, and weights of the outputs that mean something."""
    (rows, length), keys = mask.queries.shape, mask.keys.shape[1]
    shapes = [(length, heads), (keys, kv_heads), (keys, kv_heads), (length, heads)]
    q, k, v, weights = (
        jax.random.normal(key, (rows, *shape, head_dim))
        for key, shape in zip(jax.random.split(jax.random.key(0), 4), shapes, strict=True)
    )
    return (q, k, v), jnp.where(mask.queries[..., None, None] > 0, weights, 0.0)


def assert_attends(attend, mask, atol=1e-5, **shape):
    """Values and gradients are those of the written-out mask."""
    qkv, weights = random_arrays(mask, **shape)

    def values_and_gradients(attend):
        def loss(q, k, v):
            found = attend(q, k, v, mask)
            return jnp.sum(found * weights), jnp.where(weights == 0, 0.0, found)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)

    def plain(q, k, v, mask):
        return plain_attention.scored_attention(q, k, v, dense(mask))

    (_, found), gradients = values_and_gradients(attend)
    (_, expected), expected_gradients = values_and_gradients(plain)
    np.testing.assert_allclose(found, expected, atol=atol)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=atol)


def packed_mask(length, is_causal, before=0):
    """Two rows of packed segments and padding; the first `before` places are keys alone."""
    place = np.arange(before + length)
    first = 1 + (place > 0.3 * len(place)) + (place > 0.8 * len(place))
    ids = jnp.asarray(np.stack([first, place < 0.9 * len(place)]).astype(np.int32))
    return SegmentMask(ids[:, before:], ids, is_causal)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_long_rows_block_by_block_are_the_whole(kv_heads):
    """Packed and padded, longer than a block and not a multiple of it."""
    assert_attends(attention, packed_mask(2 * SHORT + 44, is_causal=True), kv_heads=kv_heads)


@pytest.mark.parametrize(("is_causal", "before"), [(True, 37), (False, 0)])
def test_flash_attention_is_plain_attention(monkeypatch, is_causal, before):
    """Queries and keys that fill no whole number of blocks, behind keys that stand alone."""
    monkeypatch.setattr(flash_attention, "BLOCK", 16)
    mask = packed_mask(45, is_causal, before)

    def attend(q, k, v, mask):
        return flash_attention.flash_attention(q, k, v, mask, before + jnp.arange(45))

    assert_attends(attend, mask)


def test_flash_attention_visits_the_blocks_of_its_segments_alone():
    """Blocks of 2: queries and keys of the row 1 1 2 2 2 3 0 0."""
    keys = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0]])

    def seen(first, is_causal):
        queries, index = keys[:, first : first + 2], first + jnp.arange(2)
        return [int(x) for x in flash_attention._blocks_seen(queries, index, keys, is_causal, 2)]

    assert [seen(first, True) for first in (0, 2, 4)] == [[0, 1], [1, 2], [1, 3]]
    assert [seen(first, False) for first in (0, 2, 4)] == [[0, 1], [1, 3], [1, 3]]
    first, end = seen(6, True)  # padding
    assert first >= end


@pytest.mark.parametrize(("is_causal", "before"), [(True, 100), (False, 0)])
def test_splash_attention_is_plain_attention(is_causal, before):
    """In interpret mode; grouped heads, lengths that are no multiples of a block."""

    def attend(q, k, v, mask):
        return splash_attention.splash_attention(q, k, v, mask, interpret=True)

    assert_attends(attend, packed_mask(200, is_causal, before))


def test_causal_mask_by_hand():
    found = dense(causal_mask(jnp.array([[1, 1, 2, 2, 0]])))[0].astype(int)
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(found, expected)


def test_segment_mask_by_hand():
    mask = segment_mask(jnp.array([[1, 1, 2, 0]]))
    expected = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(dense(mask)[0], expected)
    np.testing.assert_array_equal(dense(mask.at(jnp.array([[2, 0]])))[0], expected[[2, 0]])


def test_a_mask_behind_keys_that_stand_alone():
    """The last query stands at the last key."""
    found = dense(SegmentMask(jnp.array([[1, 1]]), jnp.array([[1, 0, 1, 1]]), is_causal=True))
    np.testing.assert_array_equal(found[0], [[1, 0, 1, 0], [1, 0, 1, 1]])


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
