"""Hugging Face model directories: found and read; `hf_save` writes them.

Reading a directory and writing it back gives the same tensors under the same names, byte for byte.
Parameters come as numpy arrays, or laid out over devices: then each device's part is read and placed by
itself, and the host never holds more than one part of one parameter.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
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
from empathy_jax.pytree import flatten_paths, unflatten_paths

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
_ROWS = 4096  # of an embedding that are compared at a time
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
    shardings: Any = None,
) -> dict:
    """Parameters of a model directory, read tensor by tensor.

    Args:
        path: directory with model.safetensors, or shards and their index.
        config: what `read_config` gave for it.
        dtype: dtype of the parameters; None keeps that of the files.
        shardings: where each parameter goes, with the paths of the parameter table.

    Returns:
        Nested dict with the paths and shapes of the parameter table, of numpy arrays or, with
        `shardings`, of arrays laid out so.

    Raises:
        CheckpointError: all missing, unexpected and mis-shaped tensors at once.
        ValueError: for files that are absent or damaged.
    """
    path = Path(path)
    files = _tensor_files(path)
    table = param_table(config)
    flat, places = {}, None if shardings is None else flatten_paths(shardings)
    with contextlib.ExitStack() as stack:
        readers = {name: _open(stack, path / name) for name in sorted(set(files.values()))}
        tensors = {name: readers[file] for name, file in files.items()}
        _check_tensors(path, config, table, tensors)
        for spec in table:
            read = functools.partial(_read, spec, tensors, dtype)
            if places is None:
                flat[spec.path] = read((slice(None),) * len(spec.shape))
            else:
                flat[spec.path] = _placed(spec, read, places[spec.path])
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


def _placed(
    spec: ParamSpec, read: Callable[[tuple[slice, ...]], np.ndarray], place: Sharding
) -> jax.Array:
    """A parameter laid out; one part of it is on the host at a time, and read once."""
    holders = collections.defaultdict(list)
    for device, part in place.addressable_devices_indices_map(spec.shape).items():
        bounds = (axis.indices(size)[:2] for axis, size in zip(part, spec.shape, strict=True))
        holders[tuple(bounds)].append(device)
    arrays = []
    for bounds, devices in holders.items():
        values = read(tuple(slice(*bound) for bound in bounds))
        # To the end: copies under way would keep their parts on the host.
        arrays += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(spec.shape, place, arrays)


def _read(
    spec: ParamSpec, tensors: Mapping[str, Any], dtype: str | None, part: tuple[slice, ...]
) -> np.ndarray:
    """A part of a parameter, one slice for each of its axes."""
    names = spec.hf_names()
    stored = DTYPES[tensors[names[0]].get_slice(names[0]).get_dtype()]
    bounds = [axis.indices(size)[:2] for axis, size in zip(part, spec.shape, strict=True)]
    parameter = np.empty([last - first for first, last in bounds], jnp.dtype(dtype or stored))
    if spec.stacked:
        names, bounds = names[slice(*bounds[0])], bounds[1:]
    layers = parameter if spec.stacked else parameter[None]
    for layer, name in enumerate(names):
        layers[layer] = _read_layer(spec, tensors[name].get_slice(name), bounds)
    return parameter


def _read_layer(spec: ParamSpec, tensor: Any, bounds: list[tuple[int, int]]) -> np.ndarray:
    """A part of one layer, of which little more is read than the part."""
    shape = spec.layer_shape
    if spec.transform == "copy":
        return tensor[tuple(slice(*bound) for bound in bounds)]
    if spec.transform == "flatten":
        first, last = _span(shape, bounds)
        return _rest(tensor[first:last].reshape(-1, *shape[1:]), bounds)
    inputs = spec.num_inputs
    rows, columns = _span(shape[inputs:], bounds[inputs:]), _span(shape[:inputs], bounds[:inputs])
    matrix = tensor[slice(*rows), slice(*columns)].T
    split = matrix.reshape(
        bounds[0][1] - bounds[0][0],
        *shape[1:inputs],
        bounds[inputs][1] - bounds[inputs][0],
        *shape[inputs + 1 :],
    )
    others = [
        slice(None) if axis in (0, inputs) else slice(*bound) for axis, bound in enumerate(bounds)
    ]
    return split[tuple(others)]


def _span(shape: tuple[int, ...], bounds: list[tuple[int, int]]) -> tuple[int, int]:
    """Where the axes, joined in one, begin and end when the first of them is cut to its bounds."""
    inner = math.prod(shape[1:])
    return bounds[0][0] * inner, bounds[0][1] * inner


def _rest(cut: np.ndarray, bounds: list[tuple[int, int]]) -> np.ndarray:
    """An array whose first axis is cut already, with the others cut to their bounds."""
    return cut[(slice(None), *(slice(*bound) for bound in bounds[1:]))]


def _check_tied_head(path: Path, config: DecoderConfig, tensors: Mapping[str, Any]) -> None:
    name = f"{config.name_prefix}embed_tokens.weight"
    head, embedding = tensors[TIED_HEAD].get_slice(TIED_HEAD), tensors[name].get_slice(name)
    # A slice that goes beyond the end is an error here, unlike in numpy.
    starts = range(0, config.vocab_size, _ROWS)
    blocks = [slice(start, min(start + _ROWS, config.vocab_size)) for start in starts]
    is_same = head.get_dtype() == embedding.get_dtype() and all(
        head[block].tobytes() == embedding[block].tobytes() for block in blocks
    )
    if not is_same:
        wrong = f"{TIED_HEAD}: differs from {name} though config.json has tie_word_embeddings"
        raise CheckpointError(path, [], [], [wrong])
