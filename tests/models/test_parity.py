"""Parity with torch transformers; the list of architectures is in benchmarks/parity.py."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from benchmarks import parity
from empathy_jax.models import hf

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", parity.DECODERS)
def test_decoder(name, tmp_path):
    model = parity.torch_model(parity.DECODERS[name])
    config, params = parity.load(model, tmp_path)
    prompts = parity.random_tokens(config.vocab_size, parity.ROWS, parity.PROMPT_LENGTH)
    found = parity.decoder_parity(model, config, params, prompts)
    assert found["whole"] <= TOLERANCE
    assert found["cached"] <= TOLERANCE
    assert found["greedy_equal"]


@pytest.mark.parametrize("name", parity.ENCODERS)
def test_encoder(name, tmp_path):
    model = parity.torch_model(parity.ENCODERS[name])
    config, params = parity.load(model, tmp_path)
    tokens = parity.random_tokens(config.vocab_size, 3, parity.PROMPT_LENGTH)
    mask = parity.right_padded_mask(3, parity.PROMPT_LENGTH)
    found = parity.encoder_parity(model, config, params, tokens, mask)
    assert found["mean"] <= TOLERANCE
    assert found["cls"] <= TOLERANCE


def test_every_switch_is_exercised():
    """The list has both values of every switch, and every rope scaling, so that parity means it."""
    seen = [parity.torch_model(fields).config for fields in parity.DECODERS.values()]
    assert {c.model_type for c in seen} == {"qwen3", "qwen2", "llama"}
    assert {c.tie_word_embeddings for c in seen} == {True, False}
    kinds = {c.rope_parameters["rope_type"] for c in seen}
    assert kinds == {"default", "linear", "llama3", "yarn"}
    assert len({c.rope_parameters["rope_theta"] for c in seen}) > 3
    assert len({c.rms_norm_eps for c in seen}) > 2
    groups = {c.num_attention_heads // c.num_key_value_heads for c in seen}
    assert groups >= {1, 2, 4}
    for kind in ("qwen3", "llama"):
        biases = {c.attention_bias for c in seen if c.model_type == kind}
        assert biases == {True, False}
    pairs = {(c.attention_bias, c.mlp_bias) for c in seen if c.model_type == "llama"}
    assert pairs == {(True, True), (True, False), (False, True), (False, False)}


def test_real_decoder(shared_dir):
    folder = shared_dir / "models" / "minimind2_small"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    config = hf.read_config(folder)
    params = jax.device_put(hf.load_params(folder, config, dtype="float32"))
    prompts = parity.random_tokens(config.vocab_size, 2, parity.PROMPT_LENGTH)
    # These weights expect every sequence to start with the token that opens a turn.
    prompts[:, 0] = 1
    found = parity.decoder_parity(model, config, params, prompts)
    assert found["whole"] <= TOLERANCE
    assert found["cached"] <= TOLERANCE
    assert found["greedy_equal"]


def test_real_encoder(shared_dir):
    folder = shared_dir / "models" / "bge_small_zh"
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    config = hf.read_config(folder)
    params = jax.device_put(hf.load_params(folder, config, dtype="float32"))
    tokens = parity.random_tokens(config.vocab_size, 3, 40)
    found = parity.encoder_parity(model, config, params, tokens, parity.right_padded_mask(3, 40))
    assert found["mean"] <= TOLERANCE
    assert found["cls"] <= TOLERANCE


@pytest.mark.parametrize("name", ["minimind2_small", "bge_small_zh"])
def test_real_round_trip(name, shared_dir, tmp_path):
    folder = shared_dir / "models" / name
    config = hf.read_config(folder)
    hf.save_model(
        tmp_path / "copy",
        config,
        hf.load_params(folder, config),
        source_config=hf.read_json(folder / "config.json"),
    )
    assert hf.read_json(tmp_path / "copy" / "config.json") == hf.read_json(folder / "config.json")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "copy", folder))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key].view(np.uint16), tensor.view(np.uint16), key)
