"""Adapters in PEFT's format give our outputs in PEFT itself, whatever layout the base model has."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from benchmarks import parity
from empathy_jax.models import decoder, encoder, hf
from empathy_jax.models.attention import causal_mask, segment_mask
from empathy_jax.models.peft import save_adapter
from empathy_jax.pytree import flatten_paths

# PEFT asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTH = 9
TOKENS = parity.random_tokens(131, rows=2, length=LENGTH)
LAYERS = parity._SIZES["num_hidden_layers"]
DECODER = parity.DECODERS["qwen2 tied"]

# Name: fields of the torch model, what the checkpoint's names begin with, whether it writes text.
BASES = {
    "decoder": (DECODER, "model.", True),
    "decoder with all biases": (parity.DECODERS["llama tied, all biases"], "model.", True),
    "bare decoder": (DECODER, "", True),
    "decoder that makes vectors": (DECODER, "model.", False),
    "bare decoder that makes vectors": (DECODER, "", False),
    "bert": ({}, "", False),
    "bert with its prefix": ({}, "bert.", False),
}


def save_base(folder, fields, prefix):
    """A random torch model on the disk, its tensors named as some real checkpoints name theirs."""
    parity.torch_model(fields).save_pretrained(folder)
    file = folder / "model.safetensors"
    usual = "model." if fields else ""
    renamed = {prefix + name.removeprefix(usual): x for name, x in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})


def random_adapters(module, config):
    """Adapters as after training: B is no longer zero."""
    leaves, structure = jax.tree.flatten(module.init_lora(jax.random.key(2), config))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


@functools.partial(jax.jit, static_argnums=(1, 2))
def outputs(params, config, generates, lora):
    """Logits of a model that writes text, hidden states of the others."""
    tokens = jnp.asarray(TOKENS)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), TOKENS.shape)
    segment_ids = jnp.ones(TOKENS.shape, jnp.int32)
    if isinstance(config, encoder.EncoderConfig):
        mask = segment_mask(segment_ids)
        return encoder.hidden_states(params, config, tokens, positions, mask, lora=lora)
    mask = causal_mask(segment_ids)
    hidden, _ = decoder.hidden_states(params, config, tokens, positions, mask, lora=lora)
    return decoder.logits(params, config, hidden) if generates else hidden


@pytest.mark.parametrize("name", BASES)
def test_peft_loads_the_adapter_and_gives_our_outputs(name, tmp_path):
    fields, prefix, generates = BASES[name]
    save_base(tmp_path / "base", fields, prefix)
    config = dataclasses.replace(hf.read_config(tmp_path / "base"), lora_rank=3, lora_alpha=5.0)
    assert config.name_prefix == prefix
    params = hf.load_params(tmp_path / "base", config)
    lora = random_adapters(encoder if not fields else decoder, config)
    save_adapter(tmp_path / "adapter", config, lora, str(tmp_path / "base"), generates=generates)

    auto = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    base = auto.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        before = base(torch.from_numpy(TOKENS))[0].numpy()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(TOKENS))[0].numpy()
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(outputs(params, config, generates, lora), expected, atol=1e-4)

    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    held = peft.get_peft_model_state_dict(model)
    assert written.keys() == held.keys()
    assert len(written) == len(flatten_paths(lora)) * LAYERS


def test_the_adapters_name_the_layers_that_they_change(tmp_path):
    """Names after the layer's number, which servers that know no regular expressions read too."""
    for name, expected in (
        (
            "bert",
            [
                "attention.output.dense",
                *(f"attention.self.{name}" for name in ("key", "query", "value")),
                "intermediate.dense",
                "output.dense",
            ],
        ),
        (
            "decoder",
            [
                *(f"mlp.{name}_proj" for name in ("down", "gate", "up")),
                *(f"self_attn.{name}_proj" for name in "koqv"),
            ],
        ),
    ):
        fields, _, generates = BASES[name]
        sizes = {"vocab_size": 53, "width": 32, "mlp_width": 48, "num_layers": 2, "num_heads": 4}
        if fields:
            module, config = decoder, decoder.DecoderConfig(**sizes, num_kv_heads=2, head_dim=8)
        else:
            module, config = encoder, encoder.EncoderConfig(**sizes)
        config = dataclasses.replace(config, lora_rank=2)
        lora = module.init_lora(jax.random.key(0), config)
        save_adapter(tmp_path / name, config, lora, "owner/base", generates=generates)
        settings = hf.read_json(tmp_path / name / "adapter_config.json")
        assert settings["target_modules"] == expected
        assert settings["task_type"] == ("CAUSAL_LM" if fields else "FEATURE_EXTRACTION")
        assert settings["base_model_name_or_path"] == "owner/base"
