"""A batch in passes: some rows at a time, so that the activations of these alone are held.

Passes take their rows with a stride, so that a batch that is cut over devices along its rows is cut the
same way in every pass and nothing is moved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def accumulate(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], trainable: Any, batch: Any, rows: int
) -> tuple[tuple[jax.Array, Any], Any]:
    """Value and gradient of a loss that is a sum over rows, `rows` of them at a time.

    Args:
      loss_fn: (trainable, batch) to (sum, auxiliary sums).
      trainable: what is differentiated.
      batch: arrays [B, ...].
      rows: rows of a pass; B is a multiple of it.

    Returns:
      ((sum, auxiliary sums), gradient), as `jax.value_and_grad(..., has_aux=True)` on the whole. What
      several passes add up to is in float32, whatever the dtype of `trainable`.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if _rows(batch) <= rows:
        return grad_fn(trainable, batch)
    passes = in_passes(batch, rows)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b, total, grad_fn(trainable, part)), None

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        dtype = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        return jnp.zeros(leaf.shape, dtype)

    one = jax.tree.map(lambda leaf: leaf[0], passes)
    start = jax.tree.map(zeros, jax.eval_shape(grad_fn, trainable, one))
    return jax.lax.scan(add, start, passes)[0]


def map_rows(function: Callable[[Any], Any], batch: Any, rows: int) -> Any:
    """`function` of a batch [B, ...] to results [B, ...], in passes of `rows` rows."""
    size = _rows(batch)
    if size <= rows:
        return function(batch)
    made = jax.lax.map(function, in_passes(batch, rows))
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(size, *leaf.shape[2:]), made)


def in_passes(batch: Any, rows: int) -> Any:
    """Arrays [B, ...] as [B / rows, rows, ...], rows taken with a stride.

    Raises:
      ValueError: when B is no multiple of `rows`.
    """
    size = _rows(batch)
    if size % rows:
        raise ValueError(
            f"a batch of {size} rows cannot be taken {rows} at a time; choose a divisor of {size}"
        )
    return jax.tree.map(
        lambda leaf: leaf.reshape(rows, size // rows, *leaf.shape[1:]).swapaxes(0, 1), batch
    )


def _rows(batch: Any) -> int:
    return jax.tree.leaves(batch)[0].shape[0]
