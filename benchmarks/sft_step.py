"""Tokens per second in supervised fine-tuning, beside the arithmetic floor, one JSON line.

    PYTHONPATH=. python benchmarks/sft_step.py [--assets DIR] [--peer "python trl_sft.py"] [--rounds 2]

Full rows of 16 x 512 tokens, every token a target, one update a step: the shapes, weights and rows of
the peers' scripts. On a GPU `--shape qwen3_0p6b` (or qwen3_1p7b) takes rows of 2,048 in bfloat16. The
floor is the step's floating-point operations over the rate of a large matrix product measured in the same
run; it counts no softmax, norm, optimizer or recomputation. A peer's script runs after each round of ours
and prints a JSON line.
"""

import functools
import json

import jax
import numpy as np

from benchmarks import steps
from empathy_jax.models import decoder
from empathy_jax.training import sft

ROWS = 16
LENGTHS = {"tiny": 512, "qwen3_0p6b": 2048, "qwen3_1p7b": 2048}


def read_rows(assets, config: decoder.DecoderConfig, count: int, length: int) -> np.ndarray:
    """Token ids [count, length]."""
    if assets is None:
        return steps.random_tokens(config, count, length)
    rows = json.loads((assets / "sft_ids.json").read_text(encoding="utf-8"))
    return np.asarray(rows[:count], np.int32)


def make_batch(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """A batch in which every token but the first of a row is a target."""
    length = tokens.shape[1]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_mask": positions < length - 1,
        "segment_ids": np.ones_like(tokens),
        "positions": positions,
    }


def main() -> None:
    arguments = steps.parse(__doc__.partition("\n")[0]).parse_args()
    config, length = steps.read_shape(arguments), LENGTHS[arguments.shape]
    count = arguments.warmup + arguments.steps
    rows = read_rows(arguments.assets, config, ROWS * count, length)
    transform, state = steps.make_state(steps.load_params(arguments.assets, config), 2e-5)
    update = jax.jit(
        functools.partial(sft.update_fn, config=config, optimizer=transform), donate_argnums=0
    )

    def one_step(state, step: int, clock: steps.Clock):
        batch = make_batch(np.resize(rows, (ROWS * count, length))[ROWS * (step % count) :][:ROWS])
        state, metrics = clock.time("update", lambda: update(state, {}, batch))
        return state, jax.device_get(metrics)

    clock, peers, gflops = steps.Clock(), [], [steps.matmul_gflops(config)]
    for step in range(arguments.warmup):
        state, metrics = one_step(state, step, steps.Clock())
    for turn in range(arguments.rounds):
        for step in range(arguments.steps):
            number = arguments.warmup + turn * arguments.steps + step
            state, metrics = one_step(state, number, clock)
        gflops.append(steps.matmul_gflops(config))
        peers += steps.run_peers(arguments.peer)
    tokens = ROWS * length
    gflop = 3 * (steps.layer_gflop(config, tokens, length / 2) + steps.head_gflop(config, tokens))
    parts = clock.table({"update": gflop}, max(gflops))
    steps.report(
        "sft_step",
        {
            "shape": arguments.shape,
            "shapes": [ROWS, length],
            "matmul_gflops": [round(rate, 1) for rate in gflops],
            "tokens_per_s": round(tokens / parts["update"]["wall_s"]),
            "parts": parts,
            "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
            "peers": peers,
        },
    )


if __name__ == "__main__":
    main()
