"""Seconds of a GRPO step and of its parts, each beside its arithmetic floor, one JSON line.

    PYTHONPATH=. python benchmarks/grpo_step.py [--assets DIR] [--peer "python trl_grpo.py"] [--rounds 2]

8 prompts of 64 tokens, 8 completions of 128 tokens each, no early stop, KL to a reference, one update:
the shapes, weights and prompts of the peers' scripts. The reward is the share of distinct characters.
The floor of a part is its floating-point operations over the rate of a large matrix product measured in
the same run; it counts no softmax, norm, optimizer or recomputation. `prefill` is a generation of one
token, and `decode` is the rest. A peer's script runs after each round of ours and prints a JSON line.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
from tokenizers import Tokenizer

from benchmarks import steps
from empathy_jax.generation import engine
from empathy_jax.rl import advantages as advantages_lib
from empathy_jax.rl.stop_conditions import Limits
from empathy_jax.training import policy_update, rl_settings, rollout_rows

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 64, 128
ROWS = PROMPTS * GROUP
SETTINGS = rl_settings.Settings(
    ratio="token",
    surrogate="clip",
    clip_low=0.2,
    clip_high=0.2,
    clip_ceiling=None,
    aggregation="sequence_mean",
    kl_estimator="k3",
    kl_placement="loss",
    kl_weight=0.04,
    mismatch="none",
    mismatch_level="token",
    mismatch_ceiling=2.0,
    entropy_target=0.0,
    overlong_filter=False,
    reference_every=0,
    minibatches=1,
    passes=1,
    rows_per_pass=PROMPTS,
    completions_per_row=GROUP,
    temperature=1.0,
    max_completion_tokens=NEW_TOKENS,
    limits=Limits(0.0, 0.0, 0.0, 1),
)


def floors() -> dict[str, float]:
    """GFLOP of each part, forward passes once and backward passes twice."""
    shared = PROMPTS * (PROMPT_TOKENS - 1)
    completions = ROWS * NEW_TOKENS
    mean_keys = PROMPT_TOKENS + NEW_TOKENS / 2
    forward = (
        steps.layer_gflop(shared, PROMPT_TOKENS / 2)
        + steps.layer_gflop(completions, mean_keys)
        + steps.head_gflop(completions)
    )
    decoded = ROWS * (NEW_TOKENS - 1)
    return {
        "prefill": steps.layer_gflop(PROMPTS * PROMPT_TOKENS, PROMPT_TOKENS / 2)
        + steps.head_gflop(PROMPTS),
        "decode": steps.layer_gflop(decoded, mean_keys) + steps.head_gflop(decoded),
        "reference": forward,
        "update": 3 * forward,
    }


def read_prompts(assets, tokenizer: Tokenizer | None, count: int) -> list[list[int]]:
    """Prompts of 64 tokens, as often as there are steps."""
    if assets is None:
        return steps.random_tokens(count, PROMPT_TOKENS).tolist()
    texts = json.loads((assets / "prompts.json").read_text(encoding="utf-8"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[:count]]


def rewards(tokens: np.ndarray, tokenizer: Tokenizer | None) -> np.ndarray:
    """Share of distinct characters of each completion, of distinct tokens without a tokenizer."""
    texts = tokens.tolist() if tokenizer is None else tokenizer.decode_batch(tokens.tolist())
    return np.asarray([len(set(text)) / max(len(text), 1) for text in texts], np.float32)


def main() -> None:
    parser = steps.parse(__doc__.partition("\n")[0])
    parser.add_argument(
        "--completions-per-pass", type=int, default=ROWS, help="whose activations are held at once"
    )
    arguments = parser.parse_args()
    assets = arguments.assets
    tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json")) if assets else None
    rounds = arguments.warmup + arguments.steps
    prompts = read_prompts(assets, tokenizer, PROMPTS * rounds)
    reference = {"params": steps.load_params(assets)}
    transform, state = steps.make_state(reference["params"], 1e-6)

    per_row = rollout_rows.completions_per_row(GROUP, arguments.completions_per_pass)
    rows_per_pass = arguments.completions_per_pass // per_row
    settings = dataclasses.replace(SETTINGS, rows_per_pass=rows_per_pass)
    log_probs = jax.jit(
        functools.partial(
            policy_update.rows_log_probs, config=steps.MODEL, temperature=1.0, rows=rows_per_pass
        )
    )
    update = jax.jit(
        functools.partial(
            policy_update.update_fn, config=steps.MODEL, settings=settings, optimizer=transform
        ),
        donate_argnums=0,
    )

    def generate(state, questions: list[list[int]], step: int, new_tokens: int):
        return engine.generate(
            state.trainable["params"],
            steps.MODEL,
            questions,
            key=jax.random.fold_in(jax.random.key(steps.SEED), step),
            sampling=engine.SamplingConfig(max_new_tokens=new_tokens, temperature=1.0),
            eos_ids=(),
            pad_id=0,
            samples_per_prompt=GROUP,
            rows=ROWS,
        )

    def one_step(state, step: int, clock: steps.Clock):
        questions = prompts[PROMPTS * (step % rounds) :][:PROMPTS]
        clock.time("prefill", lambda: generate(state, questions, step, 1))
        done = clock.time("generate", lambda: generate(state, questions, step, NEW_TOKENS))
        clock.wall.setdefault("decode", []).append(
            clock.wall["generate"][-1] - clock.wall["prefill"][-1]
        )
        clock.cpu.setdefault("decode", []).append(
            clock.cpu["generate"][-1] - clock.cpu["prefill"][-1]
        )
        reward = clock.time("reward", lambda: rewards(done.tokens, tokenizer))
        scaled = advantages_lib.group_relative(reward.reshape(PROMPTS, GROUP))
        packed = clock.time(
            "pack",
            lambda: rollout_rows.pack_rollouts(
                questions,
                done.tokens,
                done.log_probs,
                done.lengths,
                np.asarray(scaled).ravel(),
                per_row,
                0,
            ),
        )
        packed["ref_log_probs"] = clock.time("reference", lambda: log_probs(reference, packed))
        state, metrics = clock.time("update", lambda: update(state, {}, packed, 0.0))
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
    parts = clock.table(floors(), max(gflops))
    total = sum(
        parts[name]["wall_s"] for name in ("generate", "reward", "pack", "reference", "update")
    )
    steps.report(
        "grpo_step",
        {
            "shapes": [PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS],
            "packed": list(rollout_shape(per_row)),
            "completions_per_pass": arguments.completions_per_pass,
            "matmul_gflops": [round(rate, 1) for rate in gflops],
            "step_s": round(total, 4),
            "parts": parts,
            "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
            "peers": peers,
        },
    )


def rollout_shape(per_row: int) -> tuple[int, int]:
    """Rows and places of a packed batch."""
    width = rollout_rows.bucket(PROMPT_TOKENS - 1 + per_row * NEW_TOKENS, per_octave=8)
    return ROWS // per_row, width


if __name__ == "__main__":
    main()
