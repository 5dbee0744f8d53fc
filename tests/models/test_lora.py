"""Adapters: nothing at the start, merged as unmerged."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import decoder, encoder
from empathy_jax.models.attention import causal_mask, segment_mask
from empathy_jax.models.lora import merge
from empathy_jax.pytree import flatten_paths

DECODER = decoder.DecoderConfig(
    vocab_size=53,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qkv_bias=True,
    qk_norm=False,
    lora_rank=3,
    lora_alpha=5.0,
)
ENCODER = encoder.EncoderConfig(
    vocab_size=53, width=32, mlp_width=48, num_layers=2, num_heads=4, lora_rank=3, lora_alpha=5.0
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 53)
MODELS = [
    pytest.param(decoder, DECODER, id="decoder"),
    pytest.param(encoder, ENCODER, id="encoder"),
]


@functools.partial(jax.jit, static_argnames="config")
def run(params, config, lora=None):
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    segment_ids = jnp.ones((2, 7), jnp.int32)
    if isinstance(config, encoder.EncoderConfig):
        mask = segment_mask(segment_ids)
        return encoder.hidden_states(params, config, TOKENS, positions, mask, lora=lora)
    mask = causal_mask(segment_ids)
    return decoder.hidden_states(params, config, TOKENS, positions, mask, lora=lora)[0]


def random_adapters(fresh):
    """Adapters as after training: B is no longer zero."""
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_fresh_adapters_change_nothing_and_trained_ones_merge(model, config):
    params = model.init_params(jax.random.key(0), config)
    fresh = model.init_lora(jax.random.key(2), config)
    base = run(params, dataclasses.replace(config, lora_rank=0))
    # Not bit for bit: XLA fuses the two programs differently.
    np.testing.assert_allclose(run(params, config, fresh), base, atol=3e-6)
    trained = random_adapters(fresh)
    unmerged = run(params, config, trained)
    assert np.abs(unmerged - base).max() > 0.1
    merged = run(merge(params, trained, config), config)
    np.testing.assert_allclose(merged, unmerged, atol=1e-5)


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_every_linear_layer_has_an_adapter_that_learns(model, config):
    params = model.init_params(jax.random.key(0), config)
    lora = random_adapters(model.init_lora(jax.random.key(2), config))
    kernels = {path for path in flatten_paths(params["layers"]) if path.endswith("kernel")}
    adapted = {path[:-1] + "kernel" for path in flatten_paths(lora["layers"])}
    assert adapted == kernels
    gradient = jax.grad(lambda lora: jnp.sum(run(params, config, lora) ** 3))(lora)
    for path, leaf in flatten_paths(gradient).items():
        assert np.abs(leaf).max() > 0, path


def test_a_starts_normal_with_the_inverse_root_of_its_inputs():
    lora = flatten_paths(decoder.init_lora(jax.random.key(2), DECODER))
    for path, leaf in lora.items():
        if path.endswith("/b"):
            assert not leaf.any()
        else:
            fan_in = math.prod(leaf.shape[1:-1])
            assert float(leaf.std()) == pytest.approx(fan_in**-0.5, rel=0.25), path
    assert not np.allclose(lora["layers/attention/k/a"], lora["layers/attention/v/a"])


def test_wrong_ranks_and_places_are_refused():
    params = decoder.init_params(jax.random.key(0), DECODER)
    lora = decoder.init_lora(jax.random.key(2), DECODER)
    with pytest.raises(ValueError, match="rank 3 and lora_rank is 4"):
        merge(params, lora, dataclasses.replace(DECODER, lora_rank=4))
    with pytest.raises(ValueError, match="no parameter layers/elsewhere/kernel"):
        merge(params, {"layers": {"elsewhere": lora["layers"]["mlp"]["up"]}}, DECODER)
    plain = dataclasses.replace(DECODER, lora_rank=0)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        run(params, plain, lora)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        decoder.init_lora(jax.random.key(2), plain)
