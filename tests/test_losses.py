"""Losses against torch and hand-computed numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from empathy_jax import losses
from empathy_jax.models import decoder

CONFIG = decoder.DecoderConfig(
    vocab_size=97, width=16, mlp_width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
)
RNG = np.random.default_rng(0)


def head_inputs(batch=2, length=7):
    params = decoder.init_params(jax.random.key(0), CONFIG)
    hidden = RNG.normal(size=(batch, length, CONFIG.width)).astype(np.float32) * 5
    targets = RNG.integers(0, CONFIG.vocab_size, (batch, length))
    return params, jnp.asarray(hidden), jnp.asarray(targets)


def test_token_log_probs_and_entropy_match_torch():
    logits = RNG.normal(size=(3, 4, 11)).astype(np.float32) * 4
    targets = RNG.integers(0, 11, (3, 4))
    expected = torch.log_softmax(torch.tensor(logits), -1)
    picked = expected.gather(-1, torch.tensor(targets)[..., None])[..., 0]
    actual = losses.token_log_probs(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(actual, picked, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=torch.tensor(logits)).entropy()
    np.testing.assert_allclose(losses.token_entropy(jnp.asarray(logits)), entropy, atol=1e-5)


def test_token_log_probs_by_hand_and_in_float32():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]])).astype(jnp.bfloat16)
    value = losses.token_log_probs(logits, jnp.array([0]))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.log(0.5), atol=5e-3)
    large = losses.token_log_probs(jnp.array([[1e4, 0.0]]), jnp.array([1]))
    np.testing.assert_allclose(large, -1e4)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
def test_chunked_log_probs_equal_the_whole(chunk_size):
    params, hidden, targets = head_inputs()

    def whole(params, hidden):
        logits = decoder.logits(params, CONFIG, hidden) / 0.7
        return losses.token_log_probs(logits, targets), losses.token_entropy(logits)

    def chunked(params, hidden):
        return losses.token_log_probs_from_hidden(
            params, CONFIG, hidden, targets, chunk_size, temperature=0.7
        )

    def objective(outputs):
        weights = jnp.arange(targets.size).reshape(targets.shape)
        return jnp.sum(weights * outputs[0]) + jnp.sum(outputs[1] ** 2)

    for actual, expected in zip(chunked(params, hidden), whole(params, hidden), strict=True):
        assert actual.shape == targets.shape
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    actual = jax.grad(lambda *a: objective(chunked(*a)), argnums=(0, 1))(params, hidden)
    expected = jax.grad(lambda *a: objective(whole(*a)), argnums=(0, 1))(params, hidden)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=2e-3), actual, expected)


def test_only_what_counts_is_computed():
    """Gradients are those of the whole under the mask; what does not count may be anything."""
    params, hidden, targets = head_inputs(batch=3, length=11)
    mask = jnp.asarray(RNG.random((3, 11)) < 0.3)
    spoilt = jnp.where(mask[..., None], hidden, jnp.inf)

    def whole(params, hidden):
        logits = decoder.logits(params, CONFIG, hidden)
        values = losses.token_log_probs(logits, targets) + losses.token_entropy(logits) ** 2
        return jnp.sum(jnp.where(mask, values, 0))

    def counted(params, hidden, chunk_size):
        log_probs, entropy = losses.token_log_probs_from_hidden(
            params, CONFIG, hidden, targets, chunk_size, loss_mask=mask
        )
        return jnp.sum(log_probs + entropy**2), (log_probs, entropy)

    expected = jax.value_and_grad(whole, argnums=(0, 1))(params, hidden)
    for chunk_size in (1, 4, 100):
        (total, outputs), gradients = jax.value_and_grad(counted, argnums=(0, 1), has_aux=True)(
            params, spoilt, chunk_size
        )
        for found, wanted in zip(
            jax.tree.leaves((total, gradients)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert all(not np.any(np.asarray(output)[~mask]) for output in outputs)


def test_half_precision_sums_the_tables_gradient_in_single():
    params, hidden, targets = head_inputs(batch=2, length=64)
    half = dataclasses.replace(CONFIG, compute_dtype="bfloat16")

    def loss(params, config, chunk_size):
        log_probs, _ = losses.token_log_probs_from_hidden(
            params, config, hidden / 5, targets, chunk_size, entropy_gradient=False
        )
        return jnp.sum(log_probs)

    expected = jax.grad(loss)(params, CONFIG, 128)["embed"]["embedding"]
    # Chunks of one position: sums of bfloat16 would have lost two digits.
    found = jax.grad(loss)(params, half, 1)["embed"]["embedding"]
    assert found.dtype == jnp.float32
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=0.01 * scale)


def test_where_nothing_counts_nothing_is_computed():
    params, hidden, targets = head_inputs()
    mask = jnp.zeros(targets.shape, bool)
    log_probs, entropy = losses.token_log_probs_from_hidden(
        params, CONFIG, hidden * jnp.nan, targets, 4, loss_mask=mask
    )
    assert not np.any(log_probs) and not np.any(entropy)


def largest_intermediate(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars if hasattr(out.aval, "size")]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(largest_intermediate(inner))
    return max(sizes)


def test_no_step_holds_the_logits_of_all_positions():
    params, hidden, targets = head_inputs(batch=2, length=64)

    def objective(params, hidden):
        log_probs, entropy = losses.token_log_probs_from_hidden(params, CONFIG, hidden, targets, 4)
        return jnp.sum(log_probs) + jnp.sum(entropy)

    gradient = jax.make_jaxpr(jax.grad(objective, argnums=(0, 1)))(params, hidden)
    # The embedding's own gradient (V x D) and the hidden states (B x T x D) may be held.
    assert largest_intermediate(gradient.jaxpr) < 2 * 64 * CONFIG.vocab_size / 2


def test_chunk_size_must_be_positive():
    params, hidden, targets = head_inputs()
    with pytest.raises(ValueError, match="chunk_size is 0"):
        losses.token_log_probs_from_hidden(params, CONFIG, hidden, targets, 0)


def test_cross_entropy_sum_matches_torch():
    logits = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    targets = RNG.integers(0, 7, (2, 5))
    mask = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1]], bool)
    ignored = torch.tensor(np.where(mask, targets, -100))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), ignored.flatten(), reduction="sum"
    )
    log_probs = losses.token_log_probs(jnp.asarray(logits), jnp.asarray(targets))
    total, count = losses.cross_entropy_sum(log_probs, jnp.asarray(mask))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == 6
