"""Hugging Face config.json to our configurations and back.

A switch that the models here do not have is refused by name: a model that loads computes what its
authors' code computes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.rope import RopeScaling, yarn_attention_factor

DECODER_TYPES = ("qwen3", "qwen2", "llama")
ENCODER_TYPES = ("bert",)

_ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "bert": "BertModel",
}
_DEFAULT_MAX_POSITIONS = {"qwen3": 32768, "qwen2": 32768, "llama": 2048, "bert": 512}
# The value of each switch that leaves the architecture as it is here; a missing key is that value.
_DECODER_SWITCHES = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
}
_ENCODER_SWITCHES = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with an error that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; a model directory needs it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, an object is needed")
    return value


def config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig | EncoderConfig:
    """Our configuration from the content of a config.json (transformers 4 or 5).

    Dtypes, remat and adapters are not the checkpoint's business and keep their defaults; the tensor
    names' layout is the usual one.

    Raises:
        ValueError: for another model type and for any switch not supported, by name and value.
    """
    model_type = hf.get("model_type")
    if model_type not in (*DECODER_TYPES, *ENCODER_TYPES):
        raise ValueError(
            f"model_type is {model_type!r} in config.json, supported are "
            f"{', '.join((*DECODER_TYPES, *ENCODER_TYPES))}"
        )
    if hf.get("quantization_config"):
        raise ValueError(
            "config.json has a quantization_config; quantised weights are not supported, use the "
            "float16, bfloat16 or float32 checkpoint"
        )
    if model_type in ENCODER_TYPES:
        return _encoder_from_hf(hf)
    return _decoder_from_hf(hf, model_type)


def _refuse_switches(hf: Mapping[str, Any], switches: Mapping[str, Any]) -> None:
    for name, supported in switches.items():
        value = hf.get(name)
        if value is not None and value != supported:
            raise ValueError(f"{name} is {value!r} in config.json, supported is {supported!r}")


def _sizes(hf: Mapping[str, Any]) -> dict[str, int]:
    names = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }
    return {ours: _required(hf, theirs) for ours, theirs in names.items()}


def _required(hf: Mapping[str, Any], name: str) -> Any:
    if hf.get(name) is None:
        raise ValueError(f"config.json lacks {name}")
    return hf[name]


def _decoder_from_hf(hf: Mapping[str, Any], model_type: str) -> DecoderConfig:
    _refuse_switches(hf, _DECODER_SWITCHES)
    layer_types = set(hf.get("layer_types") or ()) - {"full_attention"}
    if layer_types:
        raise ValueError(
            f"layer_types has {', '.join(sorted(layer_types))} in config.json, supported is "
            "full_attention only"
        )
    sizes = _sizes(hf)
    if model_type != "llama":
        _required(hf, "num_key_value_heads")
    width_per_head = sizes["width"] // sizes["num_heads"]
    attention_bias = bool(hf.get("attention_bias", False))
    max_positions = hf.get("max_position_embeddings") or _DEFAULT_MAX_POSITIONS[model_type]
    theta, scaling = _rope_from_hf(hf, max_positions)
    return DecoderConfig(
        **sizes,
        num_kv_heads=hf.get("num_key_value_heads") or sizes["num_heads"],
        head_dim=hf.get("head_dim") or (128 if model_type == "qwen3" else width_per_head),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
        qkv_bias=True if model_type == "qwen2" else attention_bias,
        out_bias=False if model_type == "qwen2" else attention_bias,
        mlp_bias=bool(hf.get("mlp_bias", False)) if model_type == "llama" else False,
        qk_norm=model_type == "qwen3",
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        max_positions=max_positions,
    )


def _rope_from_hf(hf: Mapping[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from `rope_theta` and `rope_scaling` (4) or from `rope_parameters` (5)."""
    rope = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(
            f"rope_parameters differ by layer type ({', '.join(rope)}) in config.json; supported "
            "is one set for all layers"
        )
    _refuse_switches(rope, {"partial_rotary_factor": 1.0})
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    original = (
        hf.get("original_max_position_embeddings")
        or rope.get("original_max_position_embeddings")
        or max_positions
    )
    if kind == "linear":
        return theta, RopeScaling(kind, float(_required(rope, "factor")))
    if kind == "llama3":
        return theta, RopeScaling(
            kind,
            float(_required(rope, "factor")),
            original,
            low_freq_factor=float(_required(rope, "low_freq_factor")),
            high_freq_factor=float(_required(rope, "high_freq_factor")),
        )
    if kind == "yarn":
        factor = float(rope.get("factor") or max_positions / original)
        attention_factor = rope.get("attention_factor")
        if attention_factor is None:
            mscales = rope.get("mscale"), rope.get("mscale_all_dim")
            attention_factor = yarn_attention_factor(factor, *mscales)
        return theta, RopeScaling(
            kind,
            factor,
            original,
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            attention_factor=float(attention_factor),
            truncate=bool(rope.get("truncate", True)),
        )
    raise ValueError(
        f"rope_type is {kind!r} in config.json, supported are default, linear, llama3 and yarn"
    )


def _encoder_from_hf(hf: Mapping[str, Any]) -> EncoderConfig:
    _refuse_switches(hf, _ENCODER_SWITCHES)
    return EncoderConfig(
        **_sizes(hf),
        max_positions=hf.get("max_position_embeddings") or _DEFAULT_MAX_POSITIONS["bert"],
        type_vocab_size=hf.get("type_vocab_size", 2),
        layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
        pad_id=hf.get("pad_token_id") or 0,
    )


def config_to_hf(config: DecoderConfig | EncoderConfig) -> dict[str, Any]:
    """The content of a config.json for a model that has none: Qwen3, Qwen2, Llama or BERT.

    Decoders with q/k norm are Qwen3; with biases on q, k, v alone Qwen2; the rest are Llama.

    Raises:
        ValueError: for switches that none of these architectures combines.
    """
    if isinstance(config, EncoderConfig):
        return _encoder_to_hf(config)
    model_type = _decoder_type(config)
    hf = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": config.param_dtype,
        # Absent, these take the values of one vocabulary in particular.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if model_type != "qwen2":
        hf["attention_bias"] = config.qkv_bias
    if model_type == "llama":
        hf["mlp_bias"] = config.mlp_bias
    else:
        hf["use_sliding_window"] = False
    return hf


def _decoder_type(config: DecoderConfig) -> str:
    attention_bias = config.qkv_bias == config.out_bias
    if config.qk_norm and attention_bias and not config.mlp_bias:
        return "qwen3"
    if not config.qk_norm and config.qkv_bias and not config.out_bias and not config.mlp_bias:
        return "qwen2"
    if not config.qk_norm and attention_bias and config.width % config.num_heads == 0:
        return "llama"
    raise ValueError(
        "no Hugging Face architecture has "
        f"qk_norm={config.qk_norm}, qkv_bias={config.qkv_bias}, out_bias={config.out_bias}, "
        f"mlp_bias={config.mlp_bias} with width {config.width} over {config.num_heads} heads; "
        "Qwen3 has qk_norm and one switch for qkv_bias and out_bias, Qwen2 qkv_bias alone, Llama "
        "no qk_norm, one switch for qkv_bias and out_bias, and a width that the heads divide"
    )


def _rope_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    hf: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        hf["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        hf["low_freq_factor"] = scaling.low_freq_factor
        hf["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        hf["beta_fast"] = scaling.beta_fast
        hf["beta_slow"] = scaling.beta_slow
        hf["attention_factor"] = scaling.attention_factor
        hf["truncate"] = scaling.truncate
    return hf


def _encoder_to_hf(config: EncoderConfig) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES["bert"]],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu",
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_id,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "dtype": config.param_dtype,
    }
