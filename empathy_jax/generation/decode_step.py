"""One token through the decoder, with the cache of `cache.py`.

N rows, A lanes, r = N/A rows of a lane, P prompt columns of a lane, C completion columns, K kv heads,
R query heads of a kv head, H head dim, D model.
"""

import jax
import jax.numpy as jnp

from empathy_jax import sharding
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.cache import BLOCK, DecodeCache
from empathy_jax.generation.weights import LayerWeights
from empathy_jax.models import decoder
from empathy_jax.models.rope import apply_rope, rope_angles
from empathy_jax.types import Array, Bool, Float, Float32, Int, Params


def decode_step(
    params: Params,
    layers: list[LayerWeights],
    config: decoder.DecoderConfig,
    tokens: Int[Array, "N"],
    positions: Int[Array, "N"],
    prompt_mask: Bool[Array, "N P"],
    own_mask: Bool[Array, "N C"],
    column: Int[Array, ""],
    cache: DecodeCache,
) -> tuple[Float[Array, "N D"], DecodeCache]:
    """Hidden states after the final norm of one more token per row.

    The same as `decoder.hidden_states` with a cache; a test holds the two together.

    Args:
      params: decoder parameters; embedding and final norm are read here.
      layers: of `weights.prepare`.
      config: the decoder's configuration.
      tokens: the token that each row goes on with.
      positions: where it stands, from 0 at the prompt's start.
      prompt_mask: columns of its lane's prompts that a row may see.
      own_mask: completion columns that it may see, `column` included.
      column: where this token's keys and values go.
      cache: holds the tokens before it.

    Returns:
      (hidden, the cache with this token's keys and values).
    """
    cos, sin = rope_angles(
        positions[:, None], config.head_dim, config.rope_theta, config.rope_scaling
    )
    norm = decoder.RmsNorm(config)
    x = decoder.Embed(config).apply({"params": params["embed"]}, tokens)
    new_k, new_v = [], []
    for i, layer in enumerate(layers):
        x = sharding.constrain(x, "batch", None)
        normed = norm.apply({"params": layer.attention_norm}, x)
        q, k, v = _project(config, layer, normed, cos, sin)
        place = (0, 0, column // BLOCK, 0, column % BLOCK)
        new_k.append(_write(cache.k[i], k[:, :, None, :, None], place))
        new_v.append(_write(cache.v[i], v[:, :, None], (0, 0, column, 0)))
        mixed = _attend(
            q, cache.prompt_k[i], cache.prompt_v[i], new_k[i], new_v[i], prompt_mask, own_mask
        )
        x = x + weights_lib.apply((layer.out,), mixed, (config.width,))[0]
        normed = norm.apply({"params": layer.mlp_norm}, x)
        gate, up = weights_lib.apply(layer.gate_up, normed, (config.mlp_width,) * 2)
        x = x + weights_lib.apply((layer.down,), jax.nn.silu(gate) * up, (config.width,))[0]
    hidden = norm.apply({"params": params["final_norm"]}, x)
    return hidden, cache._replace(k=tuple(new_k), v=tuple(new_v))


def _project(
    config: decoder.DecoderConfig, layer: LayerWeights, x: Array, cos: Array, sin: Array
) -> tuple[Array, Array, Array]:
    """Rotated queries [N, K·R, H], rotated keys and values [N, K, H]."""
    head_dim = config.head_dim
    widths = [n * head_dim for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    projected = weights_lib.apply(layer.qkv, x, widths)
    q, k, v = (part.reshape(x.shape[0], -1, head_dim) for part in projected)
    if config.qk_norm:
        q = decoder.RmsNorm(config).apply({"params": layer.q_norm}, q)
        k = decoder.RmsNorm(config).apply({"params": layer.k_norm}, k)
    q, k = apply_rope(q[:, None], cos, sin)[:, 0], apply_rope(k[:, None], cos, sin)[:, 0]
    return q, k, v


def _write(cache: Array, new: Array, place: tuple) -> Array:
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), place)


def _attend(
    q: Float[Array, "N heads H"],
    prompt_k: Float[Array, "A K P H"],
    prompt_v: Float[Array, "A K P H"],
    k: Float[Array, "N K b H c"],
    v: Float[Array, "N K C H"],
    prompt_mask: Bool[Array, "N P"],
    own_mask: Bool[Array, "N C"],
) -> Float[Array, "N width"]:
    """Softmax attention of each row over its prompt's columns and its own, together."""
    rows, num_heads, head_dim = q.shape
    lanes, kv_heads, _, _ = prompt_k.shape
    per_lane, per_kv, dtype = rows // lanes, num_heads // kv_heads, q.dtype
    own = (q * jnp.asarray(head_dim**-0.5, dtype)).reshape(rows, kv_heads, per_kv, head_dim)

    def product(spec: str, a: Array, b: Array) -> Array:
        return jnp.einsum(spec, a, b.astype(dtype), preferred_element_type=jnp.float32)

    def by_row(x: Array) -> Array:
        split = x.reshape(lanes, kv_heads, per_lane, per_kv, -1)
        return split.swapaxes(1, 2).reshape(rows, kv_heads, per_kv, -1)

    def by_lane(x: Array) -> Array:
        split = x.reshape(lanes, per_lane, kv_heads, per_kv, -1)
        return split.swapaxes(1, 2).reshape(lanes, kv_heads, per_lane * per_kv, -1)

    # All rows of a lane ask its prompts in one product: r·R queries per kv head.
    lowest = jnp.finfo(jnp.float32).min
    prompt_scores = by_row(product("AKRH,AKPH->AKRP", by_lane(own), prompt_k))
    prompt_scores = jnp.where(prompt_mask[:, None, None], prompt_scores, lowest)
    own_scores = _key_scores(own, k)
    own_scores = jnp.where(own_mask[:, None, None], own_scores, lowest)
    # A row sees at least the column of its own token, so the sum of its weights is 1 or more.
    highest = jnp.maximum(
        jnp.max(own_scores, -1, keepdims=True),
        jnp.max(prompt_scores, -1, keepdims=True, initial=lowest),
    )
    prompt_weights, own_weights = jnp.exp(prompt_scores - highest), jnp.exp(own_scores - highest)
    total = jnp.sum(prompt_weights, -1, keepdims=True) + jnp.sum(own_weights, -1, keepdims=True)
    mixed = by_row(product("AKRP,AKPH->AKRH", by_lane(prompt_weights.astype(dtype)), prompt_v))
    mixed = mixed + product("NKRC,NKCH->NKRH", own_weights.astype(dtype), v)
    return (mixed / total).astype(dtype).reshape(rows, num_heads * head_dim)


def _key_scores(
    q: Float[Array, "N K R H"], k: Float[Array, "N K b H c"]
) -> Float32[Array, "N K R C"]:
    """Products of queries with keys in blocks of columns.

    The queries are repeated for each block: without that, the product would first bring the blocks in
    another order, in memory. (A multiplication and a sum in its place take 30 times as long where R
    is 1, measured on two CPU cores.)
    """
    repeated = jnp.broadcast_to(q[:, :, None], (*q.shape[:2], k.shape[2], *q.shape[2:]))
    scores = jnp.einsum(
        "NKbRH,NKbHc->NKbRc", repeated, k.astype(q.dtype), preferred_element_type=jnp.float32
    )
    return scores.swapaxes(2, 3).reshape(*q.shape[:3], -1)
