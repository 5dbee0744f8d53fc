"""The reward model behind /v1/embeddings and /score; it takes its turn on the device.

Each call on the device is small, so that those who are being answered wait for no more than one.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from empathy_jax.serving import chat, protocol
from empathy_jax.serving.protocol import EmbeddingRequest, Refused, ScoreRequest
from empathy_jax.serving.worker import Full, Over, Worker
from empathy_jax.training import reward_terms
from empathy_jax.training.scorer import Scorer

TEXTS_PER_CALL = 4


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The reward model.

    Attributes:
      name: under which clients ask for it.
      scorer: made with few rows a pass.
      worker: owns the device.
      config: how the terms of the reward are put together.
      deadline: seconds that a request may take.
    """

    name: str
    scorer: Scorer
    worker: Worker
    config: ConfigDict
    deadline: float


async def embed(rewards: Rewards, request: EmbeddingRequest) -> dict[str, Any]:
    """The vectors of texts, in the form of the protocol.

    Raises:
      Refused: for another model or another length of vectors, a full line, or too late.
    """
    _check_name(rewards, request.model)
    scorer, texts = rewards.scorer, request.texts()
    is_question = request.input_type == "question"
    make = scorer.embed_questions if is_question else scorer.embed_answers

    def some(part: list[str]) -> tuple[np.ndarray, int]:
        return make(part), scorer.count_tokens(part)

    parts = [texts[i : i + TEXTS_PER_CALL] for i in range(0, len(texts), TEXTS_PER_CALL)]
    made = await _in_turns(rewards, [lambda part=part: some(part) for part in parts])
    vectors = np.concatenate([vectors for vectors, _ in made])
    if request.dimensions not in (None, vectors.shape[1]):
        message = f"vectors have {vectors.shape[1]} numbers"
        raise Refused(400, message, "dimensions", "dimensions")
    tokens = sum(count for _, count in made)
    return protocol.embeddings(vectors, request.encoding_format, request.model, tokens)


async def score(rewards: Rewards, request: ScoreRequest) -> dict[str, Any]:
    """What answers to a question are worth: similarity, the terms of the reward, and their sum.

    The term for templates compares an answer with other questions; here there is none.

    Raises:
      Refused: for another model, a full line, or too late.
    """
    if request.model is not None:
        _check_name(rewards, request.model)
    scorer, config = rewards.scorer, rewards.config

    def one(answer: str) -> dict[str, Any]:
        asked, answers = [request.question], [answer]
        similarity = scorer.similarity(asked, answers)
        terms = reward_terms.answer_terms(asked, answers, similarity, scorer, config)
        total = reward_terms.combine_answer(terms, config)
        return {
            "reward": float(total[0]),
            "similarity": float(similarity[0]),
            "terms": {name: float(values[0]) for name, values in terms.items()},
        }

    made = await _in_turns(rewards, [lambda a=answer: one(a) for answer in request.answers])
    scores = [{"index": index, **entry} for index, entry in enumerate(made)]
    return {"object": "list", "model": rewards.name, "data": scores}


def _check_name(rewards: Rewards, name: str) -> None:
    if name != rewards.name:
        raise Refused(404, "there is no such model; see /v1/models", "model_not_found", "model")


async def _in_turns(rewards: Rewards, calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of calls on the device, one after the other, by the deadline."""
    try:
        async with asyncio.timeout(rewards.deadline):
            return [await asyncio.wrap_future(rewards.worker.call(call)) for call in calls]
    except Full as full:
        raise chat.too_many(full) from full
    except Over as over:
        raise chat.failed(str(over)) from over
    except TimeoutError as error:
        raise chat.failed("deadline") from error
