"""BERT encoder: learned positions, post-norm layers, exact GELU.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Layers are stacked on a leading axis and
scanned.

Einsum legend: B batch, T length, N heads, H head dim, D model, F mlp, L layers.
"""

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from empathy_jax import sharding
from empathy_jax.models import lora as lora_layers
from empathy_jax.models.attention import SegmentMask, attention, segment_mask
from empathy_jax.models.layers import INIT_SCALE, Linear, check_policies, remat
from empathy_jax.models.parameters import ParamSpec, Row, resolve
from empathy_jax.types import Array, Float, Int, Params


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT encoder; hashable, so it may be a static argument of `jax.jit`.

    Attributes:
        vocab_size, width, mlp_width, num_layers, num_heads: V, D, F, L, N.
        max_positions: length of the position table, the longest text that fits.
        type_vocab_size: length of the token type table; a single text is type 0 throughout.
        layer_norm_eps: epsilon of all norms.
        pad_id: padding token, written to config.json.
        param_dtype: dtype of fresh parameters.
        compute_dtype: dtype of activations; norms and softmax are float32.
        remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
        lora_rank, lora_alpha: adapters; rank 0 is without.
        pooler: the checkpoint has BERT's pooler; it is kept for the export and not used.
        name_prefix: what the checkpoint puts before tensor names, "" or "bert.".
        stores_position_ids: the checkpoint stores the constant buffer of position numbers.
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_id: int = 0
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    pooler: bool = False
    name_prefix: str = ""
    stores_position_ids: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "mlp_width", "num_layers", "num_heads")
        for name in (*sizes, "max_positions", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 1 or more")
        if self.width % self.num_heads:
            raise ValueError(
                f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})"
            )
        check_policies(self)


_HF_LAYER = "encoder.layer.{layer}"
_HF_SELF = f"{_HF_LAYER}.attention.self"


def _projection(name: str, hf_name: str) -> tuple[Row, Row]:
    kernel_axes = ("layers", "embed", "heads", "head_dim")
    bias_axes = ("layers", "heads", "head_dim")
    path, hf_name = f"layers/attention/{name}", f"{_HF_SELF}.{hf_name}"
    return (
        Row(f"{path}/kernel", f"{hf_name}.weight", "linear", kernel_axes),
        Row(f"{path}/bias", f"{hf_name}.bias", "flatten", bias_axes),
    )


def _norm(path: str, hf_name: str, axes: tuple[str, ...]) -> tuple[Row, Row]:
    return (
        Row(f"{path}/scale", f"{hf_name}.LayerNorm.weight", "copy", axes),
        Row(f"{path}/bias", f"{hf_name}.LayerNorm.bias", "copy", axes),
    )


PARAM_TABLE = (
    Row("embed/tokens", "embeddings.word_embeddings.weight", "copy", ("vocab", "embed")),
    Row(
        "embed/positions",
        "embeddings.position_embeddings.weight",
        "copy",
        ("positions", "embed"),
    ),
    Row("embed/types", "embeddings.token_type_embeddings.weight", "copy", ("types", "embed")),
    *_norm("embed/norm", "embeddings", ("embed",)),
    *_projection("q", "query"),
    *_projection("k", "key"),
    *_projection("v", "value"),
    Row(
        "layers/attention/out/kernel",
        f"{_HF_LAYER}.attention.output.dense.weight",
        "linear",
        ("layers", "heads", "head_dim", "embed"),
        num_inputs=2,
    ),
    Row(
        "layers/attention/out/bias",
        f"{_HF_LAYER}.attention.output.dense.bias",
        "copy",
        ("layers", "embed"),
    ),
    *_norm("layers/attention_norm", f"{_HF_LAYER}.attention.output", ("layers", "embed")),
    Row(
        "layers/mlp/up/kernel",
        f"{_HF_LAYER}.intermediate.dense.weight",
        "linear",
        ("layers", "embed", "mlp"),
    ),
    Row("layers/mlp/up/bias", f"{_HF_LAYER}.intermediate.dense.bias", "copy", ("layers", "mlp")),
    Row(
        "layers/mlp/down/kernel",
        f"{_HF_LAYER}.output.dense.weight",
        "linear",
        ("layers", "mlp", "embed"),
    ),
    Row("layers/mlp/down/bias", f"{_HF_LAYER}.output.dense.bias", "copy", ("layers", "embed")),
    *_norm("layers/mlp_norm", f"{_HF_LAYER}.output", ("layers", "embed")),
    Row(
        "pooler/kernel",
        "pooler.dense.weight",
        "linear",
        ("embed", "pooled"),
        when="pooler",
    ),
    Row("pooler/bias", "pooler.dense.bias", "copy", ("pooled",), when="pooler"),
)


def param_table(config: EncoderConfig) -> tuple[ParamSpec, ...]:
    """The parameters of this configuration: path, shape, logical axes and checkpoint name."""
    sizes = {
        "vocab": config.vocab_size,
        "positions": config.max_positions,
        "types": config.type_vocab_size,
        "embed": config.width,
        "pooled": config.width,
        "heads": config.num_heads,
        "head_dim": config.width // config.num_heads,
        "mlp": config.mlp_width,
        "layers": config.num_layers,
    }
    return resolve(PARAM_TABLE, config, sizes, config.name_prefix)


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + ε) · scale + bias, in float32, returned in the compute dtype."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, param_dtype = (x.shape[-1],), jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, shape, param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, param_dtype)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + self.config.layer_norm_eps)
        return (x * scale + bias).astype(self.config.compute_dtype)


class Attention(nn.Module):
    """Attention of queries to all tokens that count."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, queries: Array, x: Array, mask: SegmentMask) -> Array:
        config = self.config
        width, heads = config.width, config.num_heads
        shape = (width, heads, width // heads)
        q = Linear(config, "D", "NH", shape, use_bias=True, name="q")(queries)
        k = Linear(config, "D", "NH", shape, use_bias=True, name="k")(x)
        v = Linear(config, "D", "NH", shape, use_bias=True, name="v")(x)
        q, k, v = (sharding.constrain(x, "batch", "length", "heads", None) for x in (q, k, v))
        out = Linear(config, "NH", "D", (*shape[1:], width), use_bias=True, name="out")
        return out(attention(q, k, v, mask))


class Mlp(nn.Module):
    """W_down·gelu(W_up·x), with the exact (erf) GELU."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        wide, narrow = (config.width, config.mlp_width), (config.mlp_width, config.width)
        up = Linear(config, "D", "F", wide, use_bias=True, name="up")(x)
        up = sharding.constrain(up, "batch", "length", "mlp")
        down = Linear(config, "F", "D", narrow, use_bias=True, name="down")
        return down(jax.nn.gelu(up, approximate=False))


class Layer(nn.Module):
    """One post-norm block, of all places or of those at `places` alone."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Array, mask: SegmentMask, places: Array | None = None
    ) -> tuple[Array, None]:
        config = self.config
        x = sharding.constrain(x, "batch", "residual", None)
        queries = x
        if places is not None:
            queries, mask = jnp.take_along_axis(x, places[:, :, None], axis=1), mask.at(places)
        mixed = Attention(config, name="attention")(queries, x, mask)
        x = LayerNorm(config, name="attention_norm")(queries + mixed)
        return LayerNorm(config, name="mlp_norm")(x + Mlp(config, name="mlp")(x)), None


class Embed(nn.Module):
    """Sum of token, position and type vectors, normalised."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: Array, positions: Array) -> Array:
        config = self.config

        def table(name: str, length: int) -> Array:
            shape, dtype = (length, config.width), jnp.dtype(config.param_dtype)
            return self.param(name, nn.initializers.normal(INIT_SCALE), shape, dtype)

        words = jnp.take(table("tokens", config.vocab_size), tokens, axis=0)
        places = jnp.take(table("positions", config.max_positions), positions, axis=0)
        types = table("types", config.type_vocab_size)[0]
        summed = words.astype(jnp.float32) + places + types
        return LayerNorm(config, name="norm")(summed)


class Pooler(nn.Module):
    """Holds BERT's pooler, which the export writes back and no pooling here uses."""

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> None:
        width, dtype = self.config.width, jnp.dtype(self.config.param_dtype)
        self.param("kernel", nn.initializers.normal(INIT_SCALE), (width, width), dtype)
        self.param("bias", nn.initializers.zeros, (width,), dtype)


class Encoder(nn.Module):
    """Tokens to the hidden states of the last layer."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: Array, positions: Array, mask: SegmentMask) -> Array:
        config = self.config
        if config.pooler:
            Pooler(config, name="pooler")()
        x = Embed(config, name="embed")(tokens, positions)
        return _layers(config, config.num_layers)(config, name="layers")(x, mask)[0]


def _layers(config: EncoderConfig, count: int) -> type[nn.Module]:
    """`count` layers, one after the other, whose parameters are stacked."""
    return nn.scan(
        remat(Layer, config.remat),
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=count,
    )


@functools.partial(jax.jit, static_argnames="config")
def init_params(key: Array, config: EncoderConfig) -> dict:
    """Fresh parameters: kernels and embeddings normal with σ = 0.02, norms one, biases zero.

    Args:
        key: typed PRNG key.
        config: sizes and `param_dtype`.

    Returns:
        Nested dict with the paths and shapes of `param_table(config)`.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Encoder(config).init(key, tokens, tokens, segment_mask(tokens))["params"]


def init_lora(key: Array, config: EncoderConfig) -> dict:
    """Fresh adapters for all linear layers; see `models.lora.init_adapters`."""
    return lora_layers.init_adapters(key, config, param_table(config))


def hidden_states(
    params: Params,
    config: EncoderConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    mask: SegmentMask,
    *,
    places: Int[Array, "B P"] | None = None,
    lora: Params | None = None,
) -> Float[Array, "B states D"]:
    """Hidden states of the last layer, of all tokens or of those at `places`.

    Args:
        params: parameter tree.
        config: sizes.
        tokens: token ids [B, T], the tokenizer's own first and last tokens included.
        positions: place of each token in its own text [B, T], below `max_positions`.
        mask: of the texts that share a row, `attention.segment_mask`.
        places: the tokens of each row whose states are wanted [B, P]. The last layer computes no
            others: with 4 layers that is a fifth of the work.
        lora: adapter tree, used when `config.lora_rank` is positive.

    Returns:
        [B, T, D], or [B, P, D] with `places`, in the compute dtype; values at padding mean nothing.

    Raises:
        ValueError: when T exceeds `max_positions`, and for adapters where `lora_rank` is 0.
    """
    if tokens.shape[1] > config.max_positions:
        raise ValueError(
            f"rows of {tokens.shape[1]} tokens exceed the encoder's {config.max_positions} "
            "positions; truncate the texts in the tokenizer"
        )
    if lora is not None and not config.lora_rank:
        raise ValueError("adapters were passed but lora_rank is 0; set model.lora_rank to theirs")
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    if places is None:
        return Encoder(config).apply(variables, tokens, positions, mask)
    x = Embed(config).apply({"params": params["embed"]}, tokens, positions)
    layers = {name: tree["layers"] for name, tree in variables.items()}
    before = jax.tree.map(lambda stacked: stacked[:-1], layers)
    last = jax.tree.map(lambda stacked: stacked[-1], layers)
    x, _ = _layers(config, config.num_layers - 1)(config).apply(before, x, mask)
    return remat(Layer, config.remat)(config).apply(last, x, mask, places)[0]
