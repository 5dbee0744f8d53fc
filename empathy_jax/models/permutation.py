"""Gathers that take no entry twice, with a gradient that is a gather as well."""

import jax
import jax.numpy as jnp

from empathy_jax.types import Array, Bool, Int, Shaped


@jax.custom_vjp
def permute(
    x: Shaped[Array, "R S *rest"],
    index: Int[Array, "R I"],
    is_filled: Bool[Array, "R I"],
    inverse: Int[Array, "R S"],
    is_used: Bool[Array, "R S"],
) -> Shaped[Array, "R I *rest"]:
    """x[r, index[r, i]], 0 where nothing is filled in.

    The gradient is taken by the inverse: the scatter that it would be otherwise goes entry by entry on
    CPUs.

    Args:
        x: values.
        index: where each result comes from; none twice.
        is_filled: false where the result is 0.
        inverse: where each value goes.
        is_used: false where a value goes nowhere.
    """
    return _gather(x, index, is_filled)


def _gather(x: Array, index: Array, is_filled: Array) -> Array:
    rest = (1,) * (x.ndim - 2)
    index, is_filled = (leaf.reshape(*leaf.shape, *rest) for leaf in (index, is_filled))
    # A negative index stands for "nowhere" and would wrap around.
    taken = jnp.take_along_axis(x, jnp.maximum(index, 0), axis=1)
    return jnp.where(is_filled, taken, jnp.zeros((), x.dtype))


def _forward(x: Array, *places: Array) -> tuple[Array, tuple[Array, ...]]:
    return permute(x, *places), places


def _backward(places: tuple[Array, ...], gradient: Array) -> tuple:
    _, _, inverse, is_used = places
    return _gather(gradient, inverse, is_used), None, None, None, None


permute.defvjp(_forward, _backward)
