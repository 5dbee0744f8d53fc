"""What decoder and encoder share: linear layers that may carry an adapter, and remat policies."""

from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from empathy_jax import sharding
from empathy_jax.types import Array

DTYPES = ("float32", "bfloat16", "float16")
REMAT_POLICIES = ("none", "dots", "full")
INIT_SCALE = 0.02
"""Standard deviation of fresh kernels and embeddings, as in the Hugging Face classes."""


@runtime_checkable
class ModelConfig(Protocol):
    """What a model configuration says about adapters and dtypes."""

    @property
    def lora_rank(self) -> int: ...

    @property
    def lora_alpha(self) -> float: ...

    @property
    def remat(self) -> str: ...

    @property
    def param_dtype(self) -> str: ...

    @property
    def compute_dtype(self) -> str: ...


class Linear(nn.Module):
    """y = xW + b, plus (α/r)·(xA)B where the `lora` collection holds an adapter for this layer.

    Attributes:
        config: dtypes, adapter rank and alpha.
        inputs: einsum letters of the contracted axes, "D" or "NH".
        outputs: einsum letters of the produced axes.
        shape: kernel shape, the axes of `inputs` then those of `outputs`.
        use_bias: whether b is there.
    """

    config: ModelConfig
    inputs: str
    outputs: str
    shape: tuple[int, ...]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, inputs, outputs = self.config, self.inputs, self.outputs
        dtype = jnp.dtype(config.compute_dtype)
        param_dtype = jnp.dtype(config.param_dtype)
        kernel = self.param("kernel", nn.initializers.normal(INIT_SCALE), self.shape, param_dtype)
        leading = x.shape[: -len(inputs)]
        if len(leading) == 2 and not sharding.is_length_cut(*leading):
            # For the kernel's gradient with two leading axes, XLA's CPU compiler writes the outputs'
            # gradient a second time, transposed, and takes a product that runs at half the rate.
            x = x.reshape(-1, *x.shape[2:])
        y = jnp.einsum(f"...{inputs},{inputs}{outputs}->...{outputs}", x, kernel.astype(dtype))
        if config.lora_rank and self.has_variable("lora", "a"):
            a = self.get_variable("lora", "a").astype(dtype)
            b = self.get_variable("lora", "b").astype(dtype)
            low_rank = jnp.einsum(f"...{inputs},{inputs}r->...r", x, a)
            update = jnp.einsum(f"...r,r{outputs}->...{outputs}", low_rank, b)
            y = y + (config.lora_alpha / config.lora_rank) * update
        y = y.reshape(*leading, *self.shape[len(inputs) :])
        if self.use_bias:
            shape = self.shape[len(inputs) :]
            y = y + self.param("bias", nn.initializers.zeros, shape, param_dtype).astype(dtype)
        return y


def check_policies(config: ModelConfig) -> None:
    """Refuse dtypes, remat policies and adapter ranks that no model here knows."""
    for name in ("param_dtype", "compute_dtype"):
        if getattr(config, name) not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, allowed are float32, bfloat16 and float16"
            )
    if config.remat not in REMAT_POLICIES:
        raise ValueError(f"remat is {config.remat!r}, allowed are {', '.join(REMAT_POLICIES)}")
    if config.lora_rank < 0:
        raise ValueError(f"lora_rank is {config.lora_rank}, it must be 0 (no adapters) or more")


def remat(layer: type[nn.Module], policy: str) -> type[nn.Module]:
    """The layer class under a remat policy; see `DecoderConfig.remat`."""
    if policy == "none":
        return layer
    saved = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
    # Inside a scan nothing can be merged across the barrier, so the guard against it is not needed.
    return nn.remat(layer, policy=saved[policy], prevent_cse=False)
