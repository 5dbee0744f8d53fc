"""The measures of an evaluation: those of texts, and those that take a model to judge.

Which models there are, `config.evaluate` and the WORKDIR say: an encoder for BERTScore, a language
model for perplexity, the reward model. Without one its measures are left out.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation.metrics import bert_score, perplexity, references, scoring
from empathy_jax.evaluation.metrics.catalogue import MEASURES
from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.evaluation.metrics.references import Candidates
from empathy_jax.models import decoder
from empathy_jax.rl import rewards
from empathy_jax.sharding import Layout
from empathy_jax.training import common, reward_terms
from empathy_jax.training.common import Model
from empathy_jax.training.scorer import Scorer, find_scorer


@dataclasses.dataclass(frozen=True)
class Judges:
    """Models that judge answers; None where there is none.

    Attributes:
      scorer: the reward model.
      encoder: of BERTScore.
      layer: of the encoder, whose states are compared; 0 is the last.
      language_model: of the perplexity.
      mesh: that they lie on.
    """

    scorer: Scorer | None = None
    encoder: Model | None = None
    layer: int = 0
    language_model: Model | None = None
    mesh: Mesh | None = None


def load_judges(config: ConfigDict, workdir: Path, layout: Layout) -> Judges:
    """The judges of a run: `config.evaluate.bertscore_model` and `perplexity_model`, and the reward
    model where one is given or WORKDIR has one that is calibrated.

    Raises:
      ValueError: for a place without a model, or a model of the wrong kind.
    """
    scorer = find_scorer(config, workdir, layout)
    encoder, language_model = (
        _load(config, name, layout) for name in ("bertscore_model", "perplexity_model")
    )
    if encoder is not None and encoder.module is decoder:
        raise ValueError(
            f"config.evaluate.bertscore_model is {config.evaluate.bertscore_model!r}, a decoder; "
            "name an encoder (BERT)"
        )
    if language_model is not None and language_model.module is not decoder:
        raise ValueError(
            f"config.evaluate.perplexity_model is {config.evaluate.perplexity_model!r}, an encoder; "
            "name a decoder"
        )
    layer = config.evaluate.bertscore_layer
    return Judges(scorer, encoder, layer, language_model, layout.mesh)


def _load(config: ConfigDict, name: str, layout: Layout) -> Model | None:
    init = config.evaluate[name]
    if not init:
        return None
    section = config.model.copy_and_resolve_references()
    section.update({"tokenizer": "", "lora_rank": 0})
    return common.load_model(init, section, f"config.evaluate.{name}", None, layout)


def describe(judges: Judges, config: ConfigDict) -> dict[str, Any]:
    """Which models judged, for scores.json."""
    found: dict[str, Any] = {}
    if judges.encoder is not None:
        layers = judges.encoder.config.num_layers
        found["bertscore"] = {
            "model": config.evaluate.bertscore_model,
            "layer": judges.layer or layers,
            "most_tokens": judges.encoder.config.max_positions,
        }
    if judges.language_model is not None:
        most = min(perplexity.LONGEST, judges.language_model.config.max_positions)
        found["perplexity"] = {"model": config.evaluate.perplexity_model, "most_tokens": most}
    if judges.scorer is not None:
        found["reward_model"] = {
            "model": config.reward_model.init or "reward_model",
            "threshold": reward_terms.threshold(judges.scorer.calibration, config),
        }
    return found


def score(
    rows: Sequence[dict], questions: Sequence[dict], judges: Judges, config: ConfigDict
) -> tuple[dict[str, dict[str, Any]], list[dict[str, float | None]], dict[str, Any]]:
    """Measures of all rows beside floor and ceiling, and the measures of each row.

    Answers are measured where the chain is valid: a broken text has none.

    Args:
      rows: of generations.jsonl.
      questions: question records, each with rows.
      judges: the models.
      config: of the run; its seed decides the floor and the resampling.

    Returns:
      The entries of `scoring.table` in the order of MEASURES; name to value for each row, None
      where there is none; and `scoring.wins` of the model, the floor and the ceiling.
    """
    index_of = {record["id"]: index for index, record in enumerate(questions)}
    owners = np.array([index_of[row["id"]] for row in rows], np.int64)
    valid = np.array([index for index, row in enumerate(rows) if row["rule"] is None], np.int64)
    answers = [rows[index]["answer"] for index in valid]
    known = [[answer["text"] for answer in record["answers"]] for record in questions]
    asked = [record["question"] for record in questions]
    sets = references.candidate_sets(known, answers, owners[valid], config.seed)

    with_encoder = None
    if judges.encoder is not None:
        model = judges.encoder
        with_encoder = functools.partial(
            bert_score.score_pairs,
            params=model.variables["params"],
            config=model.config,
            tokenizer=model.tokenizer,
            layer=judges.layer,
        )
    values = scoring.measure(sets, asked, config.data.language, with_encoder)
    for name in ("model", "floor", "ceiling"):
        values[name] |= _judged(sets[name], asked, judges, config)
    sums = scoring.add_up(values, sets, len(questions))
    form = _form(rows)
    for name, found in form.items():
        sums[name] = {"model": scoring.sums_of(name, found, owners, len(questions))}
    table = scoring.table(sums, config.seed)
    table |= scoring.corpus_distinct_entries(sets, len(questions), config.seed)

    per_row: list[dict[str, float | None]] = [{} for _ in rows]
    for name in MEASURES:
        column: Sequence[float | None] = [None] * len(rows)
        if name in form:
            column = scoring.single(name, form[name])
        elif name in values["model"]:
            own = scoring.single(name, values["model"][name])
            column = dict.fromkeys(range(len(rows))) | dict(zip(valid.tolist(), own, strict=True))
            column = [column[index] for index in range(len(rows))]
        else:
            continue
        for row, value in zip(per_row, column, strict=True):
            row[name] = value
    ordered = {name: table[name] for name in MEASURES if name in table}
    return ordered, per_row, scoring.wins(sums, ["model"], config.seed)


def _form(rows: Sequence[dict]) -> dict[str, Floats]:
    """Measures of the completion, valid or not; of the rules those that some row breaks."""
    columns = {
        "validity": [row["rule"] is None for row in rows],
        "finished": [row["finished"] for row in rows],
        "tokens": [row["tokens"] for row in rows],
    }
    for layer in chain_of_empathy.LAYERS:
        columns[f"layer_{layer}"] = [row["whole_layers"][layer] for row in rows]
    broken = {row["rule"] for row in rows}
    for rule in chain_of_empathy.RULES:
        if rule in broken:
            columns[f"rule_{rule}"] = [row["rule"] == rule for row in rows]
    return {name: np.array(column, np.float64) for name, column in columns.items()}


def _judged(
    candidates: Candidates, questions: Sequence[str], judges: Judges, config: ConfigDict
) -> Mapping[str, Floats]:
    """What the reward model and the language model say of each text."""
    asked, texts = [questions[owner] for owner in candidates.owners], candidates.texts
    found: dict[str, Floats] = {}
    if judges.language_model is not None:
        model = judges.language_model
        found["perplexity"] = perplexity.surprise(
            asked, texts, model.variables["params"], model.config, model.tokenizer, judges.mesh
        )
    if judges.scorer is not None:
        scorer = judges.scorer
        # A policy without a valid answer has no text, and its measures no value.
        similarity = np.asarray(scorer.similarity(asked, texts) if texts else (), np.float64)
        threshold = reward_terms.threshold(scorer.calibration, config)
        found["similarity"] = similarity
        found["similarity_passes"] = np.asarray(
            rewards.binary_answer(similarity, threshold), np.float64
        )
        if scorer.has_head:
            quality = scorer.quality(asked, texts) if texts else ()
            found["quality"] = np.asarray(quality, np.float64)
    return found
