"""Tokens per second of the rollout engine, one JSON line.

    PYTHONPATH=. python benchmarks/generation.py [--assets DIR] [--peer "CMD" ...]

Without arguments: 8 prompts x 8 samples, 64 + 128 tokens, on random weights of 4 layers, width 256,
vocabulary 4,096, float32. `--assets` takes weights from DIR/tiny_qwen3 instead. Measured in turns, round by
round, medians reported:

- `equal`: all completions as long as they may be; prefill and decoding apart as well;
- `ragged`: four times as many questions, lengths from 16 to 4 times as many tokens with a heavy tail,
  with and without refilling, and the ratio of the two;
- `peer`: each `--peer` command is run once a round; the last line it prints is JSON and goes in as it is.

`compilations` are those of the first round; `later_compilations` should be 0. `floor` says what the
matrix products and the cache's bytes alone would take, at the rates measured beside them. On a GPU
`--shape qwen3_0p6b --batch 64` (or qwen3_1p7b) says how near a token comes to reading weights and cache
once at the measured bandwidth.
"""

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

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from configs import common as configs
from empathy_jax.generation import decode_loop, engine
from empathy_jax.models import decoder, hf

COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--assets", type=Path, help="folder with tiny_qwen3/")
    parser.add_argument("--shape", choices=steps.SHAPES, default="tiny")
    parser.add_argument("--batch", type=int, default=64, help="completions side by side")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="measured ones, after the first")
    parser.add_argument("--no-ragged", action="store_true")
    parser.add_argument("--peer", action="append", default=[], help="command that prints JSON")
    arguments = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    result = {"benchmark": "generation", "shape": arguments.shape, "backend": jax.default_backend()}
    result |= {"cores": os.cpu_count(), "load": [round(load, 2) for load in os.getloadavg()]}
    if arguments.shape != "tiny" and not on_gpu:
        result["bandwidth"] = f"no GPU here: {arguments.shape} was not measured"
        print(json.dumps(result))
        return
    config, params = load(arguments.assets, arguments.shape)
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name == COMPILED else None
    )
    calls = make_calls(params, config, arguments)
    times: dict[str, list[float]] = {name: [] for name in calls}
    peers: dict[str, list] = {command: [] for command in arguments.peer}
    for index in range(arguments.rounds + 1):
        for name, (call, _) in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
        if index == 0:
            result |= {"compilations": len(compiled), "compile_s": round(sum(compiled), 1)}
            compiled.clear()
        else:
            for command, lines in peers.items():
                lines.append(run_peer(command))
    result["later_compilations"] = len(compiled)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    result |= rates(median, calls)
    result["floor"] = floor(config, arguments, on_gpu)
    result["floor"]["share"] = round(
        result["equal"]["decode_tokens_per_s"] / result["floor"]["tokens_per_s"], 3
    )
    print(json.dumps(result | ({"peers": peers} if peers else {})))


def load(assets: Path | None, shape: str) -> tuple[decoder.DecoderConfig, dict]:
    """Configuration and parameters, read or random."""
    if shape == "tiny" and assets is not None:
        config = hf.read_config(assets / "tiny_qwen3")
        return config, jax.device_put(hf.load_params(assets / "tiny_qwen3", config))
    config = steps.MODEL
    if shape != "tiny":
        fields = {field.name for field in dataclasses.fields(decoder.DecoderConfig)}
        values = {name: value for name, value in configs.SIZES[shape].items() if name in fields}
        config = decoder.DecoderConfig(**values | {"param_dtype": "bfloat16"})
    return config, decoder.init_params(jax.random.key(0), config)


def make_calls(
    params: dict, config: decoder.DecoderConfig, arguments: argparse.Namespace
) -> dict[str, tuple[Callable[[], None], int]]:
    """What is timed, and the tokens that each makes or reads."""
    noise = np.random.default_rng(0)
    group, new = arguments.group, arguments.new_tokens
    questions = max(arguments.batch // group, 1)

    def some_prompts(count: int) -> list[list[int]]:
        return noise.integers(3, config.vocab_size, (count, arguments.prompt_tokens)).tolist()

    def generate(prompts: list[list[int]], lengths: np.ndarray, refill: bool) -> None:
        done = engine.generate(
            params,
            config,
            prompts,
            key=jax.random.key(1),
            sampling=engine.SamplingConfig(int(lengths.max())),
            eos_ids=(),
            pad_id=0,
            samples_per_prompt=group,
            rows=arguments.batch,
            limits=lengths,
            refill=refill,
        )
        np.testing.assert_array_equal(done.lengths, lengths)

    prompts = some_prompts(questions)
    padded = np.asarray(prompts, np.int32)
    equal = np.full(questions * group, new)
    calls = {
        "prefill": (
            lambda: jax.block_until_ready(decode_loop.prefill(params, None, config, padded)),
            padded.size,
        ),
        "equal": (lambda: generate(prompts, equal, True), int(equal.sum())),
    }
    if arguments.no_ragged:
        return calls
    many = some_prompts(4 * questions)
    # Log-normal with a median of half of `new` tokens: the longest of 256 reach the end of the range.
    lengths = np.exp(noise.normal(np.log(new / 2), 0.9, len(many) * group))
    lengths = np.clip(lengths, 16, 4 * new).astype(int)
    return calls | {
        "refilled": (lambda: generate(many, lengths, True), int(lengths.sum())),
        "not_refilled": (lambda: generate(many, lengths, False), int(lengths.sum())),
    }


def rates(median: dict[str, float], calls: dict) -> dict:
    """Tokens per second of each call."""
    speed = {name: round(calls[name][1] / seconds, 1) for name, seconds in median.items()}
    decoding = median["equal"] - median["prefill"]
    found = {
        "prefill_tokens_per_s": speed["prefill"],
        "equal": {
            "tokens_per_s": speed["equal"],
            "decode_tokens_per_s": round(calls["equal"][1] / decoding, 1),
        },
    }
    if "refilled" in speed:
        ratio = round(median["not_refilled"] / median["refilled"], 2)
        found["ragged"] = {
            "tokens_per_s": speed["refilled"],
            "without_refilling": speed["not_refilled"],
            "ratio": ratio,
        }
    return found


def floor(config: decoder.DecoderConfig, arguments: argparse.Namespace, on_gpu: bool) -> dict:
    """The least time of a decoded token of every row: products and cache on a CPU, bytes on a GPU."""
    dtype = jnp.dtype(config.compute_dtype)
    heads = config.num_heads + 2 * config.num_kv_heads
    per_layer = config.width * (heads + config.num_heads) * config.head_dim
    per_layer += 3 * config.width * config.mlp_width
    weights = config.num_layers * per_layer + config.vocab_size * config.width
    lanes = max(arguments.batch // arguments.group, 1)
    # On average half of the completion stands in the cache.
    columns = lanes * arguments.prompt_tokens + arguments.batch * arguments.new_tokens / 2
    column = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    bandwidth = measure_bandwidth()
    cache_s = columns * column / bandwidth
    flops = 2 * weights * arguments.batch
    measured = {"flops_per_token": 2 * weights, "bandwidth_gb_s": round(bandwidth / 1e9, 1)}
    if on_gpu:
        seconds = cache_s + weights * dtype.itemsize / bandwidth
    else:
        rate = measure_products(dtype)
        measured["gflop_s"] = round(rate / 1e9, 1)
        seconds = flops / rate + cache_s
    measured["cache_bytes_per_step"] = int(columns * column)
    return measured | {
        "bound": "bandwidth" if on_gpu else "products and cache",
        "step_ms": round(1e3 * seconds, 3),
        "tokens_per_s": round(arguments.batch / seconds, 1),
    }


def measure_bandwidth() -> float:
    """Bytes per second read and written by x + 1 on 256 MiB."""
    x = jnp.zeros(2**26, jnp.float32)
    return 2 * x.nbytes / fastest(jax.jit(lambda x: x + 1), x)


def measure_products(dtype: jnp.dtype) -> float:
    """FLOPs per second of a product of 1024 x 1024 matrices."""
    x = jnp.ones((1024, 1024), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * 1024**3 / fastest(product, x)


def fastest(call: Callable, *inputs: jax.Array) -> float:
    """Seconds of the fastest of some calls."""
    jax.block_until_ready(call(*inputs))
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        jax.block_until_ready(call(*inputs))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def run_peer(command: str) -> object:
    """What a peer's command says of itself in its last line."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
