"""Seconds of a GRPO step and of its parts, each beside its arithmetic floor, one JSON line.

    PYTHONPATH=. python benchmarks/grpo_step.py [--assets DIR] [--peer "python trl_grpo.py"] [--rounds 2]

8 prompts of 64 tokens, 8 completions of 128 tokens each, no early stop, KL to a reference, one update:
the shapes, weights and prompts of the peers' scripts. On a GPU `--shape qwen3_0p6b` (or qwen3_1p7b) takes
16 prompts of 512 tokens and completions of 1,024, in bfloat16; `benchmarks/grpo_peer.py` is TRL at the same
shapes. The reward is the share of distinct characters.
The floor of a part is its floating-point operations over the rate of a large matrix product measured in
the same run; it counts no softmax, norm, optimizer or recomputation. `prefill` is a generation of one
token, and `decode` is the rest. A peer's script runs after each round of ours and prints a JSON line.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from benchmarks import steps
from empathy_jax.generation import engine
from empathy_jax.models import decoder
from empathy_jax.rl import advantages as advantages_lib
from empathy_jax.rl.stop_conditions import Limits
from empathy_jax.training import policy_update, rl_settings, rollout_rows


class Shapes(NamedTuple):
    """Of a step: prompts, completions of each, tokens of both."""

    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group


SMALL, LARGE = Shapes(8, 8, 64, 128), Shapes(16, 8, 512, 1024)
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
    rows_per_pass=SMALL.prompts,
    completions_per_row=SMALL.group,
    temperature=1.0,
    max_completion_tokens=SMALL.new_tokens,
    limits=Limits(0.0, 0.0, 0.0, 1),
)


def floors(config: decoder.DecoderConfig, shapes: Shapes) -> dict[str, float]:
    """GFLOP of each part, forward passes once and backward passes twice."""
    prompts, _, prompt_tokens, new_tokens = shapes
    mean_keys = prompt_tokens + new_tokens / 2

    def forward(tokens: float, keys: float, logits: float) -> float:
        return steps.layer_gflop(config, tokens, keys) + steps.head_gflop(config, logits)

    completions, decoded = shapes.rows * new_tokens, shapes.rows * (new_tokens - 1)
    shared = forward(prompts * (prompt_tokens - 1), prompt_tokens / 2, 0)
    scored = shared + forward(completions, mean_keys, completions)
    return {
        "prefill": forward(prompts * prompt_tokens, prompt_tokens / 2, prompts),
        "decode": forward(decoded, mean_keys, decoded),
        "reference": scored,
        "update": 3 * scored,
    }


def read_prompts(
    assets, config: decoder.DecoderConfig, tokenizer: Tokenizer | None, count: int, length: int
) -> list[list[int]]:
    """Prompts of `length` tokens, as often as there are steps."""
    if assets is None:
        return steps.random_tokens(config, count, length).tolist()
    texts = json.loads((assets / "prompts.json").read_text(encoding="utf-8"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[:count]]


def rewards(tokens: np.ndarray, tokenizer: Tokenizer | None) -> np.ndarray:
    """Share of distinct characters of each completion, of distinct tokens without a tokenizer."""
    texts = tokens.tolist() if tokenizer is None else tokenizer.decode_batch(tokens.tolist())
    return np.asarray([len(set(text)) / max(len(text), 1) for text in texts], np.float32)


def main() -> None:
    parser = steps.parse(__doc__.partition("\n")[0])
    parser.add_argument(
        "--completions-per-pass", type=int, help="whose activations are held at once; default: 64"
    )
    arguments = parser.parse_args()
    config, assets = steps.read_shape(arguments), arguments.assets
    shapes = SMALL if arguments.shape == "tiny" else LARGE
    at_once = arguments.completions_per_pass or SMALL.rows
    tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json")) if assets else None
    rounds = arguments.warmup + arguments.steps
    prompts = read_prompts(assets, config, tokenizer, shapes.prompts * rounds, shapes.prompt_tokens)
    reference = {"params": steps.load_params(assets, config)}
    transform, state = steps.make_state(reference["params"], 1e-6)

    per_row = rollout_rows.completions_per_row(shapes.group, at_once)
    rows_per_pass = at_once // per_row
    settings = dataclasses.replace(
        SETTINGS,
        rows_per_pass=rows_per_pass,
        completions_per_row=per_row,
        max_completion_tokens=shapes.new_tokens,
    )
    log_probs = jax.jit(
        functools.partial(
            policy_update.rows_log_probs, config=config, temperature=1.0, rows=rows_per_pass
        )
    )
    update = jax.jit(
        functools.partial(
            policy_update.update_fn, config=config, settings=settings, optimizer=transform
        ),
        donate_argnums=0,
    )

    def generate(state, questions: list[list[int]], step: int, new_tokens: int):
        return engine.generate(
            state.trainable["params"],
            config,
            questions,
            key=jax.random.fold_in(jax.random.key(steps.SEED), step),
            sampling=engine.SamplingConfig(max_new_tokens=new_tokens, temperature=1.0),
            eos_ids=(),
            pad_id=0,
            samples_per_prompt=shapes.group,
            rows=shapes.rows,
        )

    def one_step(state, step: int, clock: steps.Clock):
        questions = prompts[shapes.prompts * (step % rounds) :][: shapes.prompts]
        clock.time("prefill", lambda: generate(state, questions, step, 1))
        done = clock.time("generate", lambda: generate(state, questions, step, shapes.new_tokens))
        clock.wall.setdefault("decode", []).append(
            clock.wall["generate"][-1] - clock.wall["prefill"][-1]
        )
        clock.cpu.setdefault("decode", []).append(
            clock.cpu["generate"][-1] - clock.cpu["prefill"][-1]
        )
        reward = clock.time("reward", lambda: rewards(done.tokens, tokenizer))
        scaled = advantages_lib.group_relative(reward.reshape(shapes.prompts, shapes.group))
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

    clock, peers, gflops = steps.Clock(), [], [steps.matmul_gflops(config)]
    for step in range(arguments.warmup):
        state, metrics = one_step(state, step, steps.Clock())
    for turn in range(arguments.rounds):
        for step in range(arguments.steps):
            number = arguments.warmup + turn * arguments.steps + step
            state, metrics = one_step(state, number, clock)
        gflops.append(steps.matmul_gflops(config))
        peers += steps.run_peers(arguments.peer)
    parts = clock.table(floors(config, shapes), max(gflops))
    total = sum(
        parts[name]["wall_s"] for name in ("generate", "reward", "pack", "reference", "update")
    )
    steps.report(
        "grpo_step",
        {
            "shape": arguments.shape,
            "shapes": list(shapes),
            "packed": list(rollout_shape(shapes, per_row)),
            "completions_per_pass": at_once,
            "matmul_gflops": [round(rate, 1) for rate in gflops],
            "step_s": round(total, 4),
            "parts": parts,
            "metrics": {name: round(float(value), 5) for name, value in metrics.items()},
            "peers": peers,
        },
    )


def rollout_shape(shapes: Shapes, per_row: int) -> tuple[int, int]:
    """Rows and places of a packed batch."""
    places = shapes.prompt_tokens - 1 + per_row * shapes.new_tokens
    return shapes.rows // per_row, rollout_rows.bucket(places, per_octave=8)


if __name__ == "__main__":
    main()
