"""Log-probabilities and entropies from hidden states, a chunk of positions at a time.

The logits of a chunk are made, reduced and dropped; the backward pass, written by hand, makes them
again. Neither pass holds more than a chunk of them, and chunks in which nothing counts are not computed.

With z = h·Wᵀ/τ, p = softmax(z) and g the gradient of the loss to log p(y), to H = -Σ p log p and to z:

    g_z = g_y (1_y - p) - g_H p (log p + H),    g_h = g_z W/τ,    g_W = g_zᵀ h/τ

On a mesh the vocabulary is cut over devices, as the table is, and stays so: what devices exchange is the
maximum, the sums and the picked logit of each position. Where the same mesh axis cuts positions and
vocabulary (fsdp), the hidden states of a chunk are gathered over it, which are smaller than the table.

B rows, T places, D width, V vocabulary, N positions of a device, M positions of its chunk, C those of all
devices that share a chunk, U entries of a device's part of the vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from empathy_jax.models.vocabulary_cut import Cut, find_cut
from empathy_jax.types import Array, Bool, Float, Int

Outputs = tuple[Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def chunked_log_probs(
    table: Float[Array, "V D"],
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each target and entropy of each position, in float32.

    Args:
        table: the matrix that scores the vocabulary; it is read in the dtype of `hidden`, and its
            gradient is summed in float32.
        hidden: states after the final norm, in the compute dtype.
        targets: the token that each position predicts.
        loss_mask: the positions that are wanted; the others get 0.
        chunk_size: positions scored at a time.
        temperature: τ.
        entropy_gradient: whether the entropy is differentiated; otherwise g_H is taken to be 0.
    """
    return _forward(table, hidden, targets, loss_mask, chunk_size, temperature, entropy_gradient)[0]


def _forward(
    table: Array,
    hidden: Array,
    targets: Array,
    loss_mask: Array,
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Outputs, tuple[Array, ...]]:
    cut = find_cut(table, hidden)
    run = cut.per_device(
        functools.partial(_reduce_chunks, cut, chunk_size, temperature),
        (cut.table, cut.hidden, cut.positions, cut.positions),
        (cut.positions,) * 3,
    )
    log_probs, entropy, normaliser = run(table.astype(hidden.dtype), hidden, targets, loss_mask)
    return (log_probs, entropy), (table, hidden, targets, loss_mask, normaliser, entropy)


def _backward(
    chunk_size: int,
    temperature: float,
    entropy_gradient: bool,
    residuals: tuple[Array, ...],
    gradients: Outputs,
) -> tuple:
    table, hidden, targets, loss_mask, normaliser, entropy = residuals
    to_log_probs, to_entropy = gradients
    cut = find_cut(table, hidden)
    run = cut.per_device(
        functools.partial(_gradient_chunks, cut, chunk_size, temperature),
        (cut.table, cut.hidden, *(cut.positions,) * 5, cut.positions if entropy_gradient else None),
        (cut.table, cut.hidden),
    )
    to_table, to_hidden = run(
        table.astype(hidden.dtype),
        hidden,
        targets,
        loss_mask,
        normaliser,
        entropy,
        to_log_probs,
        to_entropy if entropy_gradient else None,
    )
    return to_table.astype(table.dtype), to_hidden, None, None


chunked_log_probs.defvjp(_forward, _backward)


# --- on one device ---


def _reduce_chunks(
    cut: Cut,
    chunk_size: int,
    temperature: float,
    table: Array,
    hidden: Array,
    targets: Array,
    loss_mask: Array,
) -> tuple[Array, Array, Array]:
    """Log-probabilities, entropies and normalisers [rows, places] of a device's positions."""
    order = _order(loss_mask, cut.own_positions(chunk_size))
    hidden, targets = order.sort(hidden), order.sort(targets)

    def add_chunk(index: Array, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        z = _logits(table, cut.of_all(order.take(hidden, index)), temperature)
        y = cut.of_all(order.take(targets, index)) - cut.first_entry(table)
        highest = cut.highest(jnp.max(z, axis=-1))
        weights = jnp.exp(z - highest[:, None])
        is_here = (y >= 0) & (y < z.shape[-1])
        picked = jnp.take_along_axis(z, jnp.where(is_here, y, 0)[:, None], axis=-1)[:, 0]
        sums = (
            jnp.sum(weights, axis=-1),
            jnp.sum(weights * z, axis=-1),
            jnp.where(is_here, picked, 0.0),
        )
        total, weighted, picked = cut.sum_of_vocabulary(jnp.stack(sums))
        normaliser = highest + jnp.log(total)
        made = (picked - normaliser, normaliser - weighted / total, normaliser)
        return tuple(
            order.put(output, cut.own(new), index)
            for output, new in zip(outputs, made, strict=True)
        )

    empty = jnp.zeros(targets.shape, jnp.float32)
    outputs = jax.lax.fori_loop(0, cut.most(order.live_chunks), add_chunk, (empty,) * 3)
    return tuple(order.restore(output) for output in outputs)


def _gradient_chunks(
    cut: Cut,
    chunk_size: int,
    temperature: float,
    table: Array,
    hidden: Array,
    targets: Array,
    loss_mask: Array,
    normaliser: Array,
    entropy: Array,
    to_log_probs: Array,
    to_entropy: Array | None,
) -> tuple[Array, Array]:
    """Gradients to a device's part of the table, in float32, and to its hidden states."""
    order = _order(loss_mask, cut.own_positions(chunk_size))
    hidden, targets = order.sort(hidden), order.sort(targets)
    given = [normaliser, entropy, to_log_probs, *([] if to_entropy is None else [to_entropy])]
    given = jnp.stack([order.sort(x) for x in given], axis=-1)

    def add_chunk(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        to_table, to_hidden = sums
        states = cut.of_all(order.take(hidden, index))
        z = _logits(table, states, temperature)
        y = cut.of_all(order.take(targets, index)) - cut.first_entry(table)
        normaliser, entropy, to_p, *to_h = jnp.split(
            cut.of_all(order.take(given, index)), given.shape[-1], axis=-1
        )
        log_p = z - normaliser
        to_z = to_p * (y[:, None] == jnp.arange(z.shape[-1]))
        for gradient in to_h:
            to_p = to_p + gradient * (log_p + entropy)
        to_z -= jnp.exp(log_p) * to_p
        to_z = (to_z / temperature).astype(hidden.dtype)
        to_table += jnp.einsum("CU,CD->UD", to_z, states, preferred_element_type=jnp.float32)
        new = cut.own_sum_of_vocabulary(jnp.einsum("CU,UD->CD", to_z, table))
        return to_table, order.put(to_hidden, new, index)

    zeros = jnp.zeros(table.shape, jnp.float32), jnp.zeros_like(hidden)
    live_chunks = cut.most(order.live_chunks)
    to_table, to_hidden = jax.lax.fori_loop(0, live_chunks, add_chunk, zeros)
    return cut.sum_of_positions(to_table), order.restore(to_hidden)


def _logits(table: Array, states: Array, temperature: float) -> Array:
    """Scaled logits [C, U] of states [C, D] against a device's part of the table."""
    z = jnp.einsum("CD,UD->CU", states, table, preferred_element_type=jnp.float32)
    return z / temperature


class _Order(NamedTuple):
    """A device's positions in chunks of `size`, those that count first.

    Attributes:
        loss_mask: which count [rows, places].
        places: of each position in the order, in whole chunks.
        is_live: whether it counts.
        inverse: where in the order each position is.
        size: M.
    """

    loss_mask: Array
    places: Array
    is_live: Array
    inverse: Array
    size: int

    @property
    def live_chunks(self) -> Array:
        """How many chunks hold a position that counts."""
        return -(-jnp.sum(self.is_live, dtype=jnp.int32) // self.size)

    def sort(self, x: Array) -> Array:
        """[rows, places, ...] as [whole chunks, ...], 0 where nothing counts."""
        return _gather(x.reshape(-1, *x.shape[2:]), self.places, self.is_live)

    def restore(self, x: Array) -> Array:
        """The inverse of `sort`."""
        restored = _gather(x, self.inverse, self.loss_mask.ravel())
        return restored.reshape(*self.loss_mask.shape, *x.shape[1:])

    def take(self, x: Array, index: Array) -> Array:
        """A chunk of what `sort` made."""
        return jax.lax.dynamic_slice_in_dim(x, index * self.size, self.size)

    def put(self, x: Array, new: Array, index: Array) -> Array:
        """`x` with a chunk written into it."""
        return jax.lax.dynamic_update_slice_in_dim(x, new, index * self.size, axis=0)


def _order(loss_mask: Array, size: int) -> _Order:
    size = min(size, loss_mask.size)
    counts = jnp.pad(loss_mask.ravel(), (0, -loss_mask.size % size))
    places = jnp.argsort(~counts, stable=True)
    inverse = jnp.argsort(places)[: loss_mask.size]
    return _Order(loss_mask, places, counts[places], inverse, size)


def _gather(x: Array, index: Array, is_filled: Array) -> Array:
    """x[index], 0 where nothing is filled in; an index beyond the end belongs to nothing."""
    taken = jnp.take(x, index, axis=0, mode="clip")
    return jnp.where(is_filled.reshape(-1, *(1,) * (x.ndim - 1)), taken, jnp.zeros((), x.dtype))
