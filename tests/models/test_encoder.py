"""Properties of the encoder; its numbers are checked against torch in test_parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import encoder
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


def test_padding_changes_nothing(params):
    tokens = jax.random.randint(jax.random.key(1), (1, 10), 0, CONFIG.vocab_size)
    mask = jnp.arange(10)[None] < 6
    run = jax.jit(encoder.hidden_states, static_argnames="config")
    padded = run(params, CONFIG, tokens, mask)
    alone = run(params, CONFIG, tokens[:, :6], mask[:, :6])
    np.testing.assert_allclose(padded[:, :6], alone, atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_keeps_gradients(params, remat):
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, CONFIG.vocab_size)

    def gradient(config):
        def loss(params):
            hidden = encoder.hidden_states(params, config, tokens, jnp.ones_like(tokens, bool))
            return jnp.sum(hidden[:, 0] ** 3)

        return flatten_paths(jax.jit(jax.grad(loss))(params))

    expected = gradient(CONFIG)
    for path, leaf in gradient(dataclasses.replace(CONFIG, remat=remat)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-4)


def test_texts_beyond_the_position_table_are_refused(params):
    tokens = jnp.zeros((1, 13), jnp.int32)
    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        encoder.hidden_states(params, CONFIG, tokens, jnp.ones((1, 13), bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_heads": 5}, r"width \(32\).*num_heads \(5\)"), ({"type_vocab_size": 0}, "type_vocab")],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
