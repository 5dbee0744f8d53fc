"""Decoder of the Qwen3 kind, with the switches that make it Qwen2, Qwen2.5 or Llama.

RMSNorm, rotary positions, grouped query attention, SwiGLU; q/k norm, biases and a tied head by
configuration. Layers are stacked on a leading axis and scanned, so compile time does not grow with
depth. Everything is a pure function of parameters; the KV cache goes in and comes out as a value.

Einsum legend: B batch, T query length, S key length, N heads, K kv heads, H head dim, D model,
F mlp, V vocab, L layers.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from empathy_jax import sharding
from empathy_jax.models import lora as lora_layers
from empathy_jax.models.attention import SegmentMask, attention, causal_mask
from empathy_jax.models.layers import INIT_SCALE, Linear, check_policies, remat
from empathy_jax.models.parameters import ParamSpec, Row, resolve
from empathy_jax.models.rope import RopeScaling, apply_rope, rope_angles
from empathy_jax.models.shared_prompt import SharedPrompt, shared_prompt_attention
from empathy_jax.types import Array, Bool, Float, Float32, Int, Params


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder; hashable, so it may be a static argument of `jax.jit`.

    Attributes:
        vocab_size, width, mlp_width, num_layers, num_heads, num_kv_heads, head_dim: V, D, F, L, N,
            K, H.
        rope_theta, rope_scaling: rotary positions.
        rms_norm_eps: epsilon of all norms.
        qkv_bias, out_bias, mlp_bias: which linear layers have biases.
        qk_norm: whether queries and keys are normalised per head.
        tie_embeddings: whether the embedding is the output head as well.
        max_positions: longest context that the checkpoint claims; written to config.json.
        param_dtype: dtype of fresh parameters.
        compute_dtype: dtype of activations; norms, softmax and logits are float32.
        remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
        lora_rank, lora_alpha: adapters; rank 0 is without.
        name_prefix: what the checkpoint puts before tensor names; "" in bare models.
        stores_tied_head: the checkpoint stores a tied head a second time (Qwen3-0.6B does).
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True
    tie_embeddings: bool = True
    max_positions: int = 32768
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    name_prefix: str = "model."
    stores_tied_head: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "mlp_width", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 1 or more")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, rotary positions need it even")
        check_policies(self)

    @property
    def untied(self) -> bool:
        """Whether the output head is a parameter of its own."""
        return not self.tie_embeddings


_HF_LAYER = "layers.{layer}"


def _linear(
    path: str,
    hf_name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    bias_when: str,
) -> tuple[Row, Row]:
    """A kernel and its optional bias, both stacked over the layers."""
    path, hf_name = f"layers/{path}", f"{_HF_LAYER}.{hf_name}"
    axes = ("layers", *inputs, *outputs)
    bias = "flatten" if len(outputs) > 1 else "copy"
    return (
        Row(f"{path}/kernel", f"{hf_name}.weight", "linear", axes, num_inputs=len(inputs)),
        Row(f"{path}/bias", f"{hf_name}.bias", bias, ("layers", *outputs), when=bias_when),
    )


def _norm(path: str, hf_name: str, axis: str, when: str | None = None) -> Row:
    axes = ("layers", axis)
    return Row(f"layers/{path}/scale", f"{_HF_LAYER}.{hf_name}.weight", "copy", axes, when=when)


_WIDTH, _HIDDEN = ("embed",), ("mlp",)
_HEADS, _KV_HEADS = ("heads", "head_dim"), ("kv_heads", "head_dim")

PARAM_TABLE = (
    Row("embed/embedding", "embed_tokens.weight", "copy", ("vocab", "embed")),
    _norm("attention_norm", "input_layernorm", "embed"),
    *_linear("attention/q", "self_attn.q_proj", _WIDTH, _HEADS, "qkv_bias"),
    *_linear("attention/k", "self_attn.k_proj", _WIDTH, _KV_HEADS, "qkv_bias"),
    *_linear("attention/v", "self_attn.v_proj", _WIDTH, _KV_HEADS, "qkv_bias"),
    _norm("attention/q_norm", "self_attn.q_norm", "head_dim", when="qk_norm"),
    _norm("attention/k_norm", "self_attn.k_norm", "head_dim", when="qk_norm"),
    *_linear("attention/out", "self_attn.o_proj", _HEADS, _WIDTH, "out_bias"),
    _norm("mlp_norm", "post_attention_layernorm", "embed"),
    *_linear("mlp/gate", "mlp.gate_proj", _WIDTH, _HIDDEN, "mlp_bias"),
    *_linear("mlp/up", "mlp.up_proj", _WIDTH, _HIDDEN, "mlp_bias"),
    *_linear("mlp/down", "mlp.down_proj", _HIDDEN, _WIDTH, "mlp_bias"),
    Row("final_norm/scale", "norm.weight", "copy", ("embed",)),
    Row(
        "head/kernel",
        "lm_head.weight",
        "copy",
        ("vocab", "embed"),
        when="untied",
        outside_prefix=True,
    ),
)


def param_table(config: DecoderConfig) -> tuple[ParamSpec, ...]:
    """The parameters of this configuration: path, shape, logical axes and checkpoint name."""
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.width,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "mlp": config.mlp_width,
        "layers": config.num_layers,
    }
    return resolve(PARAM_TABLE, config, sizes, config.name_prefix)


Mask = SegmentMask | SharedPrompt | Array


class KVCache(NamedTuple):
    """Keys (rotated) and values of all layers, [L, B, S, K, H] each."""

    k: Array
    v: Array


def init_kv_cache(
    config: DecoderConfig, batch_size: int, max_length: int, dtype: str | jnp.dtype
) -> KVCache:
    """An empty (zero) cache for `max_length` positions."""
    heads = (config.num_kv_heads, config.head_dim)
    shape = (config.num_layers, batch_size, max_length, *heads)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class RmsNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale, in float32, returned in the compute dtype."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        param_dtype = jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), param_dtype)
        return _rms_norm(x, scale, self.config)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _rms_norm(x: Array, scale: Array, config: DecoderConfig) -> Array:
    """The backward pass holds x alone: the rest is made again in less time than it is read back."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps)
    return (x * scale.astype(jnp.float32)).astype(config.compute_dtype)


class Attention(nn.Module):
    """Grouped query attention with rotary positions, over its own keys or over a cache."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        angles: tuple[Array, Array],
        mask: Mask,
        kv_cache: KVCache | None,
        cache_index: Array | None,
        layer: Array,
    ) -> tuple[Array, KVCache | None]:
        config = self.config
        width, head_dim = config.width, config.head_dim
        q_shape = (width, config.num_heads, head_dim)
        kv_shape = (width, config.num_kv_heads, head_dim)
        q = Linear(config, "D", "NH", q_shape, config.qkv_bias, name="q")(x)
        k = Linear(config, "D", "KH", kv_shape, config.qkv_bias, name="k")(x)
        v = Linear(config, "D", "KH", kv_shape, config.qkv_bias, name="v")(x)
        # Norms and rotations work within a head, so that they run where attention does.
        q, k, v = (sharding.constrain(x, "batch", "length", "heads", None) for x in (q, k, v))
        if config.qk_norm:
            q = RmsNorm(config, name="q_norm")(q)
            k = RmsNorm(config, name="k_norm")(k)
        q, k = apply_rope(q, *angles), apply_rope(k, *angles)
        if kv_cache is not None:
            kv_cache, k, v = _through_cache(kv_cache, k, v, cache_index, layer)
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        if isinstance(mask, SharedPrompt):
            mixed = shared_prompt_attention(q, k, v, mask)
        else:
            mixed = attention(q, k, v, mask)
        out_shape = (config.num_heads, head_dim, width)
        return Linear(config, "NH", "D", out_shape, config.out_bias, name="out")(mixed), kv_cache


def _through_cache(
    kv_cache: KVCache, k: Array, v: Array, cache_index: Array, layer: Array
) -> tuple[KVCache, Array, Array]:
    """Write new keys and values of one layer at `cache_index`; return what the layer now holds.

    The whole stacked cache is carried through the layers and written in place: handing each layer
    its slice and collecting the slices again would copy the cache at every decoded token.
    """

    def write(cache: Array, new: Array) -> tuple[Array, Array]:
        start = (layer, 0, cache_index, 0, 0)
        cache = jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), start)
        return cache, jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)

    cached_k, k = write(kv_cache.k, k)
    cached_v, v = write(kv_cache.v, v)
    return KVCache(cached_k, cached_v), k, v


class Mlp(nn.Module):
    """SwiGLU: W_down(silu(W_gate·x) ⊙ W_up·x)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        wide, narrow = (config.width, config.mlp_width), (config.mlp_width, config.width)
        gate = Linear(config, "D", "F", wide, config.mlp_bias, name="gate")(x)
        up = Linear(config, "D", "F", wide, config.mlp_bias, name="up")(x)
        gate, up = (sharding.constrain(x, "batch", "length", "mlp") for x in (gate, up))
        down = Linear(config, "F", "D", narrow, config.mlp_bias, name="down")
        return down(_swish_gate(gate, up))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _swish_gate(gate: Array, up: Array) -> Array:
    """silu(gate) ⊙ up; the backward pass holds these two alone."""
    return jax.nn.silu(gate) * up


class Layer(nn.Module):
    """One pre-norm block; the residual stream and the cache are what the scan carries."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, KVCache | None],
        angles: tuple[Array, Array],
        mask: Mask,
        cache_index: Array | None,
        layer: Array,
    ) -> tuple[tuple[Array, KVCache | None], None]:
        x, kv_cache = carry
        x = sharding.constrain(x, "batch", "residual", None)
        normed = RmsNorm(self.config, name="attention_norm")(x)
        mixed, kv_cache = Attention(self.config, name="attention")(
            normed, angles, mask, kv_cache, cache_index, layer
        )
        x = sharding.constrain(x + mixed, "batch", "residual", None)
        x = x + Mlp(self.config, name="mlp")(RmsNorm(self.config, name="mlp_norm")(x))
        return (x, kv_cache), None


class Embed(nn.Module):
    """Rows of the embedding table, in the compute dtype."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        config = self.config
        shape, dtype = (config.vocab_size, config.width), jnp.dtype(config.param_dtype)
        table = self.param("embedding", nn.initializers.normal(INIT_SCALE), shape, dtype)
        return jnp.take(table, tokens, axis=0).astype(config.compute_dtype)


class Head(nn.Module):
    """Holds the untied output head; `logits` reads it."""

    config: DecoderConfig

    @nn.compact
    def __call__(self) -> Array:
        config = self.config
        shape, dtype = (config.vocab_size, config.width), jnp.dtype(config.param_dtype)
        return self.param("kernel", nn.initializers.normal(INIT_SCALE), shape, dtype)


class Decoder(nn.Module):
    """Tokens to the hidden states after the final norm."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Mask,
        kv_cache: KVCache | None,
        cache_index: Array | None,
    ) -> tuple[Array, KVCache | None]:
        config = self.config
        x = Embed(config, name="embed")(tokens)
        angles = rope_angles(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        layers = nn.scan(
            remat(Layer, config.remat) if kv_cache is None else Layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=config.num_layers,
        )
        (x, kv_cache), _ = layers(config, name="layers")(
            (x, kv_cache), angles, mask, cache_index, jnp.arange(config.num_layers)
        )
        if not config.tie_embeddings:
            Head(config, name="head")()
        return RmsNorm(config, name="final_norm")(x), kv_cache


@functools.partial(jax.jit, static_argnames="config")
def init_params(key: Array, config: DecoderConfig) -> dict:
    """Fresh parameters: kernels and embeddings normal with σ = 0.02, norms one, biases zero.

    Args:
        key: typed PRNG key.
        config: sizes and `param_dtype`.

    Returns:
        Nested dict with the paths and shapes of `param_table(config)`.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(key, tokens, tokens, causal_mask(tokens), None, None)["params"]


def init_lora(key: Array, config: DecoderConfig) -> dict:
    """Fresh adapters for all linear layers; see `models.lora.init_adapters`."""
    return lora_layers.init_adapters(key, config, param_table(config))


def hidden_states(
    params: Params,
    config: DecoderConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attention_mask: SegmentMask | SharedPrompt | Bool[Array, "B T S"],
    *,
    lora: Params | None = None,
    kv_cache: KVCache | None = None,
    cache_index: int | Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Hidden states after the final norm, and the cache with this call's keys and values.

    Args:
        params: parameter tree.
        config: sizes and switches.
        tokens: token ids [B, T].
        positions: rotary positions [B, T], from 0 in each packed sequence.
        attention_mask: of packed sequences, `attention.causal_mask`; of completions behind a shared
            prompt, a `SharedPrompt`; else true where a query may see a key [B, T, S]. With a cache S
            is its length.
        lora: adapter tree, used when `config.lora_rank` is positive.
        kv_cache: cache to read and write; keys and values of `tokens` go to
            [cache_index : cache_index + T] on its S axis.
        cache_index: first S position to write, the same for all rows; needed with a cache.

    Returns:
        Hidden states [B, T, D] in the compute dtype; the new cache, or None without one.

    Raises:
        ValueError: for a cache without `cache_index` or the reverse, and for adapters where
            `lora_rank` is 0.
    """
    if (kv_cache is None) != (cache_index is None):
        raise ValueError("kv_cache and cache_index go together: pass both or neither")
    if lora is not None and not config.lora_rank:
        raise ValueError("adapters were passed but lora_rank is 0; set model.lora_rank to theirs")
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    index = None if cache_index is None else jnp.asarray(cache_index, jnp.int32)
    return Decoder(config).apply(variables, tokens, positions, attention_mask, kv_cache, index)


def output_embedding(params: Params, config: DecoderConfig) -> Float[Array, "V D"]:
    """The matrix whose rows score the vocabulary: the embedding when tied, the head otherwise."""
    return params["embed"]["embedding"] if config.tie_embeddings else params["head"]["kernel"]


def logits(
    params: Params,
    config: DecoderConfig,
    hidden: Float[Array, "*batch D"],
    token_ids: Int[Array, "some"] | None = None,
) -> Float32[Array, "*batch scored"]:
    """Scores of the vocabulary, or of `token_ids` alone, in float32, from compute-dtype operands."""
    table = output_embedding(params, config)
    if token_ids is not None:
        table = jnp.take(table, token_ids, axis=0)
    table = table.astype(config.compute_dtype)
    hidden = hidden.astype(config.compute_dtype)
    return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)
