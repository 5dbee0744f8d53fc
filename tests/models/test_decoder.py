"""Properties of the decoder; its numbers are checked against torch in test_parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.pytree import flatten_paths, tree_bytes

CONFIG = DecoderConfig(
    vocab_size=53,
    width=32,
    mlp_width=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)


@pytest.fixture(scope="module")
def params():
    """Fresh parameters, made ten times as large so that attention is not near uniform."""
    fresh = decoder.init_params(jax.random.key(0), CONFIG)
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, fresh)


def random_tokens(length, rows=2):
    return jax.random.randint(jax.random.key(1), (rows, length), 0, CONFIG.vocab_size)


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, segment_ids=None, positions=None, config=CONFIG):
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    positions = positions_of(tokens) if positions is None else positions
    return decoder.hidden_states(params, config, tokens, positions, causal_mask(segment_ids))[0]


cached = jax.jit(decoder.hidden_states, static_argnames="config")


@pytest.mark.parametrize("switches_on", [False, True])
def test_table_lists_what_init_makes(switches_on):
    config = dataclasses.replace(
        CONFIG,
        qkv_bias=switches_on,
        out_bias=switches_on,
        mlp_bias=switches_on,
        qk_norm=switches_on,
        tie_embeddings=not switches_on,
        param_dtype="bfloat16",
    )
    made = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), config))
    flat = flatten_paths(made)
    table = decoder.param_table(config)
    assert {path: leaf.shape for path, leaf in flat.items()} == {s.path: s.shape for s in table}
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("bfloat16")}
    assert all(len(spec.axes) == len(spec.shape) for spec in table)


def test_layers_start_different(params):
    kernel = params["layers"]["attention"]["q"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_no_token_sees_a_later_one(params):
    """The gradient of position 4's output with respect to each input embedding."""
    # Each position has a token of its own, so that rows of the gradient are positions.
    tokens = jnp.arange(8)[None]

    def output_at_4(table):
        varied = {**params, "embed": {"embedding": table}}
        return jnp.sum(run(varied, tokens)[0, 4] ** 2)

    gradient = jax.grad(output_at_4)(params["embed"]["embedding"])
    seen = np.abs(gradient[:8]).sum(-1) > 0
    np.testing.assert_array_equal(seen, np.arange(8) <= 4)


def test_packed_equals_separate(params):
    first, second = random_tokens(5, rows=1), random_tokens(8, rows=1)[:, 1:]
    padding = jnp.zeros((1, 3), jnp.int32)
    packed = jnp.concatenate([first, second, padding], axis=1)
    segment_ids = jnp.array([[1] * 5 + [2] * 7 + [0] * 3])
    positions = jnp.array([[*range(5), *range(7), 0, 0, 0]])
    together = run(params, packed, segment_ids, positions)
    np.testing.assert_allclose(together[:, :5], run(params, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 5:12], run(params, second), atol=1e-5)
    assert jnp.isfinite(together).all()


def test_prefill_and_decode_with_left_padding_equal_the_whole(params):
    """Rows of 6 and 4 tokens, aligned at the right, then three more tokens one at a time."""
    tokens = random_tokens(9)
    starts = jnp.array([0, 2])
    slots = jnp.arange(12)
    positions = jnp.maximum(positions_of(tokens) - starts[:, None], 0)
    cache = decoder.init_kv_cache(CONFIG, 2, 12, "float32")
    outputs = []
    for begin, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        queries = jnp.arange(begin, end)
        mask = (slots <= queries[:, None]) & (slots >= starts[:, None, None])
        hidden, cache = cached(
            params,
            CONFIG,
            tokens[:, begin:end],
            positions[:, begin:end],
            mask,
            kv_cache=cache,
            cache_index=begin,
        )
        outputs.append(hidden)
    found = jnp.concatenate(outputs, axis=1)
    np.testing.assert_allclose(found[:1], run(params, tokens[:1]), atol=1e-5)
    np.testing.assert_allclose(found[1:, 2:], run(params, tokens[1:, 2:]), atol=1e-5)
    assert not cache.k[:, :, 9:].any()


def test_decoding_updates_the_cache_in_place(params):
    """A decode loop needs less scratch memory than one more cache: nothing copies it."""
    rows, length = 4, 1024
    cache = decoder.init_kv_cache(CONFIG, rows, length, "float32")

    def decode(params, cache):
        def step(state):
            index, tokens, cache = state
            mask = jnp.broadcast_to(jnp.arange(length) <= index, (rows, 1, length))
            positions = jnp.full((rows, 1), index)
            hidden, cache = decoder.hidden_states(
                params, CONFIG, tokens, positions, mask, kv_cache=cache, cache_index=index
            )
            return index + 1, jnp.argmax(decoder.logits(params, CONFIG, hidden), -1), cache

        start = (jnp.int32(0), jnp.zeros((rows, 1), jnp.int32), cache)
        return jax.lax.while_loop(lambda state: state[0] < length, step, start)

    compiled = jax.jit(decode, donate_argnums=1).lower(params, cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tree_bytes(cache)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_not_gradients(params, remat):
    tokens = random_tokens(7)

    def loss(params, config):
        return jnp.sum(run(params, tokens, config=config) ** 2)

    def gradient(config):
        return jax.jit(jax.grad(loss), static_argnums=1).lower(params, config)

    kept, recomputed = CONFIG, dataclasses.replace(CONFIG, remat=remat)
    lowered = [gradient(config) for config in (kept, recomputed)]
    # More products in the text: the backward pass recomputes, so equality shows something.
    products = [text.as_text().count("dot_general") for text in lowered]
    assert products[1] > products[0]
    expected, found = (text.compile()(params) for text in lowered)
    for path, leaf in flatten_paths(found).items():
        np.testing.assert_allclose(leaf, flatten_paths(expected)[path], rtol=1e-4, atol=1e-4)


def test_scan_equals_a_loop_over_layers(params):
    """Three models of one layer, one after another, are one model of three layers."""
    tokens = random_tokens(6)
    angles = decoder.rope_angles(positions_of(tokens), CONFIG.head_dim, CONFIG.rope_theta, None)
    mask = causal_mask(jnp.ones_like(tokens))
    x = params["embed"]["embedding"][tokens]
    layer_of = jax.jit(decoder.Layer(CONFIG).apply)
    for layer in range(CONFIG.num_layers):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        (x, _), _ = layer_of({"params": weights}, (x, None), angles, mask, None, jnp.int32(layer))
    expected = decoder.RmsNorm(CONFIG).apply({"params": params["final_norm"]}, x)
    np.testing.assert_allclose(run(params, tokens), expected, atol=1e-5)


def test_dtype_policy(params):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    tokens = random_tokens(7)
    hidden = run(params, tokens, config=config)
    scores = decoder.logits(params, config, hidden)
    assert hidden.dtype == jnp.bfloat16
    assert scores.dtype == jnp.float32
    reference = decoder.logits(params, CONFIG, run(params, tokens))
    assert 0 < np.abs(scores - reference).max() < 0.05 * np.abs(reference).max()


def test_a_16_bit_cache_is_kept_in_its_dtype(params):
    tokens = random_tokens(4)
    cache = decoder.init_kv_cache(CONFIG, 2, 4, "bfloat16")
    mask = causal_mask(jnp.ones_like(tokens))
    hidden, cache = cached(
        params, CONFIG, tokens, positions_of(tokens), mask, kv_cache=cache, cache_index=0
    )
    assert cache.k.dtype == jnp.bfloat16 and hidden.dtype == jnp.float32
    np.testing.assert_allclose(hidden, run(params, tokens), atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, r"num_heads \(4\).*num_kv_heads \(3\)"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"remat": "some"}, "remat is 'some'.*none, dots, full"),
        ({"compute_dtype": "int8"}, "compute_dtype is 'int8'"),
        ({"lora_rank": -1}, "lora_rank is -1"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_cache_and_its_index_go_together(params):
    tokens = random_tokens(4)
    mask = causal_mask(jnp.ones_like(tokens))
    cache = decoder.init_kv_cache(CONFIG, 2, 4, "float32")
    for arguments in ({"kv_cache": cache}, {"cache_index": 0}):
        with pytest.raises(ValueError, match="together"):
            decoder.hidden_states(params, CONFIG, tokens, tokens, mask, **arguments)
