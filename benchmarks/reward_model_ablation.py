"""Which loss and which negatives make the better reward model, on one budget; one JSON line a setting.

    PYTHONPATH=. python benchmarks/reward_model_ablation.py --questions FILE [--model DIR] [--workdir DIR]

Every setting runs the phase reward_model from the same weights until it has read about --tokens
tokens of training text, so a setting that gives each question more answers to tell apart gets fewer
questions. What is printed comes from its calibration.json: recall@1 of the genuine answer among 100
held-out ones at random and among those of the nearest questions, how often an echo of the question
beats the genuine answer, and the probe that beats it most often. Settings that are done are not run
again when the command is repeated with the same --workdir. `same_topic` needs questions with topics.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import reward_model as configs
from empathy_jax import sharding
from empathy_jax.data import pairs
from empathy_jax.evaluation import probes
from empathy_jax.training import inputs, reward_model

LOSSES = {
    "triplet, any": {"info_nce_weight": 0.0, "triplet_weight": 1.0, "triplet_negative": "any"},
    "triplet, hardest": {"info_nce_weight": 0.0, "triplet_weight": 1.0},
    "InfoNCE": {},
    "InfoNCE + triplet": {"triplet_weight": 1.0},
}
NEGATIVES = {
    "random": {"in_batch": "random", "corrupted": 0},
    "same topic": {"in_batch": "same_topic", "corrupted": 0},
    "mined": {"in_batch": "mined", "corrupted": 0},
    "random, corrupted": {"in_batch": "random", "corrupted": 1},
    "mined, corrupted": {"in_batch": "mined", "corrupted": 1},
}
SAMPLED_BATCHES = 20  # whose tokens are counted to turn the budget into steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", required=True, help="whatever config.data.questions takes")
    parser.add_argument(
        "--model", default="", help="a Hugging Face directory; empty: fresh weights"
    )
    parser.add_argument("--workdir", help="kept, and gone on from; default: a temporary one")
    parser.add_argument("--tokens", type=int, default=300_000, help="of training text, a setting")
    parser.add_argument("--max_tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--eval_questions", type=int, default=200)
    parser.add_argument("--losses", nargs="*", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--negatives", nargs="*", choices=list(NEGATIVES), default=list(NEGATIVES))
    arguments = parser.parse_args()
    root = Path(arguments.workdir or tempfile.mkdtemp(prefix="ablation_"))
    for negatives in arguments.negatives:
        for loss in arguments.losses:
            values = LOSSES[loss] | NEGATIVES[negatives]
            folder = root / f"{loss}, {negatives}".replace(" ", "_").replace(",", "")
            config = make_config(arguments, values)
            config.steps = steps_of(config, folder, arguments.tokens)
            print(f"{loss}; {negatives}: {config.steps} steps", file=sys.stderr, flush=True)
            reward_model.run(config.copy_and_resolve_references(), folder)
            found = read(folder / "reward_model" / "calibration.json")
            row = {"loss": loss, "negatives": negatives, "steps": config.steps, **found}
            print(json.dumps(row), flush=True)


def make_config(arguments: argparse.Namespace, values: dict) -> ConfigDict:
    """The phase's config with what a setting changes; fresh weights have the size `tiny`."""
    config = configs.get_config("small" if arguments.model else "tiny")
    config.data.questions = arguments.questions
    config.batch_size = arguments.batch
    config.checkpoint.every = config.log.validate_every = 1_000_000
    section = config.reward_model
    section.init = arguments.model
    section.max_tokens = arguments.max_tokens
    section.eval_questions = arguments.eval_questions
    section.mine_every = 25
    section.update(values)
    return config


def steps_of(config: ConfigDict, folder: Path, tokens: int) -> int:
    """How many batches hold so many tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    records = inputs.read_questions(config, folder)["train"]
    layout = sharding.make_layout(config.mesh)
    model = reward_model.load(config, layout, records)
    stream = pairs.PairStream(
        records, config.batch_size, reward_model.text_layout(config, model, layout), config.seed
    )
    sizes = [
        np.count_nonzero(
            stream.batch(step, stream.window(step * config.batch_size, config.batch_size))[
                "segment_ids"
            ]
        )
        for step in range(1, SAMPLED_BATCHES + 1)
    ]
    return max(round(tokens / float(np.mean(sizes))), 1)


def read(path: Path) -> dict:
    """The figures of a calibration that the table compares."""
    found = json.loads(path.read_text(encoding="utf-8"))
    beaten = {
        name: entry["beats"]
        for name, entry in found["probes"]["cosine"].items()
        if probes.fails(name, 1.0)
    }
    worst = max(beaten, key=beaten.get)
    return {
        "recall_random": found["random"]["recall_at_1"],
        "recall_nearest": found["nearest"]["recall_at_1"],
        "recall_error": found["nearest"]["recall_at_1_error"],
        "echo_beats": beaten["echo"],
        "worst_probe": worst,
        "worst_beats": beaten[worst],
        "mean_beats": float(np.mean(list(beaten.values()))),
    }


if __name__ == "__main__":
    main()
