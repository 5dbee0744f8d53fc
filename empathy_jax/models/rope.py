"""Rotary positions (RoPE) and the ways checkpoints stretch them over longer contexts.

A pair (x_i, x_{i+H/2}) of a head is turned by the angle position·f_i, where f_i = θ^(-2i/H).
RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from empathy_jax.types import Array, Float, Int

KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are stretched.

    Attributes:
        kind: "linear" (all frequencies divided by `factor`), "llama3" (only the low ones) or "yarn"
            (a ramp between the two, and scores sharpened by `attention_factor`;
            https://arxiv.org/abs/2309.00071).
        factor: longest context over original context.
        original_max_positions: context length before stretching (llama3, yarn).
        low_freq_factor, high_freq_factor: bounds of llama3's ramp, in turns over the original
            context.
        beta_fast, beta_slow: bounds of yarn's ramp, in turns over the original context.
        attention_factor: what yarn multiplies cosines and sines with.
        truncate: whether yarn's ramp starts and ends on whole dimensions.
    """

    kind: str
    factor: float
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"rope scaling {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.factor <= 0:
            raise ValueError(f"rope scaling factor is {self.factor}, it must be positive")
        if self.kind != "linear" and self.original_max_positions < 1:
            raise ValueError(
                f"rope scaling {self.kind!r} needs original_max_position_embeddings of 1 or more, "
                f"received {self.original_max_positions}"
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                "llama3 rope scaling needs high_freq_factor above low_freq_factor, received "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """The H/2 angles per position, in float32 arithmetic, as checkpoints were trained with.

    Args:
        head_dim: H, even.
        theta: base of the geometric series.
        scaling: how to stretch it, if at all.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(theta) ** exponents
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(frequencies, head_dim, theta, scaling)


def _llama3(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    # Turns made over the original context: many keep their frequency, few have it divided.
    turns = np.float32(scaling.original_max_positions) * frequencies / np.float32(2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - np.float32(scaling.low_freq_factor)) / np.float32(span), 0, 1)
    return (1 - keep) * frequencies / np.float32(scaling.factor) + keep * frequencies


def _yarn(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    def dimension(turns: float) -> float:
        """The (real-valued) dimension that makes so many turns over the original context."""
        wavelengths = scaling.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low)
    divide = np.clip(ramp, 0, 1).astype(np.float32)
    return divide * frequencies / np.float32(scaling.factor) + (1 - divide) * frequencies


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Yarn's factor on cosines and sines where a checkpoint states none: 0.1·ln(factor) + 1.

    Args:
        factor: longest context over original context.
        mscale, mscale_all_dim: when both are given, the ratio of the two scaled forms.
    """

    def scaled(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if mscale and mscale_all_dim:
        return scaled(mscale) / scaled(mscale_all_dim)
    return scaled(1.0)


def rope_angles(
    positions: Int[Array, "B T"], head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[Float[Array, "B T h"], Float[Array, "B T h"]]:
    """Cosines and sines in float32, h = H/2, times yarn's `attention_factor`."""
    frequencies = jnp.asarray(rope_frequencies(head_dim, theta, scaling))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    factor = scaling.attention_factor if scaling is not None else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T h"], sin: Float[Array, "B T h"]
) -> Float[Array, "B T N H"]:
    """Each pair (x_i, x_{i+H/2}) turned by its angle, in float32, returned in the dtype of `x`."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
