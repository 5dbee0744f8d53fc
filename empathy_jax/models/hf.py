"""Hugging Face model directories: found and read; `hf_save` writes them.

Reading a directory and writing it back gives the same tensors under the same names, byte for byte.
Parameters come as numpy arrays, to be placed by whoever knows the devices.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.hf_config import config_from_hf, config_to_hf, read_json
from empathy_jax.models.hf_save import (
    INDEX_FILE,
    POSITION_IDS,
    SINGLE_FILE,
    TIED_HEAD,
    derived_shapes,
    param_table,
    save_model,
    whole_directory,
)
from empathy_jax.models.parameters import ParamSpec
from empathy_jax.pytree import unflatten_paths

__all__ = [
    "CheckpointError",
    "config_to_hf",
    "load_params",
    "param_table",
    "read_config",
    "read_json",
    "resolve",
    "save_model",
    "whole_directory",
]

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DERIVED_BUFFER = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
# Of the folders in a model only those of sentence-transformers' modules, 1_Pooling and the like.
_HUB_OTHER_FOLDERS = "[!0-9]*/*"


class CheckpointError(ValueError):
    """A checkpoint's tensors are not those of its configuration.

    Attributes:
        missing: names that the configuration needs and the files lack.
        unexpected: names that the files hold and the configuration does not know.
        mis_shaped: one line per tensor whose shape or dtype is not what is needed.
    """

    def __init__(self, path: Path, missing: list, unexpected: list, mis_shaped: list) -> None:
        self.missing, self.unexpected, self.mis_shaped = missing, unexpected, mis_shaped
        lines = [f"the tensors in {path} do not fit its config.json"]
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", mis_shaped),
        ):
            if names:
                lines.append(f"{title} ({len(names)}):")
                lines.extend(f"  {name}" for name in names)
        super().__init__("\n".join(lines))


def resolve(name_or_path: str | os.PathLike, field: str) -> Path:
    """The local directory of a model: a directory as it is, a hub id after download.

    Only configuration, tokenizer and safetensors files are fetched.

    Args:
        name_or_path: directory or hub id.
        field: of the config that it comes from, for messages.

    Raises:
        ValueError: when there is no such directory and no such model on the hub.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    name = str(name_or_path)
    if not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"{field} is {name!r}, which is neither a directory nor a hub id (owner/name)"
        )
    # Imported here: a local directory needs no network client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        local = snapshot_download(
            name, allow_patterns=list(_HUB_FILES), ignore_patterns=[_HUB_OTHER_FOLDERS]
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field} is {name!r}, which is not a directory here and could not be fetched from the "
            f"hub: {reason}"
        ) from error
    return Path(local)


def read_config(path: str | os.PathLike) -> DecoderConfig | EncoderConfig:
    """The configuration of a model directory, from config.json and the names of its tensors.

    The names say what config.json does not: their prefix, whether a tied head is stored a second
    time, whether BERT's pooler and position buffer are there. Without weights they are the usual.

    Raises:
        ValueError: for an unsupported model or switch, by name and value.
    """
    path = Path(path)
    config = config_from_hf(read_json(path / "config.json"))
    if not any((path / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return config
    names = set(_tensor_files(path))
    if isinstance(config, EncoderConfig):
        prefix = "bert." if any(name.startswith("bert.") for name in names) else ""
        return dataclasses.replace(
            config,
            name_prefix=prefix,
            pooler=f"{prefix}pooler.dense.weight" in names,
            stores_position_ids=prefix + POSITION_IDS in names,
        )
    bare = "embed_tokens.weight" in names
    if bare and TIED_HEAD not in names:
        # An embedding model's decoder predicts nothing, so its untied head was left out.
        config = dataclasses.replace(config, tie_embeddings=True)
    return dataclasses.replace(
        config,
        name_prefix="" if bare else "model.",
        stores_tied_head=config.tie_embeddings and TIED_HEAD in names,
    )


def load_params(
    path: str | os.PathLike,
    config: DecoderConfig | EncoderConfig,
    dtype: str | None = None,
) -> dict:
    """Parameters of a model directory, read tensor by tensor.

    Args:
        path: directory with model.safetensors, or shards and their index.
        config: what `read_config` gave for it.
        dtype: dtype of the parameters; None keeps that of the files.

    Returns:
        Nested dict of numpy arrays with the paths and shapes of the parameter table.

    Raises:
        CheckpointError: all missing, unexpected and mis-shaped tensors at once.
        ValueError: for files that are absent or damaged.
    """
    path = Path(path)
    files = _tensor_files(path)
    table = param_table(config)
    flat = {}
    with contextlib.ExitStack() as stack:
        readers = {name: _open(stack, path / name) for name in sorted(set(files.values()))}
        tensors = {name: readers[file] for name, file in files.items()}
        _check_tensors(path, config, table, tensors)
        for spec in table:
            flat[spec.path] = _read(spec, tensors, dtype)
        if getattr(config, "stores_tied_head", False):
            _check_tied_head(path, config, tensors)
    return unflatten_paths(flat)


def _open(stack: contextlib.ExitStack, file: Path) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def _tensor_files(path: Path) -> dict[str, str]:
    """Tensor name to file name, from the index or from the header of the single file."""
    if (path / INDEX_FILE).is_file():
        index = read_json(path / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise ValueError(f"{path / INDEX_FILE} lacks weight_map")
        return index
    if not (path / SINGLE_FILE).is_file():
        raise ValueError(
            f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}; pickled weights (.bin) are not "
            "read, convert them to safetensors"
        )
    with contextlib.ExitStack() as stack:
        return dict.fromkeys(_open(stack, path / SINGLE_FILE).keys(), SINGLE_FILE)


def _check_tensors(
    path: Path, config: Any, table: tuple[ParamSpec, ...], tensors: Mapping[str, Any]
) -> None:
    extras = derived_shapes(config)
    expected = {name: spec.hf_shape for spec in table for name in spec.hf_names()} | extras
    held = {name: set(reader.keys()) for name, reader in tensors.items()}
    missing = [name for name in expected if name not in tensors or name not in held[name]]
    ignored = {name for name in tensors if _DERIVED_BUFFER.search(name)}
    unexpected = sorted(set(tensors) - set(expected) - ignored)
    mis_shaped, dtypes = [], {}
    for name in sorted(set(expected) - set(missing)):
        found = tensors[name].get_slice(name)
        shape, dtype = tuple(found.get_shape()), found.get_dtype()
        dtypes[name] = dtype
        if shape != expected[name]:
            mis_shaped.append(f"{name}: {list(shape)}, needed {list(expected[name])}")
        elif dtype not in DTYPES and not name.endswith(POSITION_IDS):
            mis_shaped.append(f"{name}: dtype {dtype}, readable are {', '.join(DTYPES)}")
    for spec in table:
        kinds = {dtypes[name] for name in spec.hf_names() if name in dtypes}
        if len(kinds) > 1:
            mis_shaped.append(
                f"{spec.hf_name}: dtype differs by layer ({', '.join(sorted(kinds))})"
            )
    if missing or unexpected or mis_shaped:
        raise CheckpointError(path, missing, unexpected, mis_shaped)


def _read(spec: ParamSpec, tensors: Mapping[str, Any], dtype: str | None) -> np.ndarray:
    names = spec.hf_names()
    stored = DTYPES[tensors[names[0]].get_slice(names[0]).get_dtype()]
    parameter = np.empty(spec.shape, jnp.dtype(dtype or stored))
    layers = parameter if spec.stacked else parameter[None]
    for layer, name in enumerate(names):
        layers[layer] = spec.from_hf(tensors[name].get_tensor(name))
    return parameter


def _check_tied_head(path: Path, config: DecoderConfig, tensors: Mapping[str, Any]) -> None:
    name = f"{config.name_prefix}embed_tokens.weight"
    head, embedding = tensors[TIED_HEAD].get_tensor(TIED_HEAD), tensors[name].get_tensor(name)
    if head.dtype != embedding.dtype or head.tobytes() != embedding.tobytes():
        wrong = f"{TIED_HEAD}: differs from {name} though config.json has tie_word_embeddings"
        raise CheckpointError(path, [], [], [wrong])
