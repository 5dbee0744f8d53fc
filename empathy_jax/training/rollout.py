"""A batch of completions to learn from: sampled, judged, scored, and refilled where all are alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from empathy_jax.generation.engine import Completions
from empathy_jax.training import completions, reward_terms, rollout_rows
from empathy_jax.training.common import Model
from empathy_jax.training.reward_terms import Terms
from empathy_jax.training.scorer import Scorer


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Completions of Q questions, G each, those of one question side by side: N = Q · G.

    Attributes:
      questions: index of each question among the training questions, int [Q].
      prompts: token ids of each question [Q].
      done: what the engine made [N].
      rows: judged completions [N], see `completions.judged`.
      terms: of `reward_terms.score`, [N] each.
      refills: rounds that were sampled to replace groups without signal.
    """

    questions: np.ndarray
    prompts: list[list[int]]
    done: Completions
    rows: list[dict]
    terms: Terms
    refills: int = 0


def sample(
    key: jax.Array,
    questions: np.ndarray,
    variables: dict[str, Any],
    model: Model,
    records: list[dict],
    prompts: list[list[int]],
    scorer: Scorer,
    config: ConfigDict,
) -> Rollout:
    """Completions of the questions that are named, with their terms.

    Args:
      key: of this batch.
      questions: indices [Q].
      variables, model: the policy.
      records, prompts: all training questions and their token ids.
      scorer: the reward model.
      config: of the run.
    """
    size = config.rl.group_size
    chosen = [prompts[index] for index in questions]
    done = completions.generate(key, variables, model, chosen, config, size)
    rows = completions.judged([records[i] for i in questions for _ in range(size)], model, done)
    terms = reward_terms.score(rows, scorer, config)
    return Rollout(np.asarray(questions), chosen, done, rows, terms)


def refill(
    rollout: Rollout, fresh: Callable[[int], Rollout], max_refills: int, config: ConfigDict
) -> Rollout:
    """The rollout with groups that carry no signal replaced by groups of fresh questions.

    DAPO's dynamic sampling (https://arxiv.org/abs/2503.14476), bounded: what has no signal after
    `max_refills` rounds stays, and teaches nothing. Every round is a whole batch, so that nothing
    is compiled anew; of it, groups with signal whose question is not in the rollout yet are taken.

    Args:
      rollout: of `sample`.
      fresh: samples the batch of a round, 1, 2, ...
      max_refills: rounds at most; 0: the rollout as it is.
      config: of the run.
    """
    for number in range(1, max_refills + 1):
        places = np.flatnonzero(~reward_terms.has_signal(rollout.terms, config))
        if not places.size:
            break
        other = fresh(number)
        useful = reward_terms.has_signal(other.terms, config)
        useful &= ~np.isin(other.questions, rollout.questions)
        taken = np.flatnonzero(useful)[: places.size]
        groups = np.arange(len(rollout.questions))
        groups[places[: taken.size]] = len(rollout.questions) + taken
        joined = _pick(rollout, other, groups, config.rl.group_size)
        rollout = dataclasses.replace(joined, refills=number)
    return rollout


def _pick(one: Rollout, two: Rollout, groups: np.ndarray, size: int) -> Rollout:
    """The named groups of two rollouts, those of the second numbered after those of the first."""
    members = (groups[:, None] * size + np.arange(size)).ravel()

    def both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([first, second])[members]

    fields = [field.name for field in dataclasses.fields(Completions)]
    prompts, rows = one.prompts + two.prompts, one.rows + two.rows
    return Rollout(
        questions=np.concatenate([one.questions, two.questions])[groups],
        prompts=[prompts[group] for group in groups],
        done=Completions(
            **{name: both(getattr(one.done, name), getattr(two.done, name)) for name in fields}
        ),
        rows=[rows[member] for member in members],
        terms={name: both(one.terms[name], two.terms[name]) for name in one.terms},
    )


def pack(rollout: Rollout, completions_per_row: int, pad_id: int) -> dict[str, np.ndarray]:
    """The rows that the update works on, advantages still 0; see `rollout_rows.pack_rollouts`.

    Beside them `cut_off` [R, G]: whether a completion reached the limit without an end.
    """
    done = rollout.done
    batch = rollout_rows.pack_rollouts(
        rollout.prompts,
        done.tokens,
        done.log_probs,
        done.lengths,
        np.zeros(len(done.lengths)),
        completions_per_row,
        pad_id,
    )
    return batch | {"cut_off": ~done.finished[batch["completion_ids"]]}


def lines(step: int, rollout: Rollout, reward: np.ndarray, advantages: np.ndarray) -> list[dict]:
    """Whole rollouts for rollouts.jsonl: question, completion, every reward term, advantage.

    Args:
      step: of the update that learns from them.
      rollout: with every term.
      reward, advantages: [N].
    """
    return [
        {
            "step": step,
            **{name: row[name] for name in ("id", "question", "completion", "rule", "tokens")},
            "terms": {name: round(float(v[i]), 6) for name, v in rollout.terms.items()},
            "reward": round(float(reward[i]), 6),
            "advantage": round(float(advantages[i]), 6),
        }
        for i, row in enumerate(rollout.rows)
    ]
