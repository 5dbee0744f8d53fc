"""What completions are worth: the terms of the reward, their weights, and the advantages.

N completions, those of one question side by side: Q questions with G completions each. Everything
is numpy on the host.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from empathy_jax.rl import advantages as advantages_lib
from empathy_jax.rl import overlong, rewards
from empathy_jax.training.scorer import Scorer

# Choices of config.rl.threshold, and where calibration.json holds each.
THRESHOLDS = {"balanced": "threshold", "pass_rate": "pass_rate_threshold"}
# Choices of config.rl.advantage that need nothing but the group's or the batch's rewards.
OF_REWARDS = {
    "grpo": advantages_lib.group_relative,
    "dr_grpo": advantages_lib.group_centered,
    "rloo": advantages_lib.leave_one_out,
    "batch_scaled": advantages_lib.batch_scaled,
}
ADVANTAGES = (*OF_REWARDS, "reinforce", "gdpo")
NO_BASELINE = np.asarray(np.nan, np.float32)  # before the first batch of `reinforce`

Terms = dict[str, np.ndarray]


def score(rows: list[dict], scorer: Scorer, config: ConfigDict) -> Terms:
    """Every reward term of judged completions, float32 [N] each, and what they were made of.

    An invalid completion has no answer: its terms are 0. `similarity` and what `measure_answers`
    gives are as they came and have no weight.
    """
    formats = np.asarray([row["valid"] for row in rows], np.float32)
    answers = [row["answer"] or "" for row in rows]
    questions = [row["question"] for row in rows]
    similarity = scorer.similarity(questions, answers)
    measures = measure_answers(questions, answers, config)
    terms = _answer_terms(questions, answers, similarity, measures, scorer, config)
    terms = {name: rewards.gated(formats, values) for name, values in terms.items()}
    if config.rl.overlong_buffer:
        lengths = jnp.asarray([row["tokens"] for row in rows])
        limit, buffer = config.data.max_completion_tokens, config.rl.overlong_buffer
        terms["overlong"] = np.asarray(overlong.soft_penalty(lengths, limit, buffer))
    return {"format": formats, **terms, **measures, "similarity": similarity}


def answer_terms(
    questions: list[str],
    answers: list[str],
    similarity: np.ndarray,
    scorer: Scorer,
    config: ConfigDict,
) -> Terms:
    """The terms that judge an answer whatever its format, float32 [N] each.

    Args:
      questions, answers: N texts of one batch; `template` compares answers to its questions.
      similarity: [N], by the scorer.
      scorer: its calibration, and its head where there is a weight for quality.
      config: of the run.

    Raises:
      ValueError: for a weight on quality under a reward model that has no head.
    """
    measures = measure_answers(questions, answers, config)
    return _answer_terms(questions, answers, similarity, measures, scorer, config)


def measure_answers(questions: list[str], answers: list[str], config: ConfigDict) -> Terms:
    """Share of each answer that repeats its question, share that answers another one, and its length.

    float32 [N] each; characters are counted without white space.
    """
    echo = [rewards.echo_overlap(q, a) for q, a in zip(questions, answers, strict=True)]
    n = rewards.TEMPLATE_NGRAM[config.data.language]
    return {
        "echo_overlap": np.asarray(echo, np.float32),
        "template_overlap": rewards.template_overlap(questions, answers, n),
        "answer_characters": np.asarray([len(rewards.comparable(a)) for a in answers], np.float32),
    }


def _answer_terms(
    questions: list[str],
    answers: list[str],
    similarity: np.ndarray,
    measures: Terms,
    scorer: Scorer,
    config: ConfigDict,
) -> Terms:
    rl, calibration = config.rl, scorer.calibration
    terms = scaled(similarity, measures, calibration, config)
    if rl.quality_weight:
        if not scorer.has_head:
            raise ValueError(
                f"config.rl.quality_weight is {rl.quality_weight}, but the reward model has no head "
                "that grades answers; set it to 0, or train a reward model with a head"
            )
        quality = scorer.quality(questions, answers)
        terms["quality"] = rewards.quantile_scaled(quality, calibration["quality_quantiles"])
    return terms


def scaled(
    similarity: np.ndarray,
    measures: Mapping[str, np.ndarray],
    calibration: dict,
    config: ConfigDict,
) -> Terms:
    """The terms that follow from what was measured of answers: `answer` and charges, [N] each.

    Args:
      similarity: [N].
      measures: of `measure_answers`.
      calibration: of the reward model that gave the similarity.
      config: of the run.
    """
    if config.rl.answer_reward == "binary":
        answer = rewards.binary_answer(similarity, threshold(calibration, config))
    else:
        answer = rewards.quantile_scaled(similarity, calibration["quantiles"])
    terms = {
        "answer": answer,
        "echo": rewards.echo_penalty(measures["echo_overlap"]),
        "template": rewards.template_penalty(measures["template_overlap"]),
    }
    if least := config.rl.min_answer_characters:
        terms["brevity"] = rewards.brevity_penalty(measures["answer_characters"], least)
    return terms


def threshold(calibration: dict, config: ConfigDict) -> float:
    """The similarity from which the binary reward is paid, by `config.rl.threshold`."""
    if config.rl.threshold not in THRESHOLDS:
        raise ValueError(
            f"config.rl.threshold is {config.rl.threshold!r}; allowed: {', '.join(THRESHOLDS)}"
        )
    return calibration[THRESHOLDS[config.rl.threshold]]


def reward_weights(config: ConfigDict) -> dict[str, float]:
    """Weights of the terms that a completion has by itself; some of them are charges."""
    rl = config.rl
    weights = {
        "format": rl.format_weight,
        "answer": rl.answer_weight,
        "echo": -rl.echo_weight,
        "template": -rl.template_weight,
    }
    weights |= {"quality": rl.quality_weight} if rl.quality_weight else {}
    weights |= {"brevity": -1.0} if rl.min_answer_characters else {}
    return weights | ({"overlong": -1.0} if rl.overlong_buffer else {})


def training_weights(terms: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, float]:
    """`reward_weights`, and the charge for leaving the reference where `terms` has it."""
    return reward_weights(config) | ({"kl": -config.rl.kl_weight} if "kl" in terms else {})


def combine(terms: Mapping[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """The reward of each completion: the weighted sum of its terms, `kl` among them if it is there."""
    weights = training_weights(terms, config)
    return rewards.total({name: terms[name] for name in weights}, weights)


def combine_answer(terms: Mapping[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """The reward of each answer without its format: the weighted sum of `answer_terms`."""
    weights = reward_weights(config)
    return rewards.total(terms, {name: weights[name] for name in terms})


def has_signal(terms: Mapping[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """Whether the completions of a question differ in their reward, bool [Q].

    With `gdpo` a difference in any term that has a weight is one, even if the rewards are equal.
    """
    values = [combine(terms, config)]
    if config.rl.advantage == "gdpo":
        values = [terms[name] for name, weight in training_weights(terms, config).items() if weight]
    groups = np.stack(values).reshape(len(values), -1, config.rl.group_size)
    return (groups.max(axis=-1) > groups.min(axis=-1)).any(axis=0)


def advantages(
    terms: Mapping[str, np.ndarray], config: ConfigDict, baseline: np.ndarray = NO_BASELINE
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [Q, G] by `config.rl.advantage`, and the baseline for the next batch.

    Args:
      terms: of `score`, with `kl` where that is part of the reward.
      config: of the run.
      baseline: the mean reward that `reinforce` remembers of earlier batches; the first batch is
        measured against its own mean.
    """
    name, shape = config.rl.advantage, (-1, config.rl.group_size)
    if name == "gdpo":
        weights = training_weights(terms, config)
        stacked = jnp.stack([jnp.asarray(terms[term]).reshape(shape) for term in weights])
        made = advantages_lib.per_reward(stacked, jnp.asarray(list(weights.values())))
        return np.asarray(made), baseline
    reward = jnp.asarray(combine(terms, config)).reshape(shape)
    if name != "reinforce":
        return np.asarray(OF_REWARDS[name](reward)), baseline
    known = jnp.mean(reward) if np.isnan(baseline) else jnp.asarray(baseline)
    made, baseline = advantages_lib.running_baseline(reward, known, config.rl.baseline_decay)
    return np.asarray(made), np.asarray(baseline)
