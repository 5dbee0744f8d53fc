"""Passes over a batch add up to the whole of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import passes
from empathy_jax.models import decoder
from empathy_jax.training import common, sft
from tests.training import update_steps


@pytest.mark.parametrize("rows", [2, 16])
def test_parts_add_up_to_the_whole(rows):
    config, batch = update_steps.DECODER, update_steps.as_jax(update_steps.packed_batch(0))
    params = decoder.init_params(jax.random.key(0), config)

    def loss_fn(params, batch):
        total, count = sft.loss_fn({"params": params}, {}, batch=batch, config=config)
        return total / 80, {"count": count}

    whole = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch)
    parts = jax.jit(lambda p, b: passes.accumulate(loss_fn, p, b, rows))(params, batch)
    update_steps.assert_same(whole, parts, 1e-6)
    assert float(_norm(whole[1])) > 0.1  # gradients large enough for 1e-6 to mean something


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_parts_are_cut_like_the_batch():
    """Taken with a stride, every part keeps its rows on the devices that have them."""
    place = update_steps.layout(8, 1, 1)
    batch = common.put_batch({"x": np.arange(16.0)}, place.mesh)

    def loss_fn(scale, batch):
        return jnp.sum(scale * batch["x"]), batch["x"]

    (total, seen), grad = jax.jit(lambda b: passes.accumulate(loss_fn, jnp.float32(2), b, 8))(batch)
    assert total == 2 * 120 and grad == 120
    # Parts are the rows 0, 2, 4, ... and 1, 3, 5, ...; their auxiliary values are added.
    np.testing.assert_array_equal(seen, np.arange(16).reshape(8, 2).sum(axis=1))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="6 rows cannot be taken 4 at a time"):
        passes.accumulate(lambda p, b: (jnp.sum(b), 0), jnp.zeros(()), jnp.zeros((6, 2)), 4)


def test_sums_of_half_precision_weights_are_kept_in_float32():
    """300 + 1 is 300 in bfloat16, as often as it is added."""
    values = jnp.asarray([300.0, *[1.0] * 7])

    def loss_fn(weight, batch):
        return jnp.sum(weight.astype(jnp.float32) * batch), jnp.float32(0)

    _, gradient = passes.accumulate(loss_fn, jnp.ones((), jnp.bfloat16), values, 1)
    assert gradient.dtype == jnp.float32 and gradient == 307
