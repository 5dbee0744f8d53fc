"""config.json of transformers 4 and 5 to ours and back."""

import dataclasses

import pytest
import transformers

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.hf_config import config_from_hf, config_to_hf
from empathy_jax.models.rope import RopeScaling

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
QWEN = LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2}
BERT = LLAMA | {"model_type": "bert"}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    ],
)
def test_both_forms_of_rope_are_read_alike(scaling):
    version_5 = LLAMA | {"rope_parameters": scaling | {"rope_theta": 5e5}}
    older_name = {("type" if key == "rope_type" else key): scaling[key] for key in scaling}
    for rope_scaling in (scaling, older_name):
        version_4 = LLAMA | {"rope_theta": 5e5, "rope_scaling": rope_scaling}
        assert config_from_hf(version_4) == config_from_hf(version_5)
    config = config_from_hf(version_5)
    assert config.rope_theta == 5e5
    kind = scaling["rope_type"]
    assert (config.rope_scaling.kind if config.rope_scaling else "default") == kind


def test_absent_fields_take_the_values_that_transformers_gives_them():
    config = config_from_hf({k: v for k, v in LLAMA.items() if k != "max_position_embeddings"})
    theirs = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4)
    assert config.num_kv_heads == theirs.num_key_value_heads == 4
    assert config.head_dim == theirs.head_dim == 8
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.max_positions == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config_from_hf(QWEN).head_dim == transformers.Qwen3Config().head_dim


def test_context_before_stretching_is_the_whole_when_not_stated():
    rope = {"rope_type": "yarn", "factor": 4.0}
    assert (
        config_from_hf(LLAMA | {"rope_scaling": rope}).rope_scaling.original_max_positions == 4096
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'.*qwen3, qwen2, llama, bert"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_key_value_heads": None}, "lacks num_key_value_heads"),
    ],
)
def test_unsupported_decoders_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(QWEN | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_unsupported_encoders_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(BERT | fields)


BASE = DecoderConfig(
    vocab_size=64,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=4096,
)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("qwen3", BASE),
        ("qwen3", dataclasses.replace(BASE, qkv_bias=True, out_bias=True, tie_embeddings=False)),
        ("qwen2", dataclasses.replace(BASE, qk_norm=False, qkv_bias=True)),
        ("llama", dataclasses.replace(BASE, qk_norm=False, mlp_bias=True)),
        ("llama", dataclasses.replace(BASE, qk_norm=False, rope_scaling=RopeScaling("linear", 2))),
        (
            "llama",
            dataclasses.replace(
                BASE,
                qk_norm=False,
                qkv_bias=True,
                out_bias=True,
                rope_scaling=RopeScaling("llama3", 8.0, 1024),
            ),
        ),
        (
            "qwen3",
            dataclasses.replace(
                BASE, rope_scaling=RopeScaling("yarn", 4.0, 1024, attention_factor=1.2)
            ),
        ),
        (
            "bert",
            EncoderConfig(vocab_size=64, width=32, mlp_width=48, num_layers=2, num_heads=4),
        ),
    ],
)
def test_fresh_models_get_a_config_that_reads_back(model_type, config):
    hf = config_to_hf(config)
    assert hf["model_type"] == model_type
    assert config_from_hf(hf) == config
    # transformers, which rewrites it in the form of version 5, understands the same.
    theirs = transformers.AutoConfig.for_model(**hf)
    assert config_from_hf(theirs.to_dict()) == config


def test_combinations_that_no_architecture_has_are_refused():
    with pytest.raises(ValueError, match="out_bias=True"):
        config_to_hf(dataclasses.replace(BASE, out_bias=True))
