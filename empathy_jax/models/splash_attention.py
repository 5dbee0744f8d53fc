"""Attention on TPUs by JAX's splash attention kernel, with segment ids.

The kernel visits the blocks that its static mask leaves, here those not above the diagonal; segment ids
hide the rest within them. Scores live in a core's memory alone, in the backward pass as well. Rows are
padded to whole blocks: lengths that are multiples of BLOCKS[0] waste nothing and run fastest.

B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from empathy_jax.models.context_parallel import Balanced
from empathy_jax.models.masks import SegmentMask
from empathy_jax.types import Array, Float

BLOCKS = (512, 256, 128)  # queries and keys of a block; the first that divides the padded length
LANES = 128  # of a TPU's vector unit: what blocks are multiples of


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: SegmentMask,
    balanced: Balanced | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attention` of one device.

    Args:
        q, k, v, mask: see `attention`.
        balanced: how the queries of a row were dealt over devices, if they were.
        interpret: runs the kernel in Python, on any platform.
    """
    (length, heads, head_dim), keys = q.shape[1:], k.shape[1]
    order = (keys - length + np.arange(length))[None]
    if balanced is not None:
        order = balanced.order(length)
    kernel = _kernel(order, keys, heads, mask.is_causal, interpret)
    if balanced is not None:
        kernel = _of_device(kernel, balanced)
    q = jnp.einsum("BTNH->BNTH", q * jnp.asarray(head_dim**-0.5, q.dtype))
    k, v = jnp.einsum("BSKH->BKSH", k), jnp.einsum("BSKH->BKSH", v)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, _padding(x.shape[2])), (0, 0))) for x in (q, k, v))
    segments = splash.SegmentIds(
        *(jnp.pad(x, ((0, 0), (0, _padding(x.shape[1])))) for x in (mask.queries, mask.keys))
    )
    mixed = jax.vmap(kernel)(q, k, v, segments)[:, :, :length]
    return jnp.einsum("BNTH->BTNH", mixed)


def _padding(length: int) -> int:
    return -length % LANES


def _block(length: int) -> int:
    return next(size for size in BLOCKS if (length + _padding(length)) % size == 0)


def _kernel(order: np.ndarray, keys: int, heads: int, is_causal: bool, interpret: bool) -> Any:
    """The kernel for queries that stand at `order` [devices, T] among the keys, for all devices."""
    devices, length = order.shape
    shape = (devices * (length + _padding(length)), keys + _padding(keys))
    mask = splash.FullMask(shape)
    if is_causal:
        mask = splash.CausalMask(shape)
        # Where each query stands; what is padded stands at the first key.
        mask.q_sequence = np.pad(order, ((0, 0), (0, _padding(length)))).ravel().astype(np.int32)
    queries, keys = _block(length), _block(keys)
    sizes = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=devices,
        interpret=interpret,
    )


def _of_device(kernel: Any, balanced: Balanced) -> Any:
    """The kernel with this device's part of what it knows of the queries."""

    def cut(x: Array | None, axis: int) -> Array | None:
        if x is None:
            return None
        size = x.shape[axis] // balanced.parts
        return jax.lax.dynamic_slice_in_dim(x, balanced.device() * size, size, axis)

    def own(info: Any) -> Any:
        by_block = {name: cut(getattr(info, name), 1) for name in _BY_BLOCK}
        return info._replace(q_sequence=cut(info.q_sequence, 0), **by_block)

    infos, static = kernel.tree_flatten()
    return type(kernel).tree_unflatten(static, [own(info) for info in infos])


_BY_BLOCK = ("data_next", "mask_next", "block_mask")  # [heads, blocks of queries, blocks of keys]
