"""The ring of columns under growth, parking and return, against plain arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.generation import cache as caches
from empathy_jax.generation.cache import DecodeCache, PromptCache

HEADS, HEAD_DIM, LENGTH = 2, 3, 5
NOISE = np.random.default_rng(0)


def number(value):
    return jnp.int32(value)


def ring(rows, columns, slots=1, lanes=None):
    """A cache of one layer full of random numbers."""

    def some(*shape):
        return (jnp.asarray(NOISE.normal(size=shape), jnp.float32),)

    lanes = rows if lanes is None else lanes
    prompt = (lanes, HEADS, slots * LENGTH, HEAD_DIM)
    keys = some(rows, HEADS, columns // 16, HEAD_DIM, 16)
    return DecodeCache(some(*prompt), some(*prompt), keys, some(rows, HEADS, columns, HEAD_DIM))


def newest(cache, column):
    """Keys and values [N, K, C, H] of a cache, the newest column last."""
    k = np.asarray(cache.k[0]).swapaxes(3, 4).reshape(cache.v[0].shape)
    return [np.roll(x, -column, axis=2) for x in (k, np.asarray(cache.v[0]))]


@pytest.mark.parametrize("columns", [16, 48])
def test_a_resized_ring_keeps_the_newest_columns(columns):
    cache = ring(4, 32)
    resized = caches.resize(cache, number(21), columns=columns)
    assert resized.columns == columns
    kept = min(columns, 32)
    for old, new in zip(newest(cache, 21), newest(resized, 0), strict=True):
        np.testing.assert_array_equal(new[:, :, -kept:], old[:, :, -kept:])


def test_a_parked_row_comes_back_with_its_prompt_and_its_tokens():
    """From row 3, the first of lane 1 of 2, slot 1; into row 2 of another batch, which has more room."""
    cache = ring(6, 32, slots=2, lanes=2)
    one = caches.take_row(cache, *map(number, (1, 1, 3, 21)), slots=2)
    other = ring(4, 48)
    other = caches.widen_prompts(other, slots=1, length=LENGTH + 2)
    before = jax.tree.map(np.asarray, other)
    after = caches.put_row(other, one, number(2), number(7))
    for old, new in zip(newest(cache, 21), newest(after, 7), strict=True):
        np.testing.assert_array_equal(new[2, :, -32:], old[3])
    for old, new in ((cache.prompt_k, after.prompt_k), (cache.prompt_v, after.prompt_v)):
        np.testing.assert_array_equal(new[0][2, :, :LENGTH], old[0][1, :, LENGTH:])
    others = np.array([0, 1, 3])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(new)[others], old[others])


def test_prompts_get_more_room_and_give_it_back():
    cache = ring(3, 16)
    wide = caches.widen_prompts(cache, slots=1, length=LENGTH + 5)
    assert wide.prompt_v[0].shape[2] == LENGTH + 5
    narrow = caches.narrow_prompts(wide, LENGTH)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(narrow), strict=True):
        np.testing.assert_array_equal(new, old)


def test_prompts_go_to_their_slots_and_no_further():
    cache = ring(4, 16, slots=2, lanes=2)
    cache = caches.widen_prompts(cache, slots=2, length=LENGTH + 1)
    before = np.asarray(cache.prompt_k[0]).reshape(2, HEADS, 2, LENGTH + 1, HEAD_DIM)
    new = NOISE.normal(size=(3, HEADS, LENGTH, HEAD_DIM)).astype(np.float32)
    prompts = PromptCache((jnp.asarray(new),), (jnp.asarray(new),))
    moves = np.array([[2, 0, 1], [1, 1, 0], [0, 0, 0]], np.int32)
    cache = caches.place(cache, prompts, jnp.asarray(moves), number(2), slots=2)
    after = np.asarray(cache.prompt_k[0]).reshape(before.shape)
    np.testing.assert_array_equal(after[0, :, 1, :LENGTH], new[2])
    np.testing.assert_array_equal(after[1, :, 0, :LENGTH], new[1])
    np.testing.assert_array_equal(after[0, :, 0], before[0, :, 0])
    np.testing.assert_array_equal(after[1, :, 1], before[1, :, 1])
