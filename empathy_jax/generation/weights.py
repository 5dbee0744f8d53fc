"""The parameters in the form that decoding reads: layers apart, products that share an input in one.

On a CPU core a product of 64 rows with a 256 x 256 kernel runs at a third of its rate; queries, keys
and values from one kernel, and gate and up from one, are a quarter of the calls at more of it.

On a mesh a kernel stays in parts over the tensor axis and is whole otherwise: its parts over the fsdp axis
are brought together once, not at every token.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax import sharding
from empathy_jax.models import decoder
from empathy_jax.types import Array, Params

# Inputs and outputs of a layer's kernels, by the name of what stays in parts.
AXES = {
    "q": (None, "heads"),
    "k": (None, "heads"),
    "v": (None, "heads"),
    "out": ("heads", None),
    "gate": (None, "mlp"),
    "up": (None, "mlp"),
    "down": ("mlp", None),
}


class Dense(NamedTuple):
    """y = xW + b, plus (xA)B with the adapter's scale in B; b, A and B may be None."""

    kernel: Array
    bias: Array | None
    a: Array | None
    b: Array | None


class LayerWeights(NamedTuple):
    """One layer. `qkv` and `gate_up` are one Dense each, or one for each of their parts."""

    attention_norm: Params
    qkv: tuple[Dense, ...]
    q_norm: Params | None
    k_norm: Params | None
    out: Dense
    mlp_norm: Params
    gate_up: tuple[Dense, ...]
    down: Dense


@functools.partial(jax.jit, static_argnames=("config", "fuse"))
def prepare(
    layers: Params, adapters: Params | None, config: decoder.DecoderConfig, fuse: bool
) -> list[LayerWeights]:
    """The weights of each layer in the compute dtype.

    Args:
      layers: the stacked tree, `params["layers"]`.
      adapters: the stacked adapters, `lora["layers"]`.
      config: the decoder's configuration.
      fuse: whether kernels with the same input become one; where they are laid out over devices they
        should stay as they are.
    """
    return [_layer(layers, adapters, config, fuse, index) for index in range(config.num_layers)]


def gather_ends(params: Params, config: decoder.DecoderConfig) -> Params:
    """Embedding, head and final norm, on a mesh in the compute dtype and in parts over vocabulary alone."""
    ends = {name: tree for name, tree in params.items() if name != "layers"}
    if not sharding.is_distributed():
        return ends

    def gather(leaf: Array) -> Array:
        if leaf.ndim == 1:
            return leaf
        return sharding.constrain(leaf.astype(config.compute_dtype), "decoded_vocab", None)

    return jax.tree.map(gather, ends)


def is_whole(params: Params) -> bool:
    """Whether each device that holds parameters holds all of them."""
    return all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))


def _layer(
    layers: Params, adapters: Params | None, config: decoder.DecoderConfig, fuse: bool, index: int
) -> LayerWeights:
    params = jax.tree.map(lambda leaf: leaf[index], layers)
    lora = jax.tree.map(lambda leaf: leaf[index], adapters or {})

    def dense(block: str, name: str, inputs: int = 1) -> Dense:
        made = _dense(params[block][name], lora.get(block, {}).get(name), config, inputs)
        return made._replace(kernel=sharding.constrain(made.kernel, *AXES[name]))

    def together(block: str, names: tuple[str, ...]) -> tuple[Dense, ...]:
        parts = tuple(dense(block, name) for name in names)
        return (_fused(parts),) if fuse else parts

    attention = params["attention"]
    return LayerWeights(
        params["attention_norm"],
        together("attention", ("q", "k", "v")),
        attention.get("q_norm"),
        attention.get("k_norm"),
        dense("attention", "out", inputs=2),
        params["mlp_norm"],
        together("mlp", ("gate", "up")),
        dense("mlp", "down"),
    )


def _dense(
    params: Params, lora: Params | None, config: decoder.DecoderConfig, inputs: int
) -> Dense:
    """One linear layer with its inputs, and its outputs, in one axis each."""
    dtype = jnp.dtype(config.compute_dtype)
    kernel = params["kernel"]
    fan_in = 1
    for size in kernel.shape[:inputs]:
        fan_in *= size
    bias = params["bias"].reshape(-1).astype(dtype) if "bias" in params else None
    a = b = None
    if lora is not None and config.lora_rank:
        a = lora["a"].reshape(fan_in, -1).astype(dtype)
        scale = config.lora_alpha / config.lora_rank
        b = scale * lora["b"].reshape(a.shape[1], -1).astype(dtype)
    return Dense(kernel.reshape(fan_in, -1).astype(dtype), bias, a, b)


def _fused(parts: tuple[Dense, ...]) -> Dense:
    """One Dense whose outputs are those of the parts, one after the other."""
    widths = [part.kernel.shape[1] for part in parts]
    dtype = parts[0].kernel.dtype
    kernel = jnp.concatenate([part.kernel for part in parts], axis=1)
    bias = None
    if any(part.bias is not None for part in parts):
        each = [
            jnp.zeros(n, dtype) if part.bias is None else part.bias
            for part, n in zip(parts, widths, strict=True)
        ]
        bias = jnp.concatenate(each)
    adapted = [(index, part) for index, part in enumerate(parts) if part.a is not None]
    if not adapted:
        return Dense(kernel, bias, None, None)
    # An adapter writes to the columns of its own part alone.
    a = jnp.concatenate([part.a for _, part in adapted], axis=1)
    rows = []
    for index, part in adapted:
        before, after = sum(widths[:index]), sum(widths[index + 1 :])
        rows.append(jnp.pad(part.b, ((0, 0), (before, after))))
    return Dense(kernel, bias, a, jnp.concatenate(rows))


def apply(parts: tuple[Dense, ...], x: Array, widths: Sequence[int]) -> list[Array]:
    """x [..., inputs] through each part: outputs of these widths, from one kernel or from one each."""
    outputs = []
    for part in parts:
        y = x @ part.kernel
        if part.a is not None:
            y = y + (x @ part.a) @ part.b
        outputs.append(y if part.bias is None else y + part.bias)
    if len(outputs) < len(widths):
        outputs = jnp.split(outputs[0], np.cumsum(widths)[:-1], axis=-1)
    return outputs
