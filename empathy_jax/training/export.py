"""The phase `export`: a model as directories that the libraries of others load.

`hf/` is a Hugging Face directory for transformers and servers, of a reward model one of
sentence-transformers as well. An import without training goes through untouched: same tensor names,
same bytes. On request beside it: `adapter/`, the trained adapters for PEFT, and `int8/` or `int4/`,
rounded weights. What is written is whole or absent: everything goes to a sibling folder that is
renamed at the end. Then, on request, the export is loaded and compared (`verify.py`) and sent to a hub
(`upload.py`).
"""

import dataclasses
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
from empathy_jax.models import decoder, hf, peft, score_head, sentence_transformers_format
from empathy_jax.sharding import Layout
from empathy_jax.training import common, lineage, model_card, upload, verify, weight_only
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import Model

HF, ADAPTER, BASE = "hf", "adapter", "base"
DTYPES = ("", "float32", "bfloat16", "float16")


def run(config: ConfigDict, workdir: Path) -> dict:
    """Writes `hf/`: weights, config, tokenizer, card; of a policy also chat template and generation
    config, of a reward model also prompts, pooling and calibration; then what else is asked for.

    A finished export is verified or sent later by the same command with the fields for it.
    """
    began = time.monotonic()
    _check(config.export)
    folder = workdirs.open_phase(workdir, "export", config)
    summary = workdirs.finished(folder)
    if summary is None:
        summary = _export(config, workdir, folder, began)
    if config.export.verify and not summary.get("verified"):
        summary = _verify(config, workdir, folder, summary)
    if config.export.upload:
        part = config.export.upload_part
        _refuse_wrong(folder, part)
        upload.run(folder / part, config.export.upload, config.export.dry_run)
    return summary


def _check(section: ConfigDict) -> None:
    """Refuses wrong values, and a package that is not there, before anything is written."""
    parts = (HF, ADAPTER, *weight_only.BITS)
    for name, allowed in (
        ("dtype", DTYPES),
        ("weight_only", ("", *weight_only.BITS)),
        ("upload_part", parts),
    ):
        if section[name] not in allowed:
            words = ", ".join(repr(value) for value in allowed)
            raise ValueError(f"config.export.{name} is {section[name]!r}; allowed are {words}")
    alone = ("adapter", "weight_only", "verify", "upload")
    if hosts.count() > 1 and (asked := [name for name in alone if section[name]]):
        raise ValueError(
            f"config.export.{asked[0]} is {section[asked[0]]!r} in a run of {hosts.count()} processes, "
            "which write hf/ alone; export again with one process"
        )
    if section.weight_only:
        verify.require("config.export.weight_only", "torch", "compressed_tensors")
    if section.verify:
        verify.require("config.export.verify", "torch")
    if section.upload:
        upload.check_name(section.upload)


def _export(config: ConfigDict, workdir: Path, folder: Path, began: float) -> dict:
    init, section = common.model_place(config, workdir), config.export
    trained = load(init, config)
    model = common.merged(trained)
    if section.weight_only and not model_card.is_policy(model):
        raise ValueError(
            f"config.export.weight_only is {section.weight_only!r}, but {init} is a reward model; "
            "only models that write are rounded: leave it empty"
        )

    def texts(part: str) -> dict[str, str]:
        found = {"README.md": model_card.render(init, model, config, workdir, part)}
        if (scale := Path(init) / "calibration.json").exists():
            found[scale.name] = scale.read_text(encoding="utf-8")
        return found

    if section.adapter:
        base = _adapter_base(init, trained, folder, section.max_shard_bytes)
        write_adapter(folder / ADAPTER, trained, base, texts(ADAPTER))
    directory = folder / HF
    write(directory, model, texts(HF), section.dtype, section.max_shard_bytes)
    if section.weight_only:
        name = section.weight_only
        weight_only.write(
            directory, folder / name, model.config, name, texts(name), section.max_shard_bytes
        )

    lines = model_card.usage(str(directory), model)
    print(f"[export] {directory}; to load it:", *lines, sep="\n  ", flush=True)
    written = hosts.from_lead(lambda: _bytes_of_weights(folder))
    figures = [
        {"name": name, "before": None, "after": value}
        for name, value in (
            ("parameters", pytree.count_params(model.variables["params"])),
            *((f"bytes of weights in {part}/", size) for part, size in written.items()),
        )
    ]
    more = {"model": init, "directory": str(directory), "usage": lines}
    return workdirs.finish(folder, "export", began, figures, **more)


def _verify(config: ConfigDict, workdir: Path, folder: Path, summary: dict) -> dict:
    """Compares every part with the model it was made of; cards and summary say what came out.

    Raises:
      ValueError: when a part gives other outputs than that model.
    """
    model = load(summary["model"], config)
    parts = [part for part in (HF, ADAPTER, *weight_only.BITS) if (folder / part).exists()]
    found = verify.run(folder, parts, model, config.export.dtype, config.mesh)
    for part, check in found.items():
        card = model_card.render(summary["model"], model, config, workdir, part, check)
        files.write_text(folder / part / "README.md", card)
        print(f"[export] {part}/: {model_card.describe_check(check)}", flush=True)
    _refuse_wrong(folder, *found)
    summary = {**summary, "verified": True}
    files.write_json(folder / "summary.json", summary)
    return summary


def _refuse_wrong(folder: Path, *parts: str) -> None:
    """Stops where a part was compared and found to be another model."""
    path = folder / verify.FILE
    found = lineage.read_json(path) if path.exists() else {}
    wrong = [str(folder / part) for part in parts if part in found and not found[part]["passed"]]
    if wrong:
        raise ValueError(
            f"{' and '.join(wrong)} gives other outputs than the model it was made of; {path} has "
            f"the figures. Delete {folder} and export again"
        )


def load(init: str, config: ConfigDict) -> Model:
    """The model to export in the dtypes it is stored in, adapters beside the weights.

    Args:
      init: `WORKDIR/<phase>`, a Hugging Face directory, or a hub id.
      config: its `model.tokenizer`, `mesh` and, for an import, `data.language` and `data.format` are
        read.

    Raises:
      ValueError: for a missing place, unfitting tensors, or a tokenizer that does not fit.
    """
    path = Path(init)
    if common.is_run(path):
        model = common.restore_run(path, sharding.make_layout(config.mesh))
        own_tokenizer = path / "tokenizer"
    else:
        model, own_tokenizer = _load_import(init, sharding.make_layout(config.mesh))
    source = config.model.tokenizer or str(own_tokenizer)
    if model_card.is_policy(model):
        stages, _ = lineage.trace(init)
        language = model_card.language_of(stages, config)
        form = model_card.form_of(stages, config)
        tokenizer = tokenizers.load(source, language, model.config.vocab_size, form)
    else:
        tokenizer = tokenizers.load_plain(source, model.config.vocab_size)
    if config.model.tokenizer:
        tokenizers.check_same_ids(
            tokenizer, own_tokenizer, "config.model.tokenizer", "config.model.init"
        )
    return dataclasses.replace(model, tokenizer=tokenizer)


def _load_import(init: str, layout: Layout) -> tuple[Model, Path]:
    """An imported model, each tensor in its own dtype, without tokenizer; and where that lies."""
    found = common.find_hugging_face(init, "config.model.init")
    embedding = sentence_transformers_format.read(found)
    folder = sentence_transformers_format.transformer_folder(found)
    architecture = hf.read_config(folder)
    params = hf.load_params(
        folder, architecture, shardings=common.hf_shardings(architecture, layout)
    )
    variables = {"params": params}
    if embedding is not None and (head := score_head.read(folder)) is not None:
        variables["head"] = head
        embedding = dataclasses.replace(embedding, has_head=True)
    return Model(
        architecture, variables, None, hf.read_json(folder / "config.json"), embedding
    ), folder


def _adapter_base(init: str, model: Model, folder: Path, max_shard_bytes: int) -> str:
    """What the adapters stand on: the hub id or directory that the run began with, else `base/`.

    Raises:
      ValueError: for a model without adapters.
    """
    if "lora" not in model.variables:
        raise ValueError(
            f"config.export.adapter is True, but {init} was trained without adapters "
            "(config.model.lora_rank=0); leave it False"
        )
    stages, base = lineage.trace(init)
    if len(stages) == 1 and base:
        if lineage.is_hub_id(base):
            return base
        return str(sentence_transformers_format.transformer_folder(Path(base)).resolve())
    variables = {name: tree for name, tree in model.variables.items() if name != "lora"}
    bare = dataclasses.replace(model, variables=variables)
    write(folder / BASE, bare, {}, "", max_shard_bytes)
    return str((folder / BASE).resolve())


def write_adapter(directory: Path, model: Model, base: str, texts: Mapping[str, str]) -> None:
    """Write adapters, tokenizer and texts for PEFT: the whole directory, or nothing.

    Args:
      directory: where; what a killed run has left beside it is removed.
      model: with adapters beside the weights.
      base: hub id or directory of the weights that the adapters were trained on.
      texts: name to content of further files.
    """
    _remove_unfinished(directory)
    with hf.whole_directory(directory, (peft.ADAPTER_FILE,)) as folder:
        generates, lora = model_card.is_policy(model), model.variables["lora"]
        peft.save_adapter(folder, model.config, lora, base, generates=generates)
        tokenizers.save(model.tokenizer, folder)
        _write_head(folder, model)
        for name, text in texts.items():
            files.write_text(folder / name, text)


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
    _remove_unfinished(directory)
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
        _write_head(folder, model)
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


def _write_head(folder: Path, model: Model) -> None:
    """The head that grades answers, where there is one."""
    if "head" in model.variables:
        head = jax.device_get(model.variables["head"])
        save_file({name: np.asarray(leaf) for name, leaf in head.items()}, folder / score_head.FILE)


def _remove_unfinished(directory: Path) -> None:
    """Removes what a killed run has left beside a directory."""
    if not hosts.is_lead():
        return
    for stale in directory.parent.glob(f".{directory.name}.*"):
        shutil.rmtree(stale)


def _bytes_of_weights(folder: Path) -> dict[str, int]:
    """Of each part that was written."""
    return {
        part: sum(path.stat().st_size for path in (folder / part).glob("*.safetensors"))
        for part in (ADAPTER, HF, *weight_only.BITS)
        if (folder / part).exists()
    }
