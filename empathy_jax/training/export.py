"""The phase `export`: a model as a Hugging Face directory that transformers and servers load.

A reward model is a directory of sentence-transformers as well. An import without training goes
through untouched: same tensor names, same bytes. What is written is whole or absent: everything goes
to a sibling folder that is renamed at the end.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from empathy_jax import files, hosts, pytree, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder, hf, score_head, sentence_transformers_format
from empathy_jax.training import common, model_card
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import Model

DTYPES = ("", "float32", "bfloat16", "float16")


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes `hf/`: weights, config, tokenizer, card; of a policy also chat template and generation
    config, of a reward model also prompts, pooling and calibration."""
    began = time.monotonic()
    if config.export.dtype not in DTYPES:
        raise ValueError(
            f"config.export.dtype is {config.export.dtype!r}; allowed are float32, bfloat16, "
            "float16, or nothing to keep the dtype of the weights"
        )
    folder = workdirs.open_phase(workdir, "export", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    init = common.model_place(config, workdir)
    model = load(init, config)
    directory = folder / "hf"
    card = model_card.render(init, model, config)
    texts = {"README.md": card}
    if (scale := Path(init) / "calibration.json").exists():
        texts[scale.name] = scale.read_text(encoding="utf-8")
    write(directory, model, texts, config.export.dtype, config.export.max_shard_bytes)

    lines = usage(str(directory), model)
    print(f"[export] {directory}; to load it:", *lines, sep="\n  ", flush=True)
    written = hosts.from_lead(
        lambda: sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    )
    figures = [
        {"name": name, "before": None, "after": value}
        for name, value in (
            ("parameters", pytree.count_params(model.variables["params"])),
            ("bytes of weights", written),
        )
    ]
    more = {"model": init, "directory": str(directory), "usage": lines}
    return workdirs.finish(folder, "export", began, figures, **more)


def load(init: str, config: ConfigDict) -> Model:
    """The model to export in the dtypes it is stored in, adapters merged.

    Args:
      init: `WORKDIR/<phase>`, a Hugging Face directory, or a hub id.
      config: its `model.tokenizer`, `data.language` and `mesh` are read.

    Raises:
      ValueError: for a missing place, unfitting tensors, or a tokenizer that does not fit.
    """
    language, path = config.data.language, Path(init)
    layout = sharding.make_layout(config.mesh)
    if common.is_run(path):
        described = json.loads((path / "model.json").read_text(encoding="utf-8"))
        if described["embedding"] is not None:
            language = None
        return common.load_model(init, config.model, "config.model.init", language, layout)
    # Not through `load_model`, which casts all tensors to one dtype.
    found = common.find_hugging_face(init, "config.model.init")
    embedding = sentence_transformers_format.read(found)
    folder = sentence_transformers_format.transformer_folder(found)
    architecture = hf.read_config(folder)
    source = config.model.tokenizer or str(folder)
    if common.module_of(architecture) is decoder and embedding is None:
        tokenizer = tokenizers.load(source, language, architecture.vocab_size)
    else:
        tokenizer = tokenizers.load_plain(source, architecture.vocab_size)
    if config.model.tokenizer:
        tokenizers.check_same_ids(tokenizer, folder, "config.model.tokenizer", "config.model.init")
    shardings = common.hf_shardings(architecture, layout)
    params = hf.load_params(folder, architecture, shardings=shardings)
    hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    variables = {"params": params}
    if embedding is not None and (head := score_head.read(folder)) is not None:
        variables["head"] = head
        embedding = dataclasses.replace(embedding, has_head=True)
    return Model(architecture, variables, tokenizer, hf_config, embedding)


def write(
    directory: Path, model: Model, texts: Mapping[str, str], dtype: str, max_shard_bytes: int
) -> None:
    """Write the whole directory, or nothing.

    Args:
      directory: where; what a killed run has left beside it is removed.
      model: with adapters merged.
      texts: name to content of the files that go with it, such as README.md.
      dtype: of the written weights; empty: as they are.
      max_shard_bytes: size above which the weights are spread over several files.

    Raises:
      OSError: when the disk cannot hold it; nothing is left behind then.
    """
    if hosts.is_lead():
        for stale in directory.parent.glob(f".{directory.name}.*"):
            shutil.rmtree(stale)
    model = _without_output_head(model)
    params, tokenizer = model.variables["params"], model.tokenizer
    files.require_space(directory.parent, pytree.tree_bytes(params))
    # Generation stops at the end of the turn, whatever the base model stopped at.
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with hf.whole_directory(directory) as folder:
        hf.save_model(
            folder,
            model.config,
            params,
            dtype=dtype or None,
            max_shard_bytes=max_shard_bytes,
            source_config=model.hf_config,
            generation_config={name: id_ for name, id_ in tokens.items() if id_ is not None},
        )
        if not hosts.is_lead():
            return
        tokenizers.save(tokenizer, folder)
        if model.embedding is not None:
            sentence_transformers_format.write(folder, model.embedding, model.config)
        if "head" in model.variables:
            head = jax.device_get(model.variables["head"])
            save_file(
                {name: np.asarray(leaf) for name, leaf in head.items()}, folder / score_head.FILE
            )
        for name, text in texts.items():
            files.write_text(folder / name, text)


def _without_output_head(model: Model) -> Model:
    """A reward model without the head of its decoder that predicts tokens; others as they are.

    No vector is made with it, and the programs that make vectors have no place for it.
    """
    if model.embedding is None or model.module is not decoder:
        return model
    params = {name: tree for name, tree in model.variables["params"].items() if name != "head"}
    hf_config = model.hf_config and {**model.hf_config, "tie_word_embeddings": True}
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, tie_embeddings=True, stores_tied_head=False),
        variables={**model.variables, "params": params},
        hf_config=hf_config,
    )


def usage(directory: str, model: Model) -> list[str]:
    """Two lines of Python that load an exported directory, with the library it is made for."""
    if model.embedding is not None:
        load = f"model = SentenceTransformer({directory!r})"
        return ["from sentence_transformers import SentenceTransformer", load]
    name = "AutoModelForCausalLM" if model_card.is_policy(model) else "AutoModel"
    load = ", ".join(f"{kind}.from_pretrained({directory!r})" for kind in (name, "AutoTokenizer"))
    return [f"from transformers import {name}, AutoTokenizer", f"model, tokenizer = {load}"]
