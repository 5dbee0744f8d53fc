"""Weights rounded to 8 or 4 bits, in the format of the library compressed-tensors.

vLLM and transformers load the format. The library needs torch and is imported here alone. Rounding to
nearest, symmetric, one scale for a group of neighbouring inputs; activations are not rounded. Nothing
is calibrated: for 4 bits methods that are (GPTQ, AWQ) lose less, and read `hf/` as their input.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from empathy_jax import files
from empathy_jax.models import hf
from empathy_jax.models.decoder import DecoderConfig

BITS = {"int8": 8, "int4": 4}
GROUP_SIZES = (128, 64, 32)  # inputs that share a scale; those that fast kernels know


def write(
    source: Path,
    target: Path,
    config: DecoderConfig,
    name: str,
    texts: Mapping[str, str],
    max_shard_bytes: int,
) -> None:
    """Write the directory with rounded weights, whole or not at all.

    Args:
      source: Hugging Face directory of a decoder; all but its weights is taken over.
      target: directory to make; an older one is replaced.
      config: of the decoder.
      name: one of `BITS`.
      texts: name to content of files that differ from those of `source`.
      max_shard_bytes: size above which the weights are spread over several files.

    Raises:
      ValueError: when no group size fits the layers.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
    from transformers import AutoModelForCausalLM

    size = group_size(config)
    for stale in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(stale)
    rounding = QuantizationArgs(num_bits=BITS[name], strategy="group", group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=rounding)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").requires_grad_(False)
    groups = {"group_0": scheme}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            scale, _ = compute_dynamic_scales_and_zp(module.weight, rounding, module)
            module.weight_scale.copy_(scale)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    with hf.whole_directory(target) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_bytes)
        compressor.update_config(folder)
        for path in source.iterdir():
            if path.name != "config.json" and "safetensors" not in path.name:
                shutil.copy2(path, folder / path.name)
        for file, text in texts.items():
            files.write_text(folder / file, text)


def group_size(config: DecoderConfig) -> int:
    """The largest group that divides the inputs of every linear layer.

    Raises:
      ValueError: when there is none.
    """
    inputs = {config.width, config.num_heads * config.head_dim, config.mlp_width}
    for size in GROUP_SIZES:
        if all(length % size == 0 for length in inputs):
            return size
    raise ValueError(
        f"config.export.weight_only needs layers whose inputs are multiples of {GROUP_SIZES[-1]}; "
        f"those of this model are {', '.join(map(str, sorted(inputs)))}; leave it empty"
    )
