"""Reductions over the entries that a mask lets count.

All are computed in float32 and select with `jnp.where`, so that what stands outside the mask (pad
tokens, infinities, NaN) reaches neither the value nor the gradient.
"""

import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def masked_sum(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """Sum of the entries of `x` where `mask` (broadcast to the shape of `x`) is true."""
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis)


def masked_count(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """How many entries of `x` the broadcast `mask` lets count, as float32."""
    return jnp.sum(jnp.broadcast_to(mask, x.shape), axis=axis, dtype=jnp.float32)


def masked_mean(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """Mean of the entries of `x` where `mask` is true; 0 where nothing counts."""
    return masked_sum(x, mask, axis) / jnp.maximum(masked_count(x, mask, axis), 1.0)


def masked_var(
    x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None, ddof: int = 0
) -> Float[Array, "..."]:
    """Variance of the entries of `x` where `mask` is true: Σ (x - mean)² / (count - ddof).

    It is 0 where `count <= ddof`. The deviations are taken before squaring (two passes), since
    mean(x²) - mean(x)² loses all digits when the mean is large.
    """
    count = masked_count(x, mask, axis)
    mean = jnp.expand_dims(masked_mean(x, mask, axis), _all_axes(x, axis))
    squares = masked_sum(jnp.square(jnp.where(mask, x.astype(jnp.float32) - mean, 0.0)), mask, axis)
    return jnp.where(count > ddof, squares / jnp.maximum(count - ddof, 1.0), 0.0)


def _all_axes(x: Array, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(a % x.ndim for a in axes)
