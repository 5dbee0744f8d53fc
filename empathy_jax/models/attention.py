"""Attention over grouped heads: what to compute it with, on one device and on a mesh.

On a mesh it runs per device: rows over the data axes, heads over the tensor axis, queries over the
sequence axis with all keys gathered (`context_parallel`). On a device the platform decides:

| where | a row of many tokens | a short one |
|---|---|---|
| TPU | splash attention (`splash_attention`) | `jax.nn.dot_product_attention` |
| NVIDIA, half precision | cuDNN's flash attention, where its conditions hold | the same |
| CPU | blocks of queries and keys, row by row (`flash_attention`) | all scores (`plain_attention`) |
| else | blocks of queries and keys (`flash_attention`) | `jax.nn.dot_product_attention` |

Einsum legend: B batch, T query length, S key length, N heads, K kv heads, H head dim.
"""

import functools

import jax
import jax.numpy as jnp

from empathy_jax.models import context_parallel, flash_attention, plain_attention
from empathy_jax.models.context_parallel import Balanced
from empathy_jax.models.masks import SegmentMask, causal_mask, dense, segment_mask
from empathy_jax.types import Array, Bool, Float

__all__ = ["SegmentMask", "attention", "causal_mask", "segment_mask"]

SHORT = 128  # tokens of a row whose scores are held all at once
SPLASH_BLOCK = 128  # queries and keys of the smallest block of splash attention
CUDNN_MASK_LIMIT = 8192 * 8192  # places of a row's mask, which cuDNN takes written out


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: SegmentMask | Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q·kᵀ/√H)·v with the softmax in float32; each kv head serves N/K query heads.

    Args:
        q: queries [B, T, N, H].
        k: keys [B, S, K, H], where K divides N.
        v: values [B, S, K, H].
        mask: which keys a query may see, by segments, or written out (true where it may): then all
            scores are held. A query that sees none gets a finite value that means nothing.

    Returns:
        [B, T, N, H] in the dtype of `q`.
    """
    if q.shape[1] == 1:
        return plain_attention.single_query_attention(q, k, v, dense(mask))
    if not isinstance(mask, SegmentMask):
        return plain_attention.scored_attention(q, k, v, mask)
    kernels = {"cpu": _on_cpu, "default": _by_xla}
    if _suits_splash(q, k):
        kernels["tpu"] = _by_splash
    if _suits_cudnn(q, k):
        kernels["cuda"] = _by_cudnn
    branches = {
        platform: functools.partial(context_parallel.on_mesh, kernel)
        for platform, kernel in kernels.items()
    }
    return jax.lax.platform_dependent(q, k, v, mask, **branches)


def _on_cpu(q: Array, k: Array, v: Array, mask: SegmentMask, balanced: Balanced | None) -> Array:
    if balanced is None and q.shape[1] <= SHORT:
        return plain_attention.scored_attention(q, k, v, dense(mask))
    return flash_attention.flash_attention_by_row(q, k, v, mask, _places(q, k, balanced))


def _by_xla(q: Array, k: Array, v: Array, mask: SegmentMask, balanced: Balanced | None) -> Array:
    if balanced is None and q.shape[1] <= SHORT:
        return jax.nn.dot_product_attention(q, k, v, mask=dense(mask)[:, None])
    return flash_attention.flash_attention(q, k, v, mask, _places(q, k, balanced))


def _places(q: Array, k: Array, balanced: Balanced | None) -> Array:
    """Of the queries among the keys."""
    length = q.shape[1]
    return k.shape[1] - length + jnp.arange(length) if balanced is None else balanced.index(length)


def _suits_splash(q: Array, k: Array) -> bool:
    """Whether there is a block of queries and one of keys, and heads fill whole sublanes."""
    return q.shape[1] >= SPLASH_BLOCK and k.shape[1] >= SPLASH_BLOCK and q.shape[3] % 8 == 0


def _by_splash(q: Array, k: Array, v: Array, mask: SegmentMask, balanced: Balanced | None) -> Array:
    # Pallas takes a second to import, and short rows do without.
    from empathy_jax.models.splash_attention import splash_attention

    return splash_attention(q, k, v, mask, balanced)


def _suits_cudnn(q: Array, k: Array) -> bool:
    """Whether cuDNN's flash attention takes such arrays, by the conditions in JAX's binding to it.

    It asks for the library itself, so that its branch can be traced only where that is installed.
    """
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    length, keys, head_dim = q.shape[1], k.shape[1], q.shape[3]
    even = length % 2 == 0 and keys % 2 == 0 and head_dim % 8 == 0 and head_dim <= 128
    return half and even and length * keys <= CUDNN_MASK_LIMIT and jax.default_backend() == "gpu"


def _by_cudnn(q: Array, k: Array, v: Array, mask: SegmentMask, balanced: Balanced | None) -> Array:
    if balanced is not None:
        return _by_xla(q, k, v, mask, balanced)
    written = dense(mask)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=written, implementation="cudnn")
