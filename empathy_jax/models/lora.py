"""Low-rank adapters: the tree that stands beside the parameters, and its merge into them.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): y = xW + (α/r)·(xA)B, with A normal and B
zero at the start, so that a fresh adapter changes nothing. The adapters are a second variable
collection, `lora`, whose tree mirrors the parameters: where these have
"layers/attention/q/kernel", it has "layers/attention/q/a" and "layers/attention/q/b".
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax.models.layers import ModelConfig
from empathy_jax.models.parameters import ParamSpec
from empathy_jax.pytree import flatten_paths, unflatten_paths
from empathy_jax.types import Array, Params


def init_adapters(key: Array, config: ModelConfig, table: Iterable[ParamSpec]) -> dict:
    """Fresh adapters for the linear layers of a parameter table: A normal, σ = 1/√inputs; B zero.

    Args:
        key: typed PRNG key.
        config: its `lora_rank` must be positive.
        table: the architecture's parameter table.

    Returns:
        Nested dict with `a` [L, *inputs, r] and `b` [L, r, *outputs] per linear layer.

    Raises:
        ValueError: when `lora_rank` is 0.
    """
    rank = config.lora_rank
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}; set model.lora_rank to 1 or more to train adapters")
    flat = {}
    for index, spec in enumerate(adapted_specs(table)):
        num_layers = spec.shape[0]
        fan_in = math.prod(spec.input_shape)
        a_shape = (num_layers, *spec.input_shape, rank)
        a = jax.random.normal(jax.random.fold_in(key, index), a_shape, jnp.float32) * fan_in**-0.5
        folder = spec.path.removesuffix("kernel")
        flat[folder + "a"] = a.astype(config.param_dtype)
        flat[folder + "b"] = jnp.zeros((num_layers, rank, *spec.output_shape), config.param_dtype)
    return unflatten_paths(flat)


def check_rank(path: str, a: Array | np.ndarray, config: ModelConfig) -> None:
    """Refuse an adapter's A whose rank, its last axis, is not the configuration's."""
    if a.shape[-1] != config.lora_rank:
        raise ValueError(
            f"adapter {path} has rank {a.shape[-1]} and lora_rank is {config.lora_rank}; set "
            "model.lora_rank to the rank that the adapters were trained with"
        )


def adapted_specs(table: Iterable[ParamSpec]) -> tuple[ParamSpec, ...]:
    """The rows that take an adapter: the linear kernels inside the layers."""
    return tuple(spec for spec in table if spec.stacked and spec.transform == "linear")


def merge(params: Params, lora: Params, config: ModelConfig) -> dict:
    """Parameters with the adapters added in: W + (α/r)·AB, computed in float32, kept in W's dtype.

    Args:
        params: parameter tree.
        lora: adapter tree as `init_adapters` makes it; layers without an adapter stay as they are.
        config: the `lora_rank` and `lora_alpha` that the adapters were trained with.

    Raises:
        ValueError: when an adapter's rank is not `lora_rank` or its layer is not a parameter.
    """
    kernels, adapters = flatten_paths(params), flatten_paths(lora)
    scale = config.lora_alpha / max(config.lora_rank, 1)
    for path, a in adapters.items():
        if not path.endswith("/a"):
            continue
        b, target = adapters[path.removesuffix("a") + "b"], path.removesuffix("a") + "kernel"
        check_rank(path, a, config)
        if target not in kernels:
            raise ValueError(f"adapter {path} has no parameter {target} to be added to")
        contract = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))
        update = contract(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
        kernel = jnp.asarray(kernels[target])
        kernels[target] = (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
    return unflatten_paths(kernels)
