"""Losses of the three training phases on meshes of forced CPU devices beside one device, one JSON line.

    PYTHONPATH=. python benchmarks/mesh_equality.py [--steps 20]

Each phase's own update, with the optimizer of its config, on random batches of which every step sees
another: packed rows (sft), texts in packed rows (reward_model), completions behind shared prompts with a
KL to a reference (rl). Meshes are data x fsdp x tensor x sequence. What is printed is the largest
difference of a step's loss from that on one device, and what a device holds during an update, arguments
and temporaries.
"""

import argparse
import dataclasses
import functools
import json
import os
from typing import Any

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np

from benchmarks import grpo_step
from configs import common as configs
from empathy_jax import optimizer, sharding
from empathy_jax.data import pairs
from empathy_jax.models import decoder, encoder
from empathy_jax.training import common, policy_update, reward_model, rollout_rows, sft
from empathy_jax.training.common import Model

MESHES = {
    "8x1": (8, 1, 1, 1),
    "4x2": (4, 2, 1, 1),
    "2x2x2": (2, 2, 2, 1),
    "1x2x2x2": (1, 2, 2, 2),
    "2x1x1x4": (2, 1, 1, 4),
}
SIZES = {"vocab_size": 352, "width": 64, "mlp_width": 128, "num_layers": 2, "num_heads": 4}
DECODER = decoder.DecoderConfig(**SIZES, num_kv_heads=2, head_dim=16)
ENCODER = encoder.EncoderConfig(**SIZES)
REWARD = reward_model.Settings(
    pooling="mean",
    temperature=0.05,
    margin=0.2,
    triplet_weight=0.5,
    triplet_negative="hardest",
    info_nce_weight=1.0,
    head_weight=0.0,
    matryoshka_dims=(),
    negative_ceiling=1.0,
    negative_margin=-0.1,
    rows_per_pass=0,
)
RL = dataclasses.replace(
    grpo_step.SETTINGS, rows_per_pass=8, completions_per_row=4, max_completion_tokens=64
)
Batch = dict[str, np.ndarray]


def sft_batch(random: np.random.Generator) -> Batch:
    """8 rows of two packed examples and padding."""
    shape, length = (8, 64), 64
    segments = np.repeat([1, 2, 0], [30, 29, 5]).astype(np.int32)
    positions = np.r_[np.arange(30), np.arange(34)].astype(np.int32)
    tokens = random.integers(3, SIZES["vocab_size"], shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_mask": (random.random(shape) < 0.7) & (segments > 0) & (np.arange(length) != 29),
        "segment_ids": np.tile(segments, (8, 1)),
        "positions": np.tile(positions, (8, 1)),
    }


def reward_batch(random: np.random.Generator) -> Batch:
    """16 questions, their answers and as many spoilt ones, two texts in a row."""
    size = 16
    texts = [random.integers(3, SIZES["vocab_size"], random.integers(17, 33)) for _ in range(48)]
    rows, slots = pairs.pack_texts(texts, 64, pad_id=0, multiple=24)
    groups = np.arange(size, dtype=np.int32)
    none = np.full(size, pairs.NO_QUESTION, np.int32)
    return {
        **rows,
        "questions": slots[:size],
        "documents": slots[size:],
        "groups": groups,
        "document_groups": np.concatenate([groups, none]),
    }


def rl_batch(random: np.random.Generator) -> Batch:
    """32 completions of 8 questions, four to a row, with a reference near the sampler."""
    prompts = [random.integers(3, SIZES["vocab_size"], 40).tolist() for _ in range(8)]
    tokens = random.integers(3, SIZES["vocab_size"], (32, 64)).astype(np.int32)
    sampled = np.full(tokens.shape, -np.log(SIZES["vocab_size"]), np.float32)
    lengths = np.concatenate([random.permutation([64, 50, 40, 30]) for _ in range(8)])
    batch = rollout_rows.pack_rollouts(
        prompts, tokens, sampled, lengths, random.normal(size=32).astype(np.float32), 4, 0
    )
    noise = random.normal(size=batch["sampler_log_probs"].shape).astype(np.float32)
    batch["ref_log_probs"] = batch["sampler_log_probs"] + 0.1 * noise * batch["completion_mask"]
    return batch


def train(
    update_fn: Any, architecture: Any, batches: list[Batch], sizes: tuple[int, ...], **options: Any
) -> tuple[np.ndarray, int]:
    """The loss of each step on a mesh of these sizes, and the KiB that a device holds."""
    config = configs.get_config("tiny")
    config.mesh.update(dict(zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True)))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    layout = sharding.Layout(mesh, tuple(tuple(rule) for rule in config.mesh.rules))
    config.optimizer.learning_rate = 1e-3
    transform = optimizer.make_optimizer(config.optimizer, len(batches))
    with jax.set_mesh(mesh):
        params = common.fresh_params(jax.random.key(0), architecture, layout)
        model = Model(architecture, {"params": params}, None)
        state, frozen, shardings = common.make_state(model, transform, 0, layout)
        update = jax.jit(
            functools.partial(update_fn, config=architecture, optimizer=transform, **options),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(mesh)),
        )
        placed = common.put_batch(batches[0], mesh)
        compiled = update.lower(state, frozen, placed).compile()
        seen = []
        for batch in batches:
            state, metrics = compiled(state, frozen, common.put_batch(batch, mesh))
            seen.append(float(metrics["loss"]))
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return np.asarray(seen), held // 1024


PHASES = {
    "sft": (sft_batch, sft.update_fn, DECODER, {}),
    "reward_model": (reward_batch, reward_model.update_fn, ENCODER, {"settings": REWARD}),
    "rl": (rl_batch, policy_update.update_fn, DECODER, {"settings": RL, "entropy_weight": 0.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    found = {}
    for phase, (make_batch, update_fn, architecture, options) in PHASES.items():
        batches = [make_batch(np.random.default_rng(seed)) for seed in range(steps)]
        run = functools.partial(train, update_fn, architecture, batches, **options)
        one, kib = run((1, 1, 1, 1))
        ends = [round(float(loss), 4) for loss in (one[0], one[-1])]
        found[phase] = {"1": {"first_and_last_loss": ends, "device_kib": kib}}
        for name, sizes in MESHES.items():
            other, kib = run(sizes)
            difference = float(f"{np.max(np.abs(other - one)):.1e}")
            found[phase][name] = {"largest_difference": difference, "device_kib": kib}
    print(json.dumps({"benchmark": "mesh_equality", "steps": steps, **found}), flush=True)


if __name__ == "__main__":
    main()
