"""Hugging Face model directories, written whole or not at all.

One tensor of the checkpoint is on the host at a time, whatever the size of the model. Where the
parameters lie over several processes, all of them call `save_model` and the lead writes.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from empathy_jax import hosts
from empathy_jax.models import decoder, encoder, safetensors_file
from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.hf_config import config_to_hf
from empathy_jax.models.parameters import ParamSpec
from empathy_jax.pytree import flatten_paths
from empathy_jax.types import Params

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
TIED_HEAD = "lm_head.weight"
POSITION_IDS = "embeddings.position_ids"


class _Entry(NamedTuple):
    """One tensor to be written: a layer of a parameter, or (without spec) the position numbers."""

    name: str
    spec: ParamSpec | None
    layer: int
    num_bytes: int


def param_table(config: DecoderConfig | EncoderConfig) -> tuple[ParamSpec, ...]:
    """The parameter table of either architecture."""
    module = encoder if isinstance(config, EncoderConfig) else decoder
    return module.param_table(config)


def derived_shapes(config: DecoderConfig | EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that this checkpoint stores beside the parameters, and that follow from others."""
    if isinstance(config, EncoderConfig):
        name = config.name_prefix + POSITION_IDS
        return {name: (1, config.max_positions)} if config.stores_position_ids else {}
    return {TIED_HEAD: (config.vocab_size, config.width)} if config.stores_tied_head else {}


def save_model(
    path: str | os.PathLike,
    config: DecoderConfig | EncoderConfig,
    params: Params,
    *,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    source_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory that Hugging Face libraries load; whole or not at all.

    Args:
        path: directory to make; an older model there is replaced.
        config: configuration of the parameters.
        params: parameter tree, adapters merged.
        dtype: dtype of the files; None keeps that of the parameters.
        max_shard_bytes: size above which the tensors are spread over several files.
        source_config: content of the config.json that the model came with; None makes a new one.
        generation_config: content of generation_config.json (decoders only); None makes it from
            the token ids in `source_config`.

    Raises:
        ValueError: when `params` are not those of `config`, or `path` holds something else.
    """
    table, flat = param_table(config), flatten_paths(params)
    _check_params(table, flat)
    hf_config = dict(source_config) if source_config is not None else config_to_hf(config)
    written = str(jnp.dtype(dtype or flat[table[0].path].dtype))
    for key in {"dtype", "torch_dtype"} & set(hf_config):
        hf_config[key] = written
    with whole_directory(path) as folder:
        write_json(folder / "config.json", hf_config)
        if isinstance(config, DecoderConfig):
            made = generation_config if generation_config is not None else _generation(hf_config)
            write_json(folder / "generation_config.json", made)
        _write_tensors(folder, _entries(config, table, flat, dtype), flat, dtype, max_shard_bytes)


@contextlib.contextmanager
def whole_directory(
    path: str | os.PathLike, replaceable: tuple[str, ...] = (SINGLE_FILE, INDEX_FILE)
) -> Iterator[Path]:
    """A temporary sibling directory to write into, renamed to `path` when the block ends well.

    Processes other than the lead write nothing, and are given `path` itself.

    Args:
        path: directory to make.
        replaceable: an older directory is replaced when it holds one of these files.

    Raises:
        ValueError: when `path` is a file, or a directory that holds only something else.
    """
    path = Path(path)
    if not hosts.is_lead():
        yield path
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; choose another directory for the model")
    older = any((path / name).is_file() for name in replaceable)
    if path.is_dir() and any(path.iterdir()) and not older:
        raise ValueError(f"{path} holds other files; choose a new directory for the model")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder.chmod(0o755)
        yield folder
        if older:
            # A directory that holds files cannot be replaced by rename: move it aside first.
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, aside)
            os.replace(folder, path)
            shutil.rmtree(aside)
        else:
            os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _generation(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: hf_config[name] for name in names if hf_config.get(name) is not None}


def _check_params(table: tuple[ParamSpec, ...], flat: Mapping[str, Any]) -> None:
    expected = {spec.path: spec.shape for spec in table}
    wrong = [f"{path} is missing" for path in expected if path not in flat]
    wrong += [f"{path} is not a parameter of it" for path in flat if path not in expected]
    wrong += [
        f"{path} has shape {tuple(flat[path].shape)}, needed {shape}"
        for path, shape in expected.items()
        if path in flat and tuple(flat[path].shape) != shape
    ]
    if wrong:
        raise ValueError("params do not fit the configuration: " + "; ".join(wrong))


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON file, in UTF-8; of several processes the lead does."""
    if not hosts.is_lead():
        return
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _entries(
    config: DecoderConfig | EncoderConfig,
    table: tuple[ParamSpec, ...],
    flat: Mapping[str, Any],
    dtype: str | None,
) -> list[_Entry]:
    """Everything to be written, parameter by parameter so that one at a time is on the host."""
    entries = []
    for spec in table:
        itemsize = jnp.dtype(dtype or flat[spec.path].dtype).itemsize
        num_bytes = int(np.prod(spec.hf_shape, dtype=np.int64)) * itemsize
        names = list(spec.hf_names())
        if spec.path == "embed/embedding" and TIED_HEAD in derived_shapes(config):
            names.append(TIED_HEAD)
        for layer, name in enumerate(names):
            entries.append(_Entry(name, spec, layer if spec.stacked else 0, num_bytes))
    for name, shape in derived_shapes(config).items():
        if name != TIED_HEAD:
            entries.append(_Entry(name, None, shape[-1], 8 * shape[-1]))
    return entries


def _write_tensors(
    folder: Path,
    entries: list[_Entry],
    flat: Mapping[str, Any],
    dtype: str | None,
    max_shard_bytes: float,
) -> None:
    shards = _plan_shards(entries, max_shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        by_name = {entry.name: entry for entry in shard}
        weight_map |= dict.fromkeys(by_name, file)
        safetensors_file.write(
            folder / file,
            {name: _described(entry, flat, dtype) for name, entry in by_name.items()},
            lambda name, entries=by_name: _fetch(entries[name], flat, dtype),
            # What transformers looks for to know the layout of the matrices.
            {"format": "pt"},
        )
    if len(shards) > 1:
        total = sum(entry.num_bytes for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX_FILE, index)


def _plan_shards(entries: list[_Entry], max_shard_bytes: float) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.num_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.num_bytes
    return shards


def _described(
    entry: _Entry, flat: Mapping[str, Any], dtype: str | None
) -> safetensors_file.Tensor:
    if entry.spec is None:
        return safetensors_file.Tensor("int64", (1, entry.layer))
    kept = str(jnp.dtype(dtype or flat[entry.spec.path].dtype))
    return safetensors_file.Tensor(kept, entry.spec.hf_shape)


def _fetch(entry: _Entry, flat: Mapping[str, Any], dtype: str | None) -> np.ndarray:
    """A tensor of the checkpoint, on the host of every process."""
    if entry.spec is None:
        return np.arange(entry.layer, dtype=np.int64)[None]
    layer = flat[entry.spec.path]
    if isinstance(layer, jax.Array):
        # A parameter keeps what the host reads of it; a copy does not outlive this function.
        layer = _take(layer, entry.layer) if entry.spec.stacked else jnp.copy(layer)
    elif entry.spec.stacked:
        layer = layer[entry.layer]
    if isinstance(layer, jax.Array) and not layer.is_fully_addressable:
        layer = multihost_utils.process_allgather(layer, tiled=True)
    layer = np.asarray(layer)
    return entry.spec.to_hf(layer if dtype is None else layer.astype(jnp.dtype(dtype)))


@jax.jit
def _take(stacked: jax.Array, index: jax.Array) -> jax.Array:
    """One layer; the index is no part of what is compiled."""
    return jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)
