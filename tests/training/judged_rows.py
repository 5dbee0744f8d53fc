"""Judged completions made by hand, a scorer that is a table, and batches of both."""

import numpy as np

from configs import common as configs
from empathy_jax import chain_of_empathy
from empathy_jax.generation.engine import Completions
from empathy_jax.training import reward_terms
from empathy_jax.training.rollout import Rollout


class TableScorer:
    """Similarity by a table of answers, 0.9 for what is not in it."""

    has_head = False
    calibration = {  # noqa: RUF012
        "threshold": 0.6, "pass_rate_threshold": 0.2, "quantiles": [0.0, 0.5, 1.0],
    }  # fmt: skip

    def similarity(self, questions, answers):
        table = {"好": 0.75, "差": 0.25}
        return np.array([table.get(answer, 0.9) for answer in answers], np.float32)


def make_config(**changes):
    """The config with groups of two, no charge for short answers, and `changes` of `config.rl`."""
    config = configs.get_config("tiny")
    config.rl.update({"group_size": 2, "min_answer_characters": 0} | changes)
    return config


def make_row(answer: str | None, question: str = "我很累，怎么办呢", **more) -> dict:
    """A judged completion; without an answer it lacks its chain."""
    valid = answer is not None
    return {
        "id": "x",
        "question": question,
        "valid": valid,
        "answer": answer,
        "completion": f"<answer>{answer}",
        "rule": None if valid else "missing_think",
        "layers": dict.fromkeys(chain_of_empathy.LAYERS, valid),
        "tokens": 4,
        "finished": True,
        **more,
    }


def make_rollout(answers: list[str | None], config, questions=None) -> Rollout:
    """A rollout of groups of two; completion n consists of the token n, n % 3 + 1 times."""
    groups = len(answers) // 2
    questions = np.arange(groups) if questions is None else np.asarray(questions)
    rows = [
        make_row(answer, f"第{questions[i // 2]}个问题", tokens=i % 3 + 1, finished=i % 2 == 0)
        for i, answer in enumerate(answers)
    ]
    lengths = np.array([row["tokens"] for row in rows])
    filled = np.arange(6) < lengths[:, None]
    tokens = np.where(filled, np.arange(len(rows))[:, None], 9).astype(np.int32)
    done = Completions(
        tokens,
        np.where(filled, -tokens / 10, 0).astype(np.float32),
        lengths,
        np.array([row["finished"] for row in rows]),
    )
    terms = reward_terms.score(rows, TableScorer(), config)
    prompts = [[20 + int(question), 30] for question in questions]
    return Rollout(questions, prompts, done, rows, terms)
