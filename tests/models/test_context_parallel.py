"""Attention on meshes of forced CPU devices: every device its own rows, heads and queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import context_parallel, splash_attention
from empathy_jax.models.attention import attention, causal_mask
from empathy_jax.models.context_parallel import Balanced
from tests.models.test_attention import assert_attends, packed_mask
from tests.training import update_steps


def test_who_takes_which_piece():
    """The picture in the module, with one query a piece, behind 10 keys that stand alone."""
    order = Balanced(("sequence",), 4, 10).order(2)
    np.testing.assert_array_equal(order, [[10, 17], [11, 16], [12, 15], [13, 14]])


# The second mesh has more devices than kv heads to cut.
@pytest.mark.parametrize("mesh", [(1, 1, 2, 4), (2, 1, 4, 1)])
def test_causal_rows_cut_over_devices_are_the_whole(mesh):
    data, fsdp, tensor, sequence = mesh
    mask = packed_mask(80, is_causal=True, before=24)
    with jax.set_mesh(update_steps.layout(data, fsdp, tensor, sequence).mesh):
        assert_attends(attention, mask)


def test_rows_that_see_both_ways_are_the_whole():
    with jax.set_mesh(update_steps.layout(1, 2, 2, 2).mesh):
        assert_attends(attention, packed_mask(24, is_causal=False))


def test_splash_attention_of_queries_that_were_dealt():
    """In interpret mode: the kernel's static mask is that of each device's own pieces."""
    kernel = functools.partial(splash_attention.splash_attention, interpret=True)
    with jax.set_mesh(update_steps.layout(1, 1, 1, 2).mesh):
        attend = functools.partial(context_parallel.on_mesh, kernel)
        assert_attends(attend, packed_mask(512, is_causal=True), heads=2, kv_heads=1)


def test_a_long_row_holds_no_square_of_scores():
    """32k tokens on 4 devices: forward and backward in a hundredth of one head's scores."""
    length, heads = 32_768, 1
    # Heads of 12 do not suit splash attention, whose mask takes seconds to prepare.
    row = jax.ShapeDtypeStruct((1, length, heads, 12), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, ids):
        return jnp.sum(attention(q, k, v, causal_mask(ids)))

    with jax.set_mesh(update_steps.layout(1, 1, 1, 4).mesh):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        compiled = gradient.lower(row, row, row, ids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < heads * length**2 * 4 / 100
