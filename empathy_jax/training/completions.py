"""Completions of questions with the engine, judged and ready to be written or shown.

Several processes share the prompts out, and all get all completions.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, hosts, replicas
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation import engine
from empathy_jax.sharding import Layout
from empathy_jax.training.common import Model


def sampling(config: ConfigDict) -> engine.SamplingConfig:
    """The engine's settings from `config.sampling` and the completion limit."""
    return engine.SamplingConfig(
        max_new_tokens=config.data.max_completion_tokens,
        temperature=config.sampling.temperature,
        top_k=config.sampling.top_k,
        top_p=config.sampling.top_p,
        min_p=config.sampling.min_p,
    )


def generate(
    key: jax.Array,
    variables: dict[str, Any],
    model: Model,
    prompts: list[list[int]],
    config: ConfigDict,
    samples_per_prompt: int = 1,
    first: int = 0,
    row_ids: Sequence[int] | None = None,
) -> engine.Completions:
    """Sampled completions of prompts, those of one prompt side by side.

    `first` is the number of the first prompt among those that share the key: however these are cut
    into calls, and calls into the shares of processes, they get the same samples. `row_ids` names the
    random stream of each completion instead.
    """
    if row_ids is None:
        first_row = first * samples_per_prompt
        row_ids = range(first_row, first_row + len(prompts) * samples_per_prompt)
    if hosts.count() == 1:
        return _generate(key, variables, model, prompts, config, samples_per_prompt, row_ids)
    own = hosts.share(len(prompts))
    mesh = jax.tree.leaves(variables["params"])[0].sharding.mesh
    layout = Layout(mesh, tuple(tuple(rule) for rule in config.mesh.rules))
    used = {name: tree for name, tree in variables.items() if name in ("params", "lora")}
    copied, own_mesh = replicas.own_copy(used, model.module.param_table(model.config), layout)
    own_rows = slice(own.start * samples_per_prompt, own.stop * samples_per_prompt)
    key_data = np.asarray(jax.random.key_data(key))
    with jax.set_mesh(own_mesh):
        key = jax.random.wrap_key_data(key_data)  # which belonged to the mesh of all
        made = _generate(
            key, copied, model, prompts[own], config, samples_per_prompt, row_ids[own_rows]
        )
    return _joined(made, len(prompts), samples_per_prompt)


def _joined(made: engine.Completions, prompts: int, samples: int) -> engine.Completions:
    """The completions of all processes, in the order of the prompts, from each process's own."""
    whole = {}
    for field in dataclasses.fields(made):
        values = getattr(made, field.name)
        by_prompt = values.reshape(-1, samples, *values.shape[1:])
        found = hosts.gather_shares(by_prompt, prompts)
        whole[field.name] = found.reshape(-1, *values.shape[1:])
    return engine.Completions(**whole)


def _generate(
    key: jax.Array,
    variables: dict[str, Any],
    model: Model,
    prompts: list[list[int]],
    config: ConfigDict,
    samples_per_prompt: int,
    row_ids: Sequence[int],
) -> engine.Completions:
    return engine.generate(
        variables["params"],
        model.config,
        prompts,
        key=key,
        sampling=sampling(config),
        eos_ids=(model.tokenizer.eos_token_id,),
        pad_id=model.tokenizer.pad_token_id,
        samples_per_prompt=samples_per_prompt,
        rows=config.sampling.rows,
        lora=variables.get("lora"),
        row_ids=row_ids,
    )


def complete(
    key: jax.Array,
    variables: dict[str, Any],
    model: Model,
    questions: list[dict],
    config: ConfigDict,
    samples_per_prompt: int = 1,
    first: int = 0,
    row_ids: Sequence[int] | None = None,
) -> list[dict]:
    """Judged completions of questions, those of one question side by side; see `generate`, `judged`."""
    prompts = [tokenizers.prompt_ids(model.tokenizer, record["question"]) for record in questions]
    done = generate(key, variables, model, prompts, config, samples_per_prompt, first, row_ids)
    return judged([record for record in questions for _ in range(samples_per_prompt)], model, done)


def judged(questions: list[dict], model: Model, done: engine.Completions) -> list[dict]:
    """One row per completion: id, question, completion, valid, rule, layers, chain, answer, tokens,
    finished.

    Args:
      questions: the question record of each completion.
      model: for its tokenizer.
      done: what the engine made.
    """
    rows = []
    for index, record in enumerate(questions):
        length = int(done.lengths[index])
        rows.append(
            {"id": record["id"], "question": record["question"]}
            | judge(model, done.tokens[index, :length])
            | {"tokens": length, "finished": bool(done.finished[index])}
        )
    return rows


def flat(row: dict, sample: int) -> dict:
    """A row of `complete` as generations.jsonl holds it: sample `sample` of its question."""
    texts = row["chain"] or dict.fromkeys(chain_of_empathy.LAYERS)
    return {
        "id": row["id"],
        "sample": sample,
        "question": row["question"],
        "completion": row["completion"],
        "rule": row["rule"],
        "whole_layers": row["layers"],
        **texts,
        "answer": row["answer"],
        "finished": row["finished"],
        "tokens": row["tokens"],
    }


def stream_number(name: str | int, index: int) -> int:
    """The random stream of sample `index` of something with a name or a seed: 31 bits of a hash."""
    digest = hashlib.sha256(f"{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def judge(model: Model, ids: Any) -> dict:
    """A completion's text, verdict, layers (none in the format "answer") and answer."""
    text = tokenizers.decode(model.tokenizer, ids)
    tokens = tokenizers.control_tokens(model.tokenizer)
    verdict = chain_of_empathy.verdict(text, tokens, model.form)
    chain = verdict.chain
    return {
        "completion": text,
        "valid": verdict.valid,
        "rule": verdict.rule,
        "layers": dict(verdict.layers),
        "chain": None
        if chain is None
        else {name: text for name in chain_of_empathy.LAYERS if (text := getattr(chain, name))},
        "answer": None if chain is None else chain.answer,
    }


def show(row: dict) -> str:
    """A completion for a person's eyes: the question's start, then the four layers and the answer."""
    lines = [f"  question  {_shorten(row['question'])}"]
    if row["valid"]:
        lines += [f"  {name}        {_shorten(text)}" for name, text in row["chain"].items()]
        lines.append(f"  answer    {_shorten(row['answer'])}")
    else:
        lines.append(f"  {row['rule']}: {_shorten(row['completion'])}")
    return "\n".join(lines)


def _shorten(text: str, width: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width] + "…"
