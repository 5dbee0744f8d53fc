"""How far our logits are from those of torch transformers, one JSON line for all architectures.

    python benchmarks/parity.py

Per decoder: the largest absolute difference of logits in float32 over a whole sequence and token
by token through the KV cache, and whether 64 greedily chosen tokens are the same. Per encoder: the
largest difference of pooled, normalised embeddings. Models are tiny and random, with weights large
enough that no layer is idle. Needs torch and transformers.
"""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from empathy_jax.models import decoder, encoder, hf
from empathy_jax.models.attention import causal_mask, segment_mask
from empathy_jax.models.pooling import normalise, pool

PROMPT_LENGTH, NEW_TOKENS, ROWS = 16, 64, 2

_SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 32}

DECODERS = {
    "qwen3 tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3 untied, one kv head, wide heads": {
        "model_type": "qwen3",
        "head_dim": 32,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-3,
    },
    "qwen3 biases, narrow heads, theta 5e6": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    },
    "qwen3 yarn": {
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": _YARN | {"factor": 8.0},
    },
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 untied, as many kv heads, theta 1e6": {
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen2 linear": {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "qwen2 yarn, mscale, ramp not truncated": {
        "model_type": "qwen2",
        "rope_parameters": _YARN
        | {
            "factor": 8.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
            "truncate": False,
        },
    },
    "llama untied, as many kv heads": {"model_type": "llama", "num_key_value_heads": 4},
    "llama tied, all biases": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama mlp biases, one kv head": {
        "model_type": "llama",
        "mlp_bias": True,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
    },
    "llama attention biases, wide heads": {
        "model_type": "llama",
        "attention_bias": True,
        "head_dim": 20,
    },
    "llama linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 2.0},
    },
    "llama llama3": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama yarn, stated attention factor": {
        "model_type": "llama",
        "rope_parameters": _YARN | {"factor": 8.0, "attention_factor": 1.3},
    },
}

ENCODERS = {
    "bert": {},
    "bert one type, one layer": {"type_vocab_size": 1, "num_hidden_layers": 1},
    "bert many heads, large eps": {"num_attention_heads": 12, "layer_norm_eps": 1e-3},
}


def torch_model(fields: dict, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model of transformers in float32 with weights of order 1/√inputs, none of them 0."""
    # Beside JAX's own threads, torch's only take turns with them on these sizes.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    fields = _SIZES | {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None} | fields
    model_type = fields.pop("model_type", "bert")
    if model_type == "bert":
        del fields["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(model_type, **fields)
    auto = transformers.AutoModel if model_type == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.2 * noise + ("norm" in name.lower() and "weight" in name))
    return model


def load(model: transformers.PreTrainedModel, folder: Path) -> tuple:
    """Our configuration and parameters of a model of transformers, through its files."""
    model.save_pretrained(folder)
    config = hf.read_config(folder)
    return config, jax.device_put(hf.load_params(folder, config))


def decoder_parity(
    model: transformers.PreTrainedModel,
    config: decoder.DecoderConfig,
    params: dict,
    prompts: np.ndarray,
) -> dict:
    """Differences of one decoder: {"whole", "cached", "greedy_equal"}.

    Args:
        model: the model of transformers, float32.
        config: our configuration of it.
        params: our parameters of it, float32.
        prompts: token ids [B, T].
    """
    rows, length = prompts.shape
    tokens = torch.from_numpy(prompts)
    with torch.no_grad():
        expected = model(tokens).logits.numpy()
        chosen = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        ).numpy()

    @jax.jit
    def whole(params: dict, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        mask = causal_mask(jnp.ones_like(tokens))
        hidden, _ = decoder.hidden_states(params, config, tokens, positions, mask)
        return decoder.logits(params, config, hidden)

    total = length + NEW_TOKENS

    @jax.jit
    def step(params: dict, tokens: jax.Array, cache: decoder.KVCache, index: jax.Array) -> tuple:
        mask = jnp.broadcast_to(jnp.arange(total) <= index, (rows, 1, total))
        positions = jnp.full((rows, 1), index)
        hidden, cache = decoder.hidden_states(
            params, config, tokens, positions, mask, kv_cache=cache, cache_index=index
        )
        return decoder.logits(params, config, hidden)[:, 0], cache

    cache = decoder.init_kv_cache(config, rows, total, "float32")
    written, cached = prompts, []
    for index in range(total - 1):
        scores, cache = step(params, written[:, index : index + 1], cache, jnp.int32(index))
        if index < length:
            cached.append(scores)
        if index >= length - 1:
            best = np.asarray(jnp.argmax(scores, axis=-1))
            written = np.concatenate([written, best[:, None]], axis=1)
    return {
        "whole": float(np.abs(whole(params, prompts) - expected).max()),
        "cached": float(np.abs(np.stack(cached, axis=1) - expected).max()),
        "greedy_equal": bool(np.array_equal(written, chosen)),
    }


def encoder_parity(
    model: transformers.PreTrainedModel,
    config: encoder.EncoderConfig,
    params: dict,
    tokens: np.ndarray,
    attention_mask: np.ndarray,
) -> dict:
    """Differences of one encoder's embeddings: {"mean", "cls"}.

    Args:
        model: the model of transformers, float32.
        config: our configuration of it.
        params: our parameters of it, float32.
        tokens: token ids [B, T].
        attention_mask: true where a token counts [B, T], padding on the right.
    """
    with torch.no_grad():
        hidden = model(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(attention_mask).long()
        ).last_hidden_state
    weights = torch.from_numpy(attention_mask)[..., None].float()
    expected = {"mean": (hidden * weights).sum(1) / weights.sum(1), "cls": hidden[:, 0]}
    segment_ids = jnp.asarray(attention_mask, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    run = jax.jit(encoder.hidden_states, static_argnames="config")
    ours = run(params, config, tokens, positions, segment_mask(segment_ids))
    differences = {}
    for kind, vectors in expected.items():
        unit = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        found = normalise(pool(ours, segment_ids, kind, segments=1))[:, 0]
        differences[kind] = float(np.abs(found - unit).max())
    return differences


def random_tokens(vocab_size: int, rows: int, length: int) -> np.ndarray:
    """Token ids [rows, length], always the same for the same sizes."""
    return np.random.default_rng(0).integers(0, vocab_size, (rows, length))


def right_padded_mask(rows: int, length: int) -> np.ndarray:
    """Rows of falling length: true at the start, padding at the end."""
    lengths = np.maximum(length - 3 * np.arange(rows), 1)
    return np.arange(length) < lengths[:, None]


def main() -> None:
    """Measure every architecture and print the table."""
    table = {}
    for name, fields in DECODERS.items():
        model = torch_model(fields)
        with tempfile.TemporaryDirectory() as folder:
            config, params = load(model, Path(folder))
        prompts = random_tokens(config.vocab_size, ROWS, PROMPT_LENGTH)
        table[name] = decoder_parity(model, config, params, prompts)
    for name, fields in ENCODERS.items():
        model = torch_model(fields)
        with tempfile.TemporaryDirectory() as folder:
            config, params = load(model, Path(folder))
        tokens = random_tokens(config.vocab_size, 3, PROMPT_LENGTH)
        mask = right_padded_mask(3, PROMPT_LENGTH)
        table[name] = encoder_parity(model, config, params, tokens, mask)
    print(json.dumps({"benchmark": "parity", "max_abs_diff": table}))


if __name__ == "__main__":
    main()
