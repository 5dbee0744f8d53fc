"""What the benchmarks of training steps share: the model, inputs, clocks and arithmetic floors."""

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common as configs
from empathy_jax import optimizer
from empathy_jax.models import decoder, hf
from empathy_jax.training.common import TrainState

MODEL = decoder.DecoderConfig(
    vocab_size=4096,
    width=256,
    mlp_width=768,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    rope_theta=1e6,
    max_positions=4096,
)
SHAPES = ("tiny", "qwen3_0p6b", "qwen3_1p7b")
SEED = 1234


def parse(description: str, steps: int = 10) -> argparse.ArgumentParser:
    """The options that all step benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--assets", type=Path, help="weights, tokenizer and inputs of the peers")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="the others are for a GPU")
    parser.add_argument("--peer", action="append", default=[], metavar="CMD", help="see above")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=steps, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=1, help="turns of ours and of each peer")
    return parser


def read_shape(arguments: argparse.Namespace) -> decoder.DecoderConfig:
    """The decoder of --shape.

    Raises:
      SystemExit: for a large one without a GPU, or with the peers' assets, which are of the tiny one.
    """
    shape = arguments.shape
    if shape == "tiny":
        return MODEL
    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"no GPU here: --shape {shape} was not measured; --shape tiny runs on CPUs"
        )
    if arguments.assets is not None:
        raise SystemExit(f"--assets hold the tiny shape; leave them out with --shape {shape}")
    fields = {field.name for field in dataclasses.fields(decoder.DecoderConfig)}
    values = {name: value for name, value in configs.SIZES[shape].items() if name in fields}
    return decoder.DecoderConfig(**values)


def load_params(assets: Path | None, config: decoder.DecoderConfig) -> dict:
    """The peers' weights, or random ones of the same shapes."""
    if assets is None:
        return decoder.init_params(jax.random.key(SEED), config)
    return jax.device_put(hf.load_params(assets / "tiny_qwen3", config))


def make_state(params: dict, learning_rate: float) -> tuple[Any, TrainState]:
    """(optimizer, state): AdamW without decay, gradients clipped to norm 1."""
    section = configs.get_config("tiny").optimizer
    changes = {"learning_rate": learning_rate, "warmup_steps": 0, "schedule": "constant"}
    section.update(changes | {"weight_decay": 0.0, "clip_norm": 1.0})
    transform = optimizer.make_optimizer(section, 1_000)
    trainable = {"params": jax.tree.map(jnp.copy, params)}
    return transform, TrainState(trainable, transform.init(trainable))


class Clock:
    """Wall and own CPU seconds of named parts, one entry per call."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, name: str, function: Callable[[], Any]) -> Any:
        """The result of `function`, waited for."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function())
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        return result

    def table(self, floors: dict[str, float], gflops: float) -> dict[str, dict[str, float]]:
        """Medians of each part beside the seconds that its arithmetic takes at `gflops`.

        Args:
          floors: GFLOP of each part.
          gflops: of a large matrix product on the same cores, per second.
        """
        return {
            name: {
                "wall_s": round(statistics.median(self.wall[name]), 4),
                "least_s": round(min(self.wall[name]), 4),
                "cpu_s": round(statistics.median(self.cpu[name]), 4),
                "gflop": round(floors.get(name, 0.0), 2),
                "floor_s": round(floors.get(name, 0.0) / gflops, 4),
            }
            for name in self.wall
        }


def matmul_gflops(config: decoder.DecoderConfig, repeats: int = 5) -> float:
    """GFLOP/s of a matrix product in the compute dtype: the best of some, since others may use the
    cores."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(config.compute_dtype))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e9


def layer_gflop(config: decoder.DecoderConfig, tokens: float, keys: float) -> float:
    """GFLOP of all layers' forward pass over tokens that see so many keys on average."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    weights = config.width * (heads + 3 * config.mlp_width)
    attention = 2 * config.num_heads * config.head_dim * keys
    return 2 * config.num_layers * tokens * (weights + attention) / 1e9


def head_gflop(config: decoder.DecoderConfig, tokens: float) -> float:
    """GFLOP of the logits of so many positions."""
    return 2 * tokens * config.width * config.vocab_size / 1e9


def run_peers(commands: list[str]) -> list[dict]:
    """What each peer's script prints as its last line, read as JSON."""
    found = []
    for command in commands:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"--peer {command!r} failed:\n{done.stderr[-2000:]}")
        found.append({"command": command} | json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def report(name: str, more: dict) -> None:
    """Print the benchmark's line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    loads = [round(load, 2) for load in os.getloadavg()]
    print(json.dumps({"benchmark": name, "cores": cores, "load": loads, **more}), flush=True)


def random_tokens(config: decoder.DecoderConfig, *shape: int) -> np.ndarray:
    """Token ids, always the same for the same shape."""
    return np.random.default_rng(SEED).integers(3, config.vocab_size, shape).astype(np.int32)
