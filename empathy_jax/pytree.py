"""Nested dicts of arrays seen as flat tables: paths, sizes and counts."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one flat dict: `{"a": {"b": x}}` -> `{"a/b": x}`, order kept.

    Args:
        tree: nested mappings with string keys free of "/"; anything else is a leaf.

    Raises:
        ValueError: for a key that is not a string or contains "/".
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"tree keys must be strings without '/', received {key!r}")
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten_paths(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten_paths(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten_paths`: `{"a/b": x}` -> `{"a": {"b": x}}`.

    Raises:
        ValueError: when one path is both a leaf and a folder ("a" and "a/b").
    """
    tree: dict[str, Any] = {}
    folders = {id(tree)}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            if parent not in node:
                node[parent] = {}
                folders.add(id(node[parent]))
            node = node[parent]
            if id(node) not in folders:
                raise ValueError(f"path {path!r} passes through a leaf at {parent!r}")
        if name in node:
            raise ValueError(f"path {path!r} is both a leaf and a folder")
        node[name] = leaf
    return tree


def tree_bytes(tree: Any) -> int:
    """Bytes of all array leaves (arrays or `jax.ShapeDtypeStruct`), before any sharding."""
    return sum(_size(leaf) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def count_params(tree: Any) -> int:
    """Number of scalars in all array leaves (arrays or `jax.ShapeDtypeStruct`)."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def _size(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64))
