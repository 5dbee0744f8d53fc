"""Properties of the encoder; its numbers are checked against torch in test_parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import encoder
from empathy_jax.models.attention import segment_mask
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.pytree import flatten_paths

CONFIG = EncoderConfig(
    vocab_size=53, width=32, mlp_width=48, num_layers=2, num_heads=4, max_positions=12
)


@pytest.fixture(scope="module")
def params():
    fresh = encoder.init_params(jax.random.key(0), CONFIG)
    return jax.tree.map(lambda x: x * 10 if x.ndim > 2 else x, fresh)


@pytest.mark.parametrize("pooler", [False, True])
def test_table_lists_what_init_makes(pooler):
    config = dataclasses.replace(CONFIG, pooler=pooler, param_dtype="bfloat16")
    flat = flatten_paths(jax.eval_shape(lambda: encoder.init_params(jax.random.key(0), config)))
    table = encoder.param_table(config)
    assert {path: leaf.shape for path, leaf in flat.items()} == {s.path: s.shape for s in table}
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("bfloat16")}
    assert ("pooler/kernel" in flat) == pooler


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, segment_ids, positions, config=CONFIG):
    mask = segment_mask(segment_ids)
    return encoder.hidden_states(params, config, tokens, positions, mask)


def test_padding_and_neighbours_change_nothing(params):
    """Two texts of 5 and 4 tokens share a row with 3 places of padding; each is also run alone."""
    tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, CONFIG.vocab_size)
    segment_ids = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.array([[*range(5), *range(4), 0, 0, 0]])
    packed = run(params, tokens, segment_ids, positions)
    for place in (slice(0, 5), slice(5, 9)):
        length = place.stop - place.start
        ones, count = jnp.ones((1, length), jnp.int32), jnp.arange(length)[None]
        alone = run(params, tokens[:, place], ones, count)
        np.testing.assert_allclose(packed[:, place], alone, atol=1e-5)
        # The order of tokens is known by their positions alone.
        moved = run(params, tokens[:, place], ones, count[:, ::-1])
        assert np.abs(moved - alone).max() > 0.1


def test_a_neighbours_tokens_get_no_gradient(params):
    """The first text's hidden states depend on its own token vectors and on no others."""
    tokens = jnp.arange(9)[None]
    segment_ids = jnp.array([[1] * 5 + [2] * 4])
    positions = jnp.array([[*range(5), *range(4)]])

    def first(params):
        return jnp.sum(run(params, tokens, segment_ids, positions)[:, :5] ** 3)

    used = np.abs(jax.grad(first)(params)["embed"]["tokens"]).max(axis=1) > 0
    np.testing.assert_array_equal(used, np.arange(CONFIG.vocab_size) < 5)


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"remat": "dots"}, {"lora_rank": 2}])
def test_places_alone_equal_those_of_all(changes):
    """States and gradients at chosen places, of which one has a place twice and one is padding."""
    config = dataclasses.replace(CONFIG, **changes)
    params = jax.tree.map(
        lambda x: x * 10 if x.ndim > 2 else x, encoder.init_params(jax.random.key(0), config)
    )
    lora = None
    if config.lora_rank:
        lora = encoder.init_lora(jax.random.key(1), config)
        lora = jax.tree.map(lambda x: x + 0.1, lora)
    tokens = jax.random.randint(jax.random.key(2), (2, 9), 0, config.vocab_size)
    segment_ids = jnp.array([[1] * 5 + [2] * 4, [1] * 7 + [0] * 2])
    positions = jnp.array([[*range(5), *range(4)], [*range(7), 0, 0]])
    mask = segment_mask(segment_ids)
    places = jnp.array([[0, 5, 5], [0, 3, 8]])
    counts = jnp.array([[1.0, 1, 1], [1, 1, 0]])[:, :, None]

    @functools.partial(jax.jit, static_argnames="alone")
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(trainable, alone):
        arguments = (trainable["params"], config, tokens, positions, mask)
        if alone:
            hidden = encoder.hidden_states(*arguments, places=places, lora=trainable["lora"])
        else:
            hidden = encoder.hidden_states(*arguments, lora=trainable["lora"])
            hidden = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        return jnp.sum(hidden**3 * counts), hidden

    trainable = {"params": params, "lora": lora}
    (_, hidden), grads = run(trainable, True)
    (_, expected), expected_grads = run(trainable, False)
    np.testing.assert_allclose(hidden * counts, expected * counts, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), grads, expected_grads
    )


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_keeps_gradients(params, remat):
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, CONFIG.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))

    def gradient(config):
        def loss(params):
            hidden = run(params, tokens, jnp.ones_like(tokens), positions, config)
            return jnp.sum(hidden[:, 0] ** 3)

        return flatten_paths(jax.jit(jax.grad(loss))(params))

    expected = gradient(CONFIG)
    for path, leaf in gradient(dataclasses.replace(CONFIG, remat=remat)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-4)


def test_texts_beyond_the_position_table_are_refused(params):
    tokens = jnp.zeros((1, 13), jnp.int32)
    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        encoder.hidden_states(params, CONFIG, tokens, tokens, segment_mask(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_heads": 5}, r"width \(32\).*num_heads \(5\)"), ({"type_vocab_size": 0}, "type_vocab")],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
