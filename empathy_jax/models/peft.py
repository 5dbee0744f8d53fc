"""Adapters written in the format of the PEFT library, beside the base model they belong to.

PEFT names an adapter after its module in the torch model, so the names follow from the class that the
model is loaded with, whatever prefix the tensors of its checkpoint have: AutoModelForCausalLM keeps
the decoder under `model.`, AutoModel has its layers at the top.
"""

import dataclasses
import os

import jax
import numpy as np
from safetensors.numpy import save_file

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.hf_save import param_table, whole_directory, write_json
from empathy_jax.models.lora import adapted_specs, check_rank
from empathy_jax.pytree import flatten_paths
from empathy_jax.types import Params

ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(
    path: str | os.PathLike,
    config: DecoderConfig | EncoderConfig,
    lora: Params,
    base_model: str,
    *,
    generates: bool,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, whole or not at all.

    PEFT's matrices are torch's: A of shape [r, inputs], B of shape [outputs, r].

    Args:
        path: directory to make; an older adapter there is replaced.
        config: configuration of the base model, with the adapters' rank and alpha.
        lora: adapter tree as `init_adapters` makes it.
        base_model: hub id or directory of the base model, for PEFT to load.
        generates: whether the model writes text and is loaded with AutoModelForCausalLM; an encoder,
            or a decoder that makes vectors, is loaded with AutoModel.

    Raises:
        ValueError: when an adapter's rank is not `config.lora_rank`, or `path` holds other files.
    """
    adapters = flatten_paths(lora)
    in_torch = dataclasses.replace(config, name_prefix="model." if generates else "")
    tensors, modules = {}, set()
    for spec in adapted_specs(param_table(in_torch)):
        folder = spec.path.removesuffix("kernel")
        if folder + "a" not in adapters:
            continue
        a, b = (np.asarray(jax.device_get(adapters[folder + name])) for name in "ab")
        check_rank(folder + "a", a, config)
        for layer, name in enumerate(spec.hf_names()):
            module = name.removesuffix(".weight")
            modules.add(_module_suffix(module))
            prefix = f"base_model.model.{module}"
            matrix_a = a[layer].reshape(-1, config.lora_rank).T
            matrix_b = b[layer].reshape(config.lora_rank, -1).T
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(matrix_a)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(matrix_b)
    with whole_directory(path, (ADAPTER_FILE,)) as folder:
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        settings = _adapter_config(config, modules, base_model, generates)
        write_json(folder / CONFIG_FILE, settings)


def _module_suffix(module: str) -> str:
    """The part of a module's name after its layer's number, which PEFT looks for."""
    parts = module.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[number + 1 :])


def _adapter_config(
    config: DecoderConfig | EncoderConfig, modules: set[str], base_model: str, generates: bool
) -> dict:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if generates else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_model,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
