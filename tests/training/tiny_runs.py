"""Whole runs small enough for tests: short chains, a tiny model, and the real command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from configs import common as configs
from empathy_jax import chain_of_empathy, checkpoint, files
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.data import tokenizer as tokenizers

FEELINGS = ("累", "怕", "烦", "急", "空", "气", "闷", "慌")
RECORDS = 48


def chain_records() -> list[dict]:
    """Chain records with texts of a few characters; the answer depends on the feeling named."""
    records = []
    for index in range(RECORDS):
        feeling = FEELINGS[index % len(FEELINGS)]
        records.append(
            {
                "question": f"我很{feeling}，第{index}天了",
                "L1": feeling,
                "L2": "因",
                "L3": "听",
                "L4": "陪",
                "answer": f"我在，{feeling}。",
            }
        )
    return records


def question_records() -> list[dict]:
    """Question records with two answers each, telling of the question's feeling."""
    return [
        {
            "question": record["question"],
            "answers": [{"text": record["answer"]}, {"text": f"{record['L1']}会过去"}],
        }
        for record in chain_records()
    ]


def write_inputs(folder: Path) -> dict[str, str]:
    """The records as files, and a tokenizer that makes prompts short; paths by config field."""
    files.write_jsonl(folder / "chains.jsonl", chain_records())
    files.write_jsonl(folder / "questions.jsonl", question_records())
    fields = (*chain_of_empathy.LAYERS, "answer")
    texts = [chain_of_empathy.system_prompt("zh"), "system user assistant"] * 20
    for record in chain_records():
        texts += [record["question"], chain_of_empathy.render(Chain(*(record[f] for f in fields)))]
    tokenizers.save(tokenizers.train(texts, 512), folder / "tokenizer")
    return {
        "data.chains": str(folder / "chains.jsonl"),
        "data.questions": str(folder / "questions.jsonl"),
        "model.tokenizer": str(folder / "tokenizer"),
        "reward_model.tokenizer": str(folder / "tokenizer"),
    }


VALUES = {
    "steps": 6,
    "batch_size": 8,
    "model.width": 32,
    "model.mlp_width": 48,
    "model.num_layers": 2,
    "model.head_dim": 16,
    "model.vocab_size": 512,
    "model.max_positions": 512,
    "reward_model.vocab_size": 512,
    "reward_model.width": 32,
    "reward_model.mlp_width": 48,
    "reward_model.max_tokens": 128,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.1,
    "data.max_prompt_tokens": 128,
    "data.max_completion_tokens": 48,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 2,
    "optimizer.schedule": "constant",
    "sft.row_tokens": 256,
    "sft.samples": 2,
    "rl.group_size": 4,
    "rl.min_answer_characters": 6,  # one more than the answers of the records have
    "rl.rows_per_pass": 16,
    "rl.eval_questions": 2,
    "rl.eval_samples": 2,
    "checkpoint.every": 3,
    "log.every": 1,
    "log.validate_every": 3,
}


def make_config(phase: str, values: dict) -> ConfigDict:
    """All fields with the values of `VALUES` and then of `values` ("section.field")."""
    config = configs.get_config("tiny")
    config.phase = phase
    config.update_from_flattened_dict({**VALUES, **values})
    return config


def command(phase: str, workdir: Path | str, values: dict, size: str = "tiny") -> list[str]:
    """The command line of a run with `VALUES`, then `values`."""
    merged = {**VALUES, **values}
    return [
        sys.executable,
        "-m",
        "empathy_jax.main",
        f"--config=configs/{phase}.py:{size}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in merged.items()),
    ]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a child: few CPU devices, so that it starts sooner."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def run_cli(arguments: list[str], root: Path, **options) -> subprocess.CompletedProcess:
    """Run to the end; output as text."""
    return subprocess.run(
        arguments,
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def stop_when(
    arguments: list[str], root: Path, ready: Callable[[], bool], number: signal.Signals
) -> subprocess.CompletedProcess:
    """Run until `ready()`, then send the signal; fails when the run ends before that."""
    process = subprocess.Popen(
        arguments,
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 240
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"ended before it could be stopped: {process.communicate()}")
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def metrics(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without what a clock says, and what was compiled before already."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    own = ("seconds", "compilations")
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(own)} for line in lines]


def arrays(folder: Path, step: int, name: str = "model") -> dict[str, np.ndarray]:
    """The arrays of one part of a checkpoint of `WORKDIR/<phase>`, by path."""
    stored = ocp.checkpointables_metadata(folder / "checkpoints" / str(step)).metadata[name]
    place = SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        stored,
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )
    tree = checkpoint.restore(folder / "checkpoints", step, {name: wanted})[name]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
