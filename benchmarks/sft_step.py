"""Tokens per second in supervised fine-tuning, beside the arithmetic floor, one JSON line.

    PYTHONPATH=. python benchmarks/sft_step.py [--assets DIR] [--peer "python trl_sft.py"] [--rounds 2]

Full rows of 16 x 512 tokens, every token a target, one update a step: the shapes, weights and rows of
the peers' scripts. The floor is the step's floating-point operations over the rate of a large matrix
product measured in the same run; it counts no softmax, norm, optimizer or recomputation. A peer's script
runs after each round of ours and prints a JSON line.
"""

import functools
import json

import jax
import numpy as np

from benchmarks import steps
from empathy_jax.training import sft

ROWS, LENGTH = 16, 512


def read_rows(assets, count: int) -> np.ndarray:
    """Token ids [count, 512]."""
    if assets is None:
        return steps.random_tokens(count, LENGTH)
    rows = json.loads((assets / "sft_ids.json").read_text(encoding="utf-8"))
    return np.asarray(rows[:count], np.int32)


def make_batch(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """A batch in which every token but the first of a row is a target."""
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_mask": positions < LENGTH - 1,
        "segment_ids": np.ones_like(tokens),
        "positions": positions,
    }


def main() -> None:
    arguments = steps.parse(__doc__.partition("\n")[0]).parse_args()
    count = arguments.warmup + arguments.steps
    rows = read_rows(arguments.assets, ROWS * count)
    transform, state = steps.make_state(steps.load_params(arguments.assets), 2e-5)
    update = jax.jit(
        functools.partial(sft.update_fn, config=steps.MODEL, optimizer=transform), donate_argnums=0
    )

    def one_step(state, step: int, clock: steps.Clock):
        batch = make_batch(np.resize(rows, (ROWS * count, LENGTH))[ROWS * (step % count) :][:ROWS])
        state, metrics = clock.time("update", lambda: update(state, {}, batch))
        return state, jax.device_get(metrics)

    clock, peers, gflops = steps.Clock(), [], [steps.matmul_gflops()]
    for step in range(arguments.warmup):
        state, metrics = one_step(state, step, steps.Clock())
    for turn in range(arguments.rounds):
        for step in range(arguments.steps):
            number = arguments.warmup + turn * arguments.steps + step
            state, metrics = one_step(state, number, clock)
        gflops.append(steps.matmul_gflops())
        peers += steps.run_peers(arguments.peer)
    tokens = ROWS * LENGTH
    gflop = 3 * (steps.layer_gflop(tokens, LENGTH / 2) + steps.head_gflop(tokens))
    parts = clock.table({"update": gflop}, max(gflops))
    steps.report(
        "sft_step",
        {
            "shapes": [ROWS, LENGTH],
            "matmul_gflops": [round(rate, 1) for rate in gflops],
            "tokens_per_s": round(tokens / parts["update"]["wall_s"]),
            "parts": parts,
            "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
            "peers": peers,
        },
    )


if __name__ == "__main__":
    main()
