"""A trained reward model in use: the vectors of texts and how well answers fit questions."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from empathy_jax import hosts, sharding
from empathy_jax.data import pairs
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder, encoder, score_head
from empathy_jax.models.attention import causal_mask, segment_mask
from empathy_jax.models.pooling import normalise, pool, pooled_places
from empathy_jax.sharding import Layout
from empathy_jax.training import common
from empathy_jax.training.common import Model

ROWS_PER_PASS = 16  # packed rows whose texts are embedded at a time


def embed_rows(
    variables: dict[str, Any], config: Any, pooling: str, rows: dict[str, jax.Array]
) -> jax.Array:
    """Unit vectors of the texts in packed rows, [R, SEGMENTS, D] in float32.

    Args:
      variables: `params`, and `lora` where there are adapters.
      config: an encoder's or a decoder's architecture.
      pooling: "mean", "cls" or "last".
      rows: tokens, segment_ids and positions [R, T], of `pairs.pack_texts`.
    """
    params, lora = variables["params"], variables.get("lora")
    tokens, segment_ids, positions = (rows[name] for name in ("tokens", "segment_ids", "positions"))
    if isinstance(config, encoder.EncoderConfig):
        mask = segment_mask(segment_ids)
        if pooling == "cls":
            places = pooled_places(segment_ids, pooling, pairs.SEGMENTS)
            return normalise(
                encoder.hidden_states(
                    params, config, tokens, positions, mask, places=places, lora=lora
                )
            )
        hidden = encoder.hidden_states(params, config, tokens, positions, mask, lora=lora)
    else:
        mask = causal_mask(segment_ids)
        hidden, _ = decoder.hidden_states(params, config, tokens, positions, mask, lora=lora)
    return normalise(pool(hidden, segment_ids, pooling, pairs.SEGMENTS))


def make_embed(config: Any, pooling: str, mesh: Mesh) -> Callable[..., jax.Array]:
    """The compiled `embed_rows`, of (variables, rows)."""

    def embed(variables: dict[str, Any], rows: dict[str, jax.Array]) -> jax.Array:
        return embed_rows(variables, config, pooling, rows)

    return jax.jit(embed, out_shardings=sharding.replicated(mesh))


class Scorer:
    """Similarity of questions and answers under a reward model, with its calibration.

    Holds compiled functions and weights. What else is scored in the same call changes a score by no
    more than rounding: texts that share a row do not see each other.
    """

    def __init__(
        self,
        variables: dict[str, Any],
        model: Model,
        calibrated: dict,
        layout: Layout,
        rows_per_pass: int = ROWS_PER_PASS,
    ):
        self._variables, self._model, self._layout = variables, model, layout
        self._rows_per_pass = rows_per_pass
        self.calibration = calibrated
        self.has_head, self.max_tokens = model.embedding.has_head, model.embedding.max_tokens
        self._embed = make_embed(model.config, model.embedding.pooling, layout.mesh)

    def with_variables(self, variables: dict[str, Any]) -> "Scorer":
        """The same model with other weights; nothing is compiled anew."""
        other = copy.copy(self)
        other._variables = variables
        return other

    def embed_questions(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of questions, float32 [N, D]."""
        return self._embed_texts(texts, self._model.embedding.query_prompt)

    def embed_answers(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of answers, float32 [N, D]."""
        return self._embed_texts(texts, self._model.embedding.document_prompt)

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens of texts as they are read, prompts left aside."""
        model, limit = self._model, self.max_tokens
        return sum(len(tokenizers.text_ids(model.tokenizer, text, limit)) for text in texts)

    def similarity(self, questions: list[str], answers: list[str]) -> np.ndarray:
        """Cosine of each question with its answer, float32 [N]."""
        return np.einsum("nd,nd->n", self.embed_questions(questions), self.embed_answers(answers))

    def quality(self, questions: list[str], answers: list[str]) -> np.ndarray:
        """The head's grade of each answer, float32 [N]; only for a model with a head."""
        vectors = (self.embed_questions(questions), self.embed_answers(answers))
        head = jax.device_get(self._variables["head"])
        return np.asarray(score_head.grade(head, *map(jnp.asarray, vectors)))

    def _embed_texts(self, texts: list[str], prompt: str) -> np.ndarray:
        """Vectors of prompt + text; equal texts are embedded once."""
        model, unique = self._model, list(dict.fromkeys(texts))
        max_tokens, pad_id = model.embedding.max_tokens, model.tokenizer.pad_token_id
        ids = [tokenizers.text_ids(model.tokenizer, prompt + text, max_tokens) for text in unique]
        parts = sharding.batch_parts(self._layout.mesh)
        rows, slots = pairs.pack_texts(ids, max_tokens, pad_id)
        count = rows["tokens"].shape[0]
        size = -(-self._rows_per_pass // parts) * parts
        found = []
        for start in range(0, count, size):
            some = {name: array[start : start + size] for name, array in rows.items()}
            short = size - some["tokens"].shape[0]
            some = {name: np.pad(array, ((0, short), (0, 0))) for name, array in some.items()}
            placed = common.put_batch(some, self._layout.mesh)
            found.append(np.asarray(self._embed(self._variables, placed)))
        vectors = np.concatenate(found).reshape(-1, found[0].shape[-1])[slots]
        number = {text: index for index, text in enumerate(unique)}
        return vectors[[number[text] for text in texts]]


def check_positions(model: Model, max_tokens: int, field: str, init: str) -> None:
    """Refuses texts longer than the model reads."""
    if model.config.max_positions < max_tokens:
        raise ValueError(
            f"{field} is {max_tokens}, but {init} reads {model.config.max_positions} positions at "
            "most; lower it to that"
        )


def load_scorer(
    config: ConfigDict, workdir: Path, layout: Layout, rows_per_pass: int = ROWS_PER_PASS
) -> Scorer:
    """The reward model of `config.reward_model.init`, or of WORKDIR/reward_model.

    Texts are prompted, cut and pooled as they were when it was calibrated, whatever the config says
    now.

    Raises:
      ValueError: when there is none, or it was never calibrated (an untrained import).
    """
    section = config.reward_model
    init = section.init or common.find_run(workdir, ("reward_model",), "config.reward_model.init")
    common.refuse_workdir(init, "config.reward_model.init")
    path = Path(init) / "calibration.json"
    if not path.exists():
        raise ValueError(
            f"{init} has no calibration.json, so its scores have no scale; run the phase "
            "reward_model from it (with config.steps=0 it stays as it is) and give that run's folder as "
            "config.reward_model.init"
        )
    calibrated = json.loads(path.read_text(encoding="utf-8"))
    model = common.load_model(init, section, "config.reward_model.init", None, layout)
    check_positions(model, model.embedding.max_tokens, f"max_tokens of {init}", init)
    return Scorer(model.variables, model, calibrated, layout, rows_per_pass)


def find_scorer(
    config: ConfigDict, workdir: Path, layout: Layout, rows_per_pass: int = ROWS_PER_PASS
) -> Scorer | None:
    """`load_scorer` where a reward model is named, or a calibrated one is in WORKDIR; else None."""
    judge = common.first_run(workdir, ("reward_model",))
    is_calibrated = hosts.from_lead(
        lambda: judge is not None and (judge / "calibration.json").exists()
    )
    if config.reward_model.init or is_calibrated:
        return load_scorer(config, workdir, layout, rows_per_pass)
    return None
