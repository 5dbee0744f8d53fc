"""Trained-run folders made in a moment, for the tests of what comes after training."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs import common as configs
from empathy_jax import sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.models import encoder, score_head
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import common, workdir


def tiny_config(phase: str) -> ConfigDict:
    """The tiny config with fresh weights made smaller still."""
    config = configs.get_config("tiny")
    config.phase = phase
    config.model.update({"width": 32, "mlp_width": 48, "num_layers": 2, "head_dim": 16})
    return config


def make_policy_run(root: Path, config: ConfigDict, texts: list[str]) -> common.Model:
    """WORKDIR/sft with fresh weights, adapters when `config.model.lora_rank` asks for them."""
    config = config.copy_and_resolve_references()
    config.phase = "sft"
    layout = sharding.make_layout(config.mesh)
    model = common.load_policy(config, root, layout, lambda: texts)
    folder = workdir.open_phase(root, "sft", config)
    common.save_model_folder(folder, model)
    variables = dict(model.variables)
    if model.config.lora_rank:
        adapters = model.module.init_lora(common.stream(0, "lora"), model.config)
        # As if trained: B is not zero any more.
        variables["lora"] = jax.tree.map(lambda leaf: leaf + 0.05, adapters)
    save(folder, variables)
    return dataclasses.replace(model, variables=variables)


# The figures of a calibration.json that a card tells, without those of the probes.
CALIBRATION = {
    "questions": 340,
    "threshold": 0.4321,
    "balanced_accuracy": 0.9376,
    "pass_rate": 0.9,
    "pass_rate_threshold": 0.25,
    "quantiles": [(place - 25) / 100 for place in range(101)],
    "random": {"answers": 100, "recall_at_1": 0.925, "recall_at_1_error": 0.0143},
    "nearest": {"answers": 100, "recall_at_1": 0.875, "recall_at_1_error": 0.0179},
    "probes": {"cosine": {}},
}
REWARD_EMBEDDING = Embedding("mean", 64, "问：")
REWARD_ENCODER = encoder.EncoderConfig(
    vocab_size=512, width=32, mlp_width=48, num_layers=2, num_heads=2, max_positions=64
)


def make_reward_run(
    root: Path,
    config: ConfigDict,
    tokenizer,
    architecture=REWARD_ENCODER,
    embedding: Embedding = REWARD_EMBEDDING,
) -> common.Model:
    """WORKDIR/reward_model with fresh weights; a head, where it has one, is not zero."""
    folder = workdir.open_phase(root, "reward_model", config)
    layout = sharding.make_layout(config.mesh)
    params = common.fresh_params(common.stream(0, "init"), architecture, layout)
    variables = {"params": params}
    if embedding.has_head:
        head = score_head.init_params(architecture.width)
        variables["head"] = jax.tree.map(lambda leaf: leaf + 0.5, head)
    model = common.Model(architecture, variables, tokenizer, embedding=embedding)
    common.save_model_folder(folder, model)
    save(folder, model.variables)
    return model


def save(folder: Path, variables: dict, step: int = 1) -> None:
    """A checkpoint of a run; a further one is as if the run had gone on."""
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(step, {"model": variables})
