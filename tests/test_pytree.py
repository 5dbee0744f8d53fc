"""Paths, sizes and counts of nested dicts."""

import jax
import jax.numpy as jnp
import pytest

from empathy_jax.pytree import count_params, flatten_paths, tree_bytes, unflatten_paths

TREE = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_flatten_by_hand_and_back():
    flat = flatten_paths(TREE)
    assert flat == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten_paths(flat) == TREE


def test_impossible_keys_and_paths_are_refused():
    with pytest.raises(ValueError, match="'a/b'"):
        flatten_paths({"a/b": 1})
    for flat in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
        with pytest.raises(ValueError, match="leaf"):
            unflatten_paths(flat)


def test_leaves_that_are_dict_like_stay_leaves():
    """A leaf that is itself an empty mapping must not be mistaken for a folder by unflatten."""
    with pytest.raises(ValueError, match="leaf"):
        unflatten_paths({"a": {}, "a/b": 1})


def test_sizes_of_arrays_and_of_shapes():
    arrays = {"x": jnp.zeros((2, 3), jnp.bfloat16), "y": {"z": jnp.zeros((), jnp.float32)}}
    for tree in (arrays, jax.eval_shape(lambda: arrays)):
        assert count_params(tree) == 7
        assert tree_bytes(tree) == 16
