"""What checkpoints cost in supervised fine-tuning, as a share of the steps between them, one JSON line.

    PYTHONPATH=. python benchmarks/checkpoint_overhead.py [--interval 50] [--pairs 3] [--steps 50]

Model, shapes and optimizer are those of sft_step.py on a CPU. Windows of `--steps` steps come in pairs,
one with a checkpoint and one without, in turns which comes first. The one with begins to save the state
and ends when the disk has it, its digests are noted and the checkpoint before the last is gone: what a
run does once in `--interval` steps. `overhead` is the extra time over that of `--interval` steps without,
the median of all pairs. Shorter windows than the interval say the same as long as a save ends in one.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import sft_step, steps
from empathy_jax import pytree
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.models import decoder
from empathy_jax.training import common, sft

LENGTH = 512  # tokens of a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--interval", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--pairs", type=int, default=3, help="of windows")
    parser.add_argument("--steps", type=int, default=50, help="of a window")
    parser.add_argument(
        "--folder", help="parent of the checkpoints' folder; empty: temporary files'"
    )
    arguments = parser.parse_args()
    draw = np.random.default_rng(steps.SEED)
    tokens = draw.integers(3, steps.MODEL.vocab_size, (sft_step.ROWS, LENGTH), np.int32)
    batch = jax.device_put(sft_step.make_batch(tokens))
    params = decoder.init_params(jax.random.key(steps.SEED), steps.MODEL)
    transform, state = steps.make_state(params, 2e-5)
    update = jax.jit(
        functools.partial(sft.update_fn, config=steps.MODEL, optimizer=transform), donate_argnums=0
    )
    state, metrics = update(state, {}, batch)
    jax.device_get(metrics)

    def window(checkpointer: Checkpointer | None, number: int) -> tuple[float, float, float]:
        """Seconds of a window, of the call that begins to save, and of the wait at the end."""
        nonlocal state
        began = time.perf_counter()
        if checkpointer is not None:
            checkpointer.save(number, common.checkpoint_items(state, {}))
        saved = time.perf_counter()
        for _ in range(arguments.steps):
            state, metrics = update(state, {}, batch)
            jax.device_get(metrics)
        stepped = time.perf_counter()
        if checkpointer is not None:
            checkpointer.wait()
        ended = time.perf_counter()
        return ended - began, saved - began, ended - stepped

    with_, without = [], []
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        Checkpointer(Path(folder)) as checkpointer,
    ):
        window(checkpointer, 0)
        for pair in range(1, arguments.pairs + 1):
            if pair % 2:
                without.append(window(None, pair))
            with_.append(window(checkpointer, pair))
            if pair % 2 == 0:
                without.append(window(None, pair))
    step_seconds = [one[0] / arguments.steps for one in without]
    overheads = [
        (one[0] - other[0]) / (arguments.interval * each)
        for one, other, each in zip(with_, without, step_seconds, strict=True)
    ]
    steps.report(
        "checkpoint_overhead",
        {
            "shapes": [sft_step.ROWS, LENGTH],
            "interval": arguments.interval,
            "window": arguments.steps,
            "checkpoint_mib": round(
                pytree.tree_bytes(common.checkpoint_items(state, {})) / 2**20, 1
            ),
            "step_s": round(statistics.median(step_seconds), 4),
            "begin_s": round(statistics.median(one[1] for one in with_), 4),
            "wait_s": round(statistics.median(one[2] for one in with_), 4),
            "overhead": round(statistics.median(overheads), 4),
            "overheads": [round(overhead, 4) for overhead in overheads],
        },
    )


if __name__ == "__main__":
    main()
