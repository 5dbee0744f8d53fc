"""Rewards on questions that RL does not train on, before and after, of the same random streams."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from empathy_jax import files, hosts
from empathy_jax.evaluation.calibration import mean_and_error
from empathy_jax.training import common, completions, reward_terms
from empathy_jax.training.common import Model
from empathy_jax.training.scorer import Scorer

FILE = "held_out.jsonl"


def measure(
    step: int,
    variables: dict[str, Any],
    model: Model,
    questions: list[dict],
    scorer: Scorer,
    config: ConfigDict,
    folder: Path,
) -> dict[str, float]:
    """The policy's figures on the first held-out questions; rewards and terms go to `held_out.jsonl`.

    Args:
      step: that the policy has reached.
      variables, model: the policy.
      questions: the records of the validation split.
      scorer: the reward model.
      config: of the run.
      folder: `WORKDIR/rl`.
    """
    some = questions[: config.rl.eval_questions]
    key = common.stream(config.seed, "evaluate")
    rows = completions.complete(key, variables, model, some, config, config.rl.eval_samples)
    terms = reward_terms.score(rows, scorer, config)
    reward = reward_terms.combine(terms, config).reshape(len(some), -1).mean(axis=1)
    line = {
        "step": step,
        "ids": [record["id"] for record in some],
        "reward_per_question": reward.tolist(),
        "terms": {name: values.tolist() for name, values in terms.items()},  # of each completion
    }
    files.append_jsonl(folder / FILE, [line])
    figures = {
        "held_out_echo": float(terms["echo"].mean()),
        "held_out_characters": float(terms["answer_characters"].mean()),
        "held_out_tokens": float(np.mean([row["tokens"] for row in rows])),
    }
    measured = {"reward": reward, "validity": terms["format"], "similarity": terms["similarity"]}
    for name, values in measured.items():
        mean, error = mean_and_error(values)
        figures |= {f"held_out_{name}": mean, f"held_out_{name}_error": error}
    return figures


def paired_gain(folder: Path) -> dict[str, float]:
    """Mean change of the held-out reward, question by question, with its standard error."""

    def ends() -> tuple[list[float], list[float]]:
        measured = [row["reward_per_question"] for row in files.read_jsonl(folder / FILE)]
        return measured[0], measured[-1]

    before, after = hosts.from_lead(ends)
    change = np.asarray(after) - np.asarray(before)
    mean, error = mean_and_error(change)
    return {"mean": mean, "error": error, "questions": len(change)}
