"""What a rollout batch is worth, and what of it the update and the reader of a run get to see."""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from empathy_jax.rl import advantages as advantages_lib
from empathy_jax.rl import rewards
from empathy_jax.training.scorer import Scorer

# Choices of config.rl.threshold, and where calibration.json holds each.
THRESHOLDS = {"balanced": "threshold", "pass_rate": "pass_rate_threshold"}


def score(rows: list[dict], scorer: Scorer, config: ConfigDict) -> dict[str, np.ndarray]:
    """Every reward term of judged completions, float32 [N] each, and `similarity` as it came.

    An invalid completion has no answer: its terms are 0.
    """
    formats = np.asarray([row["valid"] for row in rows], np.float32)
    answers = [row["answer"] or "" for row in rows]
    questions = [row["question"] for row in rows]
    similarity = scorer.similarity(questions, answers)
    terms = answer_terms(questions, answers, similarity, scorer, config)
    return {
        "format": formats,
        **{name: rewards.gated(formats, values) for name, values in terms.items()},
        "similarity": similarity,
    }


def answer_terms(
    questions: list[str],
    answers: list[str],
    similarity: np.ndarray,
    scorer: Scorer,
    config: ConfigDict,
) -> dict[str, np.ndarray]:
    """The terms that judge an answer whatever its format, float32 [N] each.

    Args:
      questions, answers: N texts of one batch; `template` compares answers to its questions.
      similarity: [N], by the scorer.
      scorer: its calibration, and its head where there is a weight for quality.
      config: of the run.

    Raises:
      ValueError: for a weight on quality under a reward model that has no head.
    """
    rl, calibration = config.rl, scorer.calibration
    if rl.answer_reward == "binary":
        answer = rewards.binary_answer(similarity, threshold(calibration, config))
    else:
        answer = rewards.quantile_scaled(similarity, calibration["quantiles"])
    echo = [rewards.echo_overlap(q, a) for q, a in zip(questions, answers, strict=True)]
    n = rewards.TEMPLATE_NGRAM[config.data.language]
    terms = {
        "answer": answer,
        "echo": rewards.echo_penalty(echo),
        "template": rewards.template_penalty(rewards.template_overlap(questions, answers, n)),
    }
    if rl.quality_weight:
        if not scorer.has_head:
            raise ValueError(
                f"config.rl.quality_weight is {rl.quality_weight}, but the reward model has no head "
                "that grades answers; set it to 0, or train a reward model with a head"
            )
        quality = scorer.quality(questions, answers)
        terms["quality"] = rewards.quantile_scaled(quality, calibration["quality_quantiles"])
    return terms


def threshold(calibration: dict, config: ConfigDict) -> float:
    """The similarity from which the binary reward is paid, by `config.rl.threshold`."""
    if config.rl.threshold not in THRESHOLDS:
        raise ValueError(
            f"config.rl.threshold is {config.rl.threshold!r}; allowed: {', '.join(THRESHOLDS)}"
        )
    return calibration[THRESHOLDS[config.rl.threshold]]


def combine(terms: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """The reward of each completion: the weighted sum of its terms."""
    weights = reward_weights(config)
    return rewards.total({name: terms[name] for name in weights}, weights)


def combine_answer(terms: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """The reward of each answer without its format: the weighted sum of `answer_terms`."""
    weights = reward_weights(config)
    return rewards.total(terms, {name: weights[name] for name in terms})


def reward_weights(config: ConfigDict) -> dict[str, float]:
    """Weights of the terms; an echo and a template are charged for."""
    rl = config.rl
    weights = {
        "format": rl.format_weight,
        "answer": rl.answer_weight,
        "echo": -rl.echo_weight,
        "template": -rl.template_weight,
    }
    return weights | ({"quality": rl.quality_weight} if rl.quality_weight else {})


def group_advantages(terms: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """Advantages [Q, G] by `config.rl.advantage`."""
    shape = (-1, config.rl.group_size)
    if config.rl.advantage == "gdpo":
        weights = reward_weights(config)
        stacked = jnp.stack([jnp.asarray(terms[name]).reshape(shape) for name in weights])
        return np.asarray(advantages_lib.per_reward(stacked, jnp.asarray(list(weights.values()))))
    total = jnp.asarray(combine(terms, config)).reshape(shape)
    if config.rl.advantage == "dr_grpo":
        return np.asarray(advantages_lib.group_centered(total))
    return np.asarray(advantages_lib.group_relative(total))


def measure(
    rows: list[dict], terms: dict[str, np.ndarray], reward: np.ndarray, config: ConfigDict
) -> dict[str, float]:
    """What a rollout batch was worth: terms, validity, lengths, and how much of it carries signal."""
    groups = reward.reshape(-1, config.rl.group_size)
    measured = {f"reward_{name}": float(terms[name].mean()) for name in reward_weights(config)}
    return {
        "reward": float(reward.mean()),
        **measured,
        "reward_std": float(groups.std(axis=1).mean()),
        "similarity": float(terms["similarity"].mean()),
        "no_signal": float(advantages_lib.zero_signal_share(jnp.asarray(groups))),
        "completion_tokens": float(np.mean([row["tokens"] for row in rows])),
        "cut_off": float(np.mean([not row["finished"] for row in rows])),
    }


def lines(
    step: int,
    rows: list[dict],
    terms: dict[str, np.ndarray],
    reward: np.ndarray,
    advantages: np.ndarray,
) -> list[dict]:
    """Whole rollouts for rollouts.jsonl: question, completion, every reward term, advantage."""
    return [
        {
            "step": step,
            **{name: row[name] for name in ("id", "question", "completion", "rule", "tokens")},
            "terms": {name: round(float(values[i]), 6) for name, values in terms.items()},
            "reward": round(float(reward[i]), 6),
            "advantage": round(float(advantages[i]), 6),
        }
        for i, row in enumerate(rows)
    ]
