"""Directories of the library sentence-transformers: a model, and how its texts become vectors.

Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084. Beside the Hugging Face model lie the
list of modules (Transformer, Pooling, Normalize), the settings of each, and the prompts. Both forms
of the settings are read, and the older is written: the library reads that in any version. A setting
that changes the vectors in a way that is not ours is refused by name.

One thing differs. A control token typed in a text ([SEP], <|im_end|>) stays plain text here, as it
does in the library for a directory that `write` made, but not for every directory it finds.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from empathy_jax import files
from empathy_jax.models.decoder import DecoderConfig
from empathy_jax.models.encoder import EncoderConfig
from empathy_jax.models.hf_config import config_from_hf, read_json
from empathy_jax.models.pooling import Embedding

MODULES_FILE = "modules.json"
MODEL_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
MODULE_FILE = "config.json"

_LIBRARY = "sentence_transformers."
_MODULES = ("Transformer", "Pooling", "Normalize")
_FOLDERS = ("", "1_Pooling", "2_Normalize")
# Ours by the library's name, and the library's name by that of its older switch.
_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_OLDER_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Where the library looks for an answer's prompt, in its order.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")

# The values of each setting that mean what we compute; absent, null and empty mean it too.
_MODEL_SWITCHES = {"model_type": ("SentenceTransformer",), "truncate_dim": ()}
_TRANSFORMER_SWITCHES = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "module_output_name": ("token_embeddings",),
    "do_lower_case": (False,),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
    "processing_kwargs": (),
    **dict.fromkeys(("model_args", "model_kwargs"), ({"add_pooling_layer": False},)),
    **dict.fromkeys(("tokenizer_args", "processor_kwargs"), ()),
    **dict.fromkeys(("config_args", "config_kwargs"), ()),
}
_POOLING_SWITCHES = {"include_prompt": (True,)}
_NORMALIZE_SWITCHES = dict.fromkeys(
    ("module_input_name", "module_output_name"), ("sentence_embedding",)
)


def write(folder: Path, embedding: Embedding, config: DecoderConfig | EncoderConfig) -> None:
    """Add to a model directory what `sentence_transformers.SentenceTransformer(folder)` needs.

    Args:
        folder: Hugging Face directory with weights, config.json and tokenizer.
        embedding: how its texts become vectors.
        config: of the weights in `folder`.

    Raises:
        ValueError: when `folder` holds no tokenizer_config.json.
    """
    tokenizer = read_json(folder / TOKENIZER_FILE) | {
        "model_max_length": embedding.max_tokens,
        "split_special_tokens": True,  # what people type is data
    }
    for name, value in (_settings(embedding, config) | {TOKENIZER_FILE: tokenizer}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        files.write_json(folder / name, value)


def _settings(embedding: Embedding, config: DecoderConfig | EncoderConfig) -> dict[str, Any]:
    """Content of each of the library's files, in the form of its versions before 5.4."""
    transformer: dict[str, Any] = {"max_seq_length": embedding.max_tokens, "do_lower_case": False}
    if isinstance(config, EncoderConfig) and not config.pooler:
        # Else transformers makes a pooler, which nothing uses, and warns that it is not trained.
        transformer["model_args"] = {"add_pooling_layer": False}
    modes = {old: _POOLINGS.get(new) == embedding.pooling for old, new in _OLDER_POOLINGS.items()}
    normalize = {name: value for name, (value,) in _NORMALIZE_SWITCHES.items()}
    return {
        MODULES_FILE: [
            {"idx": i, "name": str(i), "path": path, "type": f"{_LIBRARY}models.{name}"}
            for i, (name, path) in enumerate(zip(_MODULES, _FOLDERS, strict=True))
        ],
        MODEL_FILE: {
            "model_type": "SentenceTransformer",
            "prompts": {"query": embedding.query_prompt, "document": embedding.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        TRANSFORMER_FILE: transformer,
        f"{_FOLDERS[1]}/{MODULE_FILE}": {
            "word_embedding_dimension": config.width,
            **modes,
            "include_prompt": True,
        },
        f"{_FOLDERS[2]}/{MODULE_FILE}": normalize,
    }


def read(folder: Path) -> Embedding | None:
    """How the texts of a directory become vectors; None when it has no modules.json.

    Cosine normalises, so a directory without Normalize is read as one with it.

    Args:
        folder: as `SentenceTransformer(folder)` takes it; the weights may lie in a folder of it.

    Raises:
        ValueError: for modules and settings that are not ours, with the file and the value.
    """
    modules = _module_folders(folder)
    if modules is None:
        return None
    similarities = ("cosine", "dot") if "Normalize" in modules else ("cosine",)
    switches = _MODEL_SWITCHES | {"similarity_fn_name": similarities}
    settings = _read_settings(folder / MODEL_FILE, switches)
    if "Normalize" in modules:
        _read_settings(modules["Normalize"] / MODULE_FILE, _NORMALIZE_SWITCHES)
    prompts = settings.get("prompts") or {}
    document = next((name for name in _DOCUMENT_PROMPTS if name in prompts), "document")
    return Embedding(
        pooling=_read_pooling(modules["Pooling"] / MODULE_FILE),
        max_tokens=_read_max_tokens(modules["Transformer"]),
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get(document) or "",
    )


def transformer_folder(folder: Path) -> Path:
    """Where config.json, weights and tokenizer lie: `folder`, or in old directories one in it.

    Raises:
        ValueError: for modules that are not ours.
    """
    modules = _module_folders(folder)
    return folder if modules is None else modules["Transformer"]


def _module_folders(folder: Path) -> dict[str, Path] | None:
    """Name of each module to its folder; None when there is no modules.json."""
    file = folder / MODULES_FILE
    if not file.is_file():
        return None
    try:
        modules = [
            (module["type"], Path(module["path"])) for module in json.loads(file.read_text("utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a list of modules with type and path: {error!r}"
        ) from error
    names = [_module_name(type_) for type_, _ in modules]
    if tuple(names) not in (_MODULES, _MODULES[:2]):
        raise ValueError(
            f"{file} lists {', '.join(names) or 'nothing'}; supported are Transformer and Pooling, "
            "with or without Normalize at the end"
        )
    for _, path in modules:
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{file} has path {str(path)!r}, it must lie in the model's directory")
    return {name: folder / path for name, (_, path) in zip(names, modules, strict=True)}


def _module_name(type_: str) -> str:
    """`sentence_transformers.models.Pooling` is Pooling; a class of anyone else keeps its path."""
    name = type_.rpartition(".")[2]
    return name if type_.startswith(_LIBRARY) and name in _MODULES else type_


def _read_pooling(file: Path) -> str:
    settings = read_json(file)
    _refuse_others(file, settings, _POOLING_SWITCHES)
    found = settings.get("pooling_mode")
    if found is None:
        found = [mode for switch, mode in _OLDER_POOLINGS.items() if settings.get(switch)]
    modes = [found] if isinstance(found, str) else found
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ValueError(
            f"the pooling of {file} is {' + '.join(modes) or 'none'}, supported is one of "
            f"{', '.join(_POOLINGS)}"
        )
    return _POOLINGS[modes[0]]


def _read_max_tokens(folder: Path) -> int:
    """The library's limit, which it takes from the tokenizer when it has none of its own."""
    limit = _read_settings(folder / TRANSFORMER_FILE, _TRANSFORMER_SWITCHES).get("max_seq_length")
    if limit is None:
        limit = _read_settings(folder / TOKENIZER_FILE, {}).get("model_max_length", math.inf)
    return min(limit, config_from_hf(read_json(folder / "config.json")).max_positions)


def _read_settings(file: Path, switches: Mapping[str, tuple]) -> dict[str, Any]:
    """The settings in a file that need not be there; see `_refuse_others`."""
    settings = read_json(file) if file.is_file() else {}
    _refuse_others(file, settings, switches)
    return settings


def _refuse_others(file: Path, settings: Mapping[str, Any], switches: Mapping[str, tuple]) -> None:
    for name, supported in switches.items():
        value = settings.get(name)
        if value not in (None, {}, *supported):
            wanted = " or ".join(map(repr, supported)) or "none"
            raise ValueError(f"{name} is {value!r} in {file}, supported is {wanted}")
