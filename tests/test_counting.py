import jax
import jax.numpy as jnp
import pytest

from empathy_jax import counting
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


def test_products_by_hand():
    assert counting.flops(jax.jit(jnp.dot), A, B) == 2 * 3 * 5 * 7
    batched = jax.jit(lambda a, b: jnp.einsum("nij,njk->nik", a, b))
    assert counting.flops(batched, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == 4 * 2 * 3 * 5 * 7
    assert counting.flops(jax.jit(jnp.add), A, A) == 0


def test_loops_count_as_often_as_they_run():
    square = jnp.ones((6, 6))
    scanned = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=9)[0])
    assert counting.flops(scanned, square) == 9 * 2 * 6**3
    until = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, c: c @ x, x))
    assert counting.flops(until, square, jnp.int32(3), loops=4) == 4 * 2 * 6**3


def test_a_loop_over_blocks_of_an_array_runs_over_all_of_them():
    def sums(x, n):
        def add(index, total):
            return total + jax.lax.dynamic_slice_in_dim(x, index * 4, 4) @ x[:6]

        return jax.lax.fori_loop(0, n, add, jnp.zeros((4, 6)))

    x = jnp.ones((22, 6))
    assert counting.flops(jax.jit(sums), x, jnp.int32(3), loops=9) == 6 * 2 * 4 * 6 * 6


def test_of_branches_the_dearest():
    either = jax.jit(lambda p, x: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x, x))
    assert counting.flops(either, True, jnp.ones((6, 6))) == 2 * 2 * 6**3


def test_what_a_backward_pass_computes_again_counts():
    def loss(x, w):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    square, one = jnp.ones((6, 6)), 2 * 6**3
    forward = 2 * one
    both = jax.jit(jax.grad(loss, argnums=1))
    again = jax.jit(jax.grad(jax.checkpoint(loss), argnums=1))
    # Backward: two products for the weights, one for the activation between.
    assert counting.flops(both, square, square) == forward + 3 * one
    assert counting.flops(again, square, square) == forward + forward + 3 * one


@pytest.mark.parametrize("layers", [1, 2])
def test_a_decoder_by_hand(tiny_decoder, layers):
    config = decoder.DecoderConfig(**{**vars(tiny_decoder), "num_layers": layers})
    params = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), config))
    rows, length = 2, 8
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def forward(params, tokens):
        hidden, _ = decoder.hidden_states(params, config, tokens, tokens, causal_mask(tokens))
        return decoder.logits(params, config, hidden)

    width, heads = config.width, config.num_heads * config.head_dim
    kv, hidden = config.num_kv_heads * config.head_dim, config.mlp_width
    per_token = width * heads * 2 + width * kv * 2 + 3 * width * hidden + 2 * length * heads
    expected = 2 * rows * length * (layers * per_token + width * config.vocab_size)
    assert counting.flops(jax.jit(forward), params, tokens) == expected
