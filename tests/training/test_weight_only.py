"""Rounded weights load in transformers and are the nearest ones on the grid, by numpy."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from benchmarks import parity
from empathy_jax.models import hf
from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.training import weight_only

FIELDS = parity.DECODERS["qwen3 tied"] | {"hidden_size": 64, "intermediate_size": 96}
SIZES = {"vocab_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "hf"
    parity.torch_model(FIELDS).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("the card of the whole weights")
    return folder


def nearest(weight: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Symmetric rounding to `bits`, with the largest value of a group at the end of the grid."""
    groups = weight.reshape(len(weight), -1, size)
    step = np.abs(groups).max(-1, keepdims=True) / ((2**bits - 1) / 2)
    whole = np.clip(np.round(groups / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (whole * step).reshape(weight.shape)


@pytest.mark.parametrize("name", weight_only.BITS)
def test_transformers_loads_the_nearest_weights(name, source, tmp_path):
    target, bits = tmp_path / name, weight_only.BITS[name]
    config = hf.read_config(source)
    weight_only.write(source, target, config, name, {"README.md": "another card"}, 10**9)

    before, stored = (load_file(folder / "model.safetensors") for folder in (source, target))
    layer = "model.layers.1.mlp.up_proj.weight"
    assert layer not in stored
    assert stored[f"{layer}_packed"].nbytes == before[layer].size * bits // 8
    embedding = "model.embed_tokens.weight"
    assert stored[embedding].tobytes() == before[embedding].tobytes()
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (target / "README.md").read_text() == "another card"
    generation = "generation_config.json"
    assert (target / generation).read_text() == (source / generation).read_text()
    written = json.loads((target / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "compressed-tensors"

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():  # the library unpacks at the first call
        model(torch.tensor([[1, 2, 3]]))
    changed = 0
    for key, weight in before.items():
        found = model.get_parameter(key).detach().numpy()
        linear = key.endswith("_proj.weight")
        expected = nearest(weight, bits, 32) if linear else weight
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=key)
        changed += linear
    assert changed == 7 * config.num_layers


def test_the_group_is_the_largest_that_fits():
    for width, mlp_width, head_dim, expected in (
        (512, 1408, 64, 128),
        (4096, 12288, 128, 128),
        (64, 192, 32, 64),
        (64, 96, 32, 32),
    ):
        sizes = {"width": width, "mlp_width": mlp_width, "head_dim": head_dim}
        heads = {"num_heads": max(2, width // head_dim)}
        config = DecoderConfig(**{**SIZES, **sizes, **heads})
        assert weight_only.group_size(config) == expected
    with pytest.raises(ValueError, match=r"weight_only .* multiples of 32; .* 48"):
        weight_only.group_size(DecoderConfig(**SIZES, width=64, mlp_width=48, head_dim=32))


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_only.files, "write_text", full_disk)
    config = hf.read_config(source)
    with pytest.raises(OSError, match="No space"):
        weight_only.write(source, tmp_path / "int8", config, "int8", {"README.md": ""}, 10**9)
    assert not list(tmp_path.iterdir())
