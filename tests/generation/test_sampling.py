"""Sampling against numpy oracles and a chi-square test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from empathy_jax.generation import sampling
from empathy_jax.generation.sampling import SamplingConfig

RNG = np.random.default_rng(0)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def allowed_by_numpy(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The set of tokens of one row that the filters leave, by sorting."""
    logits = logits.astype(np.float64) / temperature
    order = list(np.argsort(-logits, kind="stable"))
    if top_k:
        order = order[:top_k]
    probs = softmax(logits[order])
    order = order[: int(np.searchsorted(np.cumsum(probs), top_p)) + 1]
    probs = softmax(logits[order])
    return {token for token, p in zip(order, probs, strict=True) if p >= min_p * probs[0]}


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS)
def test_filters_leave_the_tokens_that_numpy_leaves(filters):
    logits = RNG.normal(size=(16, 300)).astype(np.float32) * 2
    actual = sampling.filter_logits(jnp.asarray(logits), SamplingConfig(1, **filters))
    for row, kept in zip(logits, np.isfinite(actual), strict=True):
        assert set(np.flatnonzero(kept)) == allowed_by_numpy(row, **filters)
    temperature = filters.get("temperature", 1.0)
    kept = np.isfinite(actual)
    np.testing.assert_allclose(np.asarray(actual)[kept], (logits / temperature)[kept], rtol=1e-6)


def test_top_p_tells_nearly_equal_tokens_apart():
    logits = RNG.permutation(300).astype(np.float32) * 1e-5
    actual = sampling.filter_logits(jnp.asarray(logits)[None], SamplingConfig(1, top_p=0.5))
    kept = logits[np.isfinite(actual[0])]
    assert len(kept) in (149, 150, 151) and min(kept) == sorted(logits)[-len(kept)]


def test_ties_with_the_last_token_let_through_are_let_through():
    logits = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.2]]))
    for filters in ({"top_k": 2}, {"top_p": 0.5}):
        assert np.all(np.isfinite(sampling.filter_logits(logits, SamplingConfig(1, **filters))))


def draw(logits, config, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    rows = jnp.broadcast_to(logits, (count, logits.shape[-1]))
    return jax.jit(sampling.sample, static_argnames="sampling")(keys, rows, sampling=config)


@pytest.mark.parametrize(("vocab", "temperature"), [(10, 1.0), (200, 0.7), (65, 2.0)])
def test_samples_follow_the_softmax(vocab, temperature):
    logits = RNG.normal(size=vocab).astype(np.float32)
    tokens, _ = draw(jnp.asarray(logits), SamplingConfig(1, temperature=temperature), 40000)
    expected = softmax(logits.astype(np.float64) / temperature) * 40000
    observed = np.bincount(tokens, minlength=vocab)
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_filtered_samples_follow_the_renormalised_softmax():
    logits = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))
    tokens, log_probs = draw(logits, SamplingConfig(1, top_k=3), 20000)
    observed = np.bincount(tokens, minlength=5)
    assert observed[0] == observed[2] == 0
    expected = np.array([0.4, 0.3, 0.15]) / 0.85 * 20000
    assert scipy.stats.chisquare(observed[[1, 3, 4]], expected).pvalue > 1e-3
    np.testing.assert_allclose(log_probs, np.asarray(logits)[tokens], rtol=1e-5)


def test_log_prob_is_of_the_tempered_unfiltered_softmax():
    logits = jnp.asarray(RNG.normal(size=50).astype(np.float32))
    config = SamplingConfig(1, temperature=0.5, top_k=5, top_p=0.8)
    tokens, log_probs = draw(logits, config, 64)
    expected = jax.nn.log_softmax(logits / 0.5)[tokens]
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


def test_greedy_takes_the_likeliest():
    logits = jnp.asarray(RNG.normal(size=(8, 33)).astype(np.float32))
    keys = jax.random.split(jax.random.key(0), 8)
    tokens, log_probs = sampling.sample(keys, logits, SamplingConfig(1, temperature=0.0))
    np.testing.assert_array_equal(tokens, np.argmax(logits, -1))
    np.testing.assert_allclose(log_probs, np.max(jax.nn.log_softmax(logits), -1), atol=1e-6)


def test_a_row_depends_on_its_own_key_alone():
    logits = jnp.asarray(RNG.normal(size=(6, 40)).astype(np.float32))
    keys = jax.random.split(jax.random.key(1), 6)
    together, _ = sampling.sample(keys, logits, SamplingConfig(1))
    alone = [
        sampling.sample(keys[i : i + 1], logits[i : i + 1], SamplingConfig(1))[0][0]
        for i in range(6)
    ]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000])
def test_inverse_cumulative_matches_searchsorted(vocab):
    # Small integers add up exactly, so that every boundary is hit exactly.
    weights = RNG.integers(0, 3, (50, vocab)).astype(np.float32)
    weights[:, RNG.integers(vocab)] += 1
    total = weights.sum(-1).astype(int)
    drawn = RNG.integers(0, total)
    expected = [
        np.searchsorted(np.cumsum(w), t, side="right") for w, t in zip(weights, drawn, strict=True)
    ]
    actual = sampling.inverse_cumulative(
        jnp.asarray(weights), jnp.asarray((drawn + 0.5) / total, jnp.float32)
    )
    np.testing.assert_array_equal(actual, expected)


def test_the_largest_uniform_number_never_draws_a_forbidden_token():
    largest = np.nextafter(np.float32(1), np.float32(0))
    weights = RNG.random((500, 1000)).astype(np.float32)
    weights[RNG.random(weights.shape) < 0.5] = 0
    weights[:, -300:] = 0
    for uniform in (0.0, 0.5, largest, 1.0):
        tokens = sampling.inverse_cumulative(
            jnp.asarray(weights), jnp.full(500, uniform, jnp.float32)
        )
        assert np.all(np.take_along_axis(weights, np.asarray(tokens)[:, None], 1) > 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.5)],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"sampling.{field} is {value}"):
        SamplingConfig(**{"max_new_tokens": 4, field: value})
