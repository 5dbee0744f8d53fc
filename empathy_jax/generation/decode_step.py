"""One token through the decoder, with a cache made for many samples of few prompts.

The keys and values of a prompt are held once for all its samples; those of the completions are
held per row. Layers are unrolled and each has arrays of its own: a scan over a stacked cache would
copy every layer's slice at every token. Measured on two CPU cores, 64 rows, 1,024 columns, 2 heads
of 64: one product of a query with keys takes 2 ms where heads come before columns, 21 ms where they
come after, hence the order of axes here.

Q prompts, G samples of each, N = Q·G rows (prompt-major), P prompt columns, C completion columns,
K kv heads, R query heads of a kv head, H head dim, L layers.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from empathy_jax.models import decoder
from empathy_jax.models.layers import Linear
from empathy_jax.models.rope import apply_rope, rope_angles
from empathy_jax.types import Array, Bool, Float, Int, Params


class DecodeCache(NamedTuple):
    """Keys (rotated) and values, a tuple over layers of each.

    Attributes:
      prompt_k, prompt_v: [Q, K, P, H].
      k, v: [N, K, H, C]; columns last, which suits both products on a CPU.
    """

    prompt_k: tuple[Array, ...]
    prompt_v: tuple[Array, ...]
    k: tuple[Array, ...]
    v: tuple[Array, ...]


def from_prefill(kv_cache: decoder.KVCache, num_rows: int) -> DecodeCache:
    """The prompts' cache [L, Q, P, K, H] in the layout of decoding, without completion columns."""

    def by_layer(stacked: Array) -> tuple[Array, ...]:
        return tuple(layer.swapaxes(1, 2) for layer in stacked)

    layers, _, _, heads, head_dim = kv_cache.k.shape
    empty = (jnp.zeros((num_rows, heads, head_dim, 0), kv_cache.k.dtype),) * layers
    return DecodeCache(by_layer(kv_cache.k), by_layer(kv_cache.v), empty, empty)


def grow(cache: DecodeCache, columns: int) -> DecodeCache:
    """The cache with room for `columns` completion tokens."""

    def widen(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, columns - x.shape[-1])))

    return cache._replace(k=tuple(map(widen, cache.k)), v=tuple(map(widen, cache.v)))


def split_layers(params: Params, num_layers: int) -> list[Params]:
    """The parameters (or adapters) of each layer, out of the stacked tree."""
    return [jax.tree.map(operator.itemgetter(i), params) for i in range(num_layers)]


def decode_step(
    params: Params,
    layers: list[Params],
    config: decoder.DecoderConfig,
    tokens: Int[Array, "N"],
    prompt_lengths: Int[Array, "Q"],
    column: Int[Array, ""],
    cache: DecodeCache,
    *,
    lora_layers: list[Params] | None = None,
) -> tuple[Float[Array, "N D"], DecodeCache]:
    """Hidden states after the final norm of one more completion token per row.

    The same as `decoder.hidden_states` with a cache; a test holds the two together.

    Args:
      params: decoder parameters; embedding and final norm are read here.
      layers: `split_layers(params["layers"], ...)`, done once outside the loop over tokens.
      config: the decoder's configuration.
      tokens: the token that stands at completion column `column`, [N].
      prompt_lengths: true length of each prompt, [Q].
      column: which completion token this is, from 0; less than C.
      cache: holds the columns before it.
      lora_layers: adapters, split likewise.

    Returns:
      (hidden [N, D], the cache with this token's keys and values).
    """
    rows, prompts = tokens.shape[0], prompt_lengths.shape[0]
    prompt_mask = jnp.arange(cache.prompt_k[0].shape[2]) < prompt_lengths[:, None]
    completion_mask = jnp.arange(cache.k[0].shape[3]) <= column
    positions = jnp.repeat(prompt_lengths, rows // prompts, total_repeat_length=rows) + column
    angles = rope_angles(
        positions[:, None], config.head_dim, config.rope_theta, config.rope_scaling
    )

    x = decoder.Embed(config).apply({"params": params["embed"]}, tokens[:, None])
    new_k, new_v = [], []
    for i, layer in enumerate(layers):
        adapters = None if lora_layers is None else lora_layers[i]
        q, k, v = _project(config, layer, adapters, x, angles)
        new_k.append(_write(cache.k[i], k, column))
        new_v.append(_write(cache.v[i], v, column))
        mixed = _attend(
            q,
            cache.prompt_k[i],
            cache.prompt_v[i],
            new_k[i],
            new_v[i],
            prompt_mask,
            completion_mask,
        )
        x = x + _linear(config, layer, adapters, "out", mixed)
        normed = decoder.RmsNorm(config).apply({"params": layer["mlp_norm"]}, x)
        x = x + decoder.Mlp(config).apply(_variables(layer, adapters, "mlp"), normed)
    hidden = decoder.RmsNorm(config).apply({"params": params["final_norm"]}, x)
    return hidden[:, 0], cache._replace(k=tuple(new_k), v=tuple(new_v))


def _variables(layer: Params, adapters: Params | None, name: str) -> dict:
    variables = {"params": layer[name]}
    if adapters is not None and name in adapters:
        variables["lora"] = adapters[name]
    return variables


def _linear(
    config: decoder.DecoderConfig, layer: Params, adapters: Params | None, name: str, x: Array
) -> Array:
    """One of the four linear layers of attention: q, k, v or out."""
    inputs, outputs = ("NH", "D") if name == "out" else ("D", "NH")
    attention = layer["attention"]
    variables = _variables(attention, (adapters or {}).get("attention"), name)
    shape, use_bias = attention[name]["kernel"].shape, "bias" in attention[name]
    return Linear(config, inputs, outputs, shape, use_bias).apply(variables, x)


def _project(
    config: decoder.DecoderConfig,
    layer: Params,
    adapters: Params | None,
    x: Float[Array, "N 1 D"],
    angles: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    """Rotated queries [N, 1, K·R, H] and keys, and values [N, 1, K, H]."""
    normed = decoder.RmsNorm(config).apply({"params": layer["attention_norm"]}, x)
    q, k, v = (_linear(config, layer, adapters, name, normed) for name in "qkv")
    if config.qk_norm:
        q = decoder.RmsNorm(config).apply({"params": layer["attention"]["q_norm"]}, q)
        k = decoder.RmsNorm(config).apply({"params": layer["attention"]["k_norm"]}, k)
    return apply_rope(q, *angles), apply_rope(k, *angles), v


def _write(
    cache: Float[Array, "N K H C"], new: Float[Array, "N 1 K H"], column: Array
) -> Float[Array, "N K H C"]:
    new = new[:, 0, :, :, None].astype(cache.dtype)
    return jax.lax.dynamic_update_slice(cache, new, (0, 0, 0, column))


def _attend(
    q: Float[Array, "N 1 heads H"],
    prompt_k: Float[Array, "Q K P H"],
    prompt_v: Float[Array, "Q K P H"],
    k: Float[Array, "N K H C"],
    v: Float[Array, "N K H C"],
    prompt_mask: Bool[Array, "Q P"],
    completion_mask: Bool[Array, "C"],
) -> Float[Array, "N 1 heads H"]:
    """Softmax attention of each row over its prompt's columns and its own, together."""
    rows, _, num_heads, head_dim = q.shape
    prompts, kv_heads, prompt_columns, _ = prompt_k.shape
    per_kv, dtype = num_heads // kv_heads, q.dtype
    scaled = q * jnp.asarray(head_dim**-0.5, dtype)
    own = scaled.reshape(rows, kv_heads, per_kv, head_dim)
    # All samples of a prompt ask its columns in one product: G·R queries per kv head.
    shared = own.reshape(prompts, rows // prompts, kv_heads, per_kv, head_dim).swapaxes(1, 2)
    shared = shared.reshape(prompts, kv_heads, -1, head_dim)

    def product(spec: str, a: Array, b: Array) -> Array:
        return jnp.einsum(spec, a, b.astype(dtype), preferred_element_type=jnp.float32)

    def by_row(x: Array) -> Array:
        split = x.reshape(prompts, kv_heads, rows // prompts, per_kv, -1)
        return split.swapaxes(1, 2).reshape(rows, kv_heads, per_kv, -1)

    def by_prompt(x: Array) -> Array:
        split = x.reshape(prompts, rows // prompts, kv_heads, per_kv, -1)
        return split.swapaxes(1, 2).reshape(prompts, kv_heads, -1, x.shape[-1])

    lowest = jnp.finfo(jnp.float32).min
    prompt_scores = product("QKRH,QKPH->QKRP", shared, prompt_k)
    prompt_scores = jnp.where(prompt_mask[:, None, None], prompt_scores, lowest)
    scores = jnp.where(completion_mask, product("NKRH,NKHC->NKRC", own, k), lowest)
    weights = jax.nn.softmax(jnp.concatenate([by_row(prompt_scores), scores], axis=-1), axis=-1)
    weights = weights.astype(dtype)
    prompt_weights = by_prompt(weights[..., :prompt_columns])
    mixed = by_row(product("QKRP,QKPH->QKRH", prompt_weights, prompt_v))
    mixed = mixed + product("NKRC,NKHC->NKRH", weights[..., prompt_columns:], v)
    return mixed.astype(dtype).reshape(q.shape)
