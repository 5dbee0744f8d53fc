"""The reward model: questions and answers in one space, learnt by contrast.

An answer is drawn to its own question and away from answers of other questions, of which some are
alike, and from corrupted answers: InfoNCE over all cosines of the batch, the whole mesh's, plus a
triplet loss. Answers of the same question are never each other's negatives, and one that scores too
well to be a negative for certain is left out. A question carries a prompt that an answer does not, so
that an echo of the question has a vector of its own and can be learnt to be no answer.

The triplet loss alone against any other answer is the paper's (Empathy-R1,
https://arxiv.org/abs/2509.14851): info_nce_weight=0 triplet_weight=1 triplet_negative=any
in_batch=random corrupted=0.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from empathy_jax import contrastive, files, hosts, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import arrangement, pairs
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation import calibration, probes
from empathy_jax.metric_writer import Recorder
from empathy_jax.models import decoder, encoder, score_head
from empathy_jax.models.pooling import Embedding, check_kind
from empathy_jax.optimizer import make_optimizer
from empathy_jax.sharding import Layout
from empathy_jax.training import common, inputs
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import Model, TrainState
from empathy_jax.training.scorer import Scorer, check_positions, embed_rows

# Put before a question where neither the config nor the imported model says otherwise.
QUERY_PROMPTS = {"zh": "求助：", "en": "A person asks for help: "}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of `config.reward_model` that the loss reads, and the pooling."""

    pooling: str
    temperature: float
    margin: float
    triplet_weight: float
    triplet_negative: str
    info_nce_weight: float
    head_weight: float
    matryoshka_dims: tuple[int, ...]
    negative_ceiling: float
    negative_margin: float
    rows_per_pass: int


def loss_fn(
    trainable: dict[str, Any],
    frozen: dict[str, Any],
    batch: dict[str, jax.Array],
    config: Any,
    settings: Settings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean contrastive loss of a batch of questions, and its parts.

    Args:
      trainable, frozen: see `common.join`.
      batch: see `data.pairs`.
      config: the architecture.
      settings: see `Settings`.
    """
    variables = common.join(trainable, frozen)
    rows = {name: batch[name] for name in ("tokens", "segment_ids", "positions")}
    embed = functools.partial(embed_rows, variables, config, settings.pooling)
    chunk = settings.rows_per_pass or rows["tokens"].shape[0]
    vectors = contrastive.map_in_chunks(embed, rows, chunk)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    questions, documents = vectors[batch["questions"]], vectors[batch["documents"]]

    own = jnp.arange(questions.shape[0])
    others = batch["groups"][:, None] != batch["document_groups"][None, :]
    scores = jax.lax.stop_gradient(questions @ documents.T)
    # Fresh weights put all texts close together: a ceiling would leave them nothing to learn from.
    ceiling = settings.negative_ceiling if settings.negative_ceiling < 1 else None
    doubtful = contrastive.false_negatives(
        scores, scores[own, own], ceiling, settings.negative_margin, None
    )
    # A corrupted answer is no good one, however well it scores.
    negatives = others & ~(doubtful & (batch["document_groups"] != pairs.NO_QUESTION)[None, :])

    def contrast(questions: jax.Array, documents: jax.Array) -> jax.Array:
        return _contrast(questions, documents, negatives, settings)

    if settings.matryoshka_dims:
        losses = contrastive.matryoshka(contrast, questions, documents, settings.matryoshka_dims)
    else:
        losses = contrast(questions, documents)
    info_nce, triplet = jnp.mean(losses, axis=1)
    loss = settings.info_nce_weight * info_nce + settings.triplet_weight * triplet
    best_other = jnp.max(jnp.where(others, scores, -jnp.inf), axis=1)
    parts = {
        "info_nce": info_nce,
        "triplet": triplet,
        "recall": jnp.mean(scores[own, own] > best_other),
        "doubtful": jnp.sum(others & ~negatives) / jnp.maximum(jnp.sum(others), 1),
    }
    if settings.head_weight:
        question, better, worse = (vectors[slots] for slots in batch["graded"].T)
        grades = [score_head.grade(variables["head"], question, a) for a in (better, worse)]
        parts["bradley_terry"] = jnp.mean(contrastive.bradley_terry(*grades))
        loss = loss + settings.head_weight * parts["bradley_terry"]
    return loss, parts


def _contrast(
    questions: jax.Array, documents: jax.Array, negatives: jax.Array, settings: Settings
) -> jax.Array:
    """InfoNCE and triplet loss of each question, [2, B]; without any negative both are 0."""
    own = jnp.arange(questions.shape[0])
    info_nce = contrastive.info_nce(questions, documents, own, settings.temperature, negatives)
    if settings.triplet_negative == "hardest":
        scores = jax.lax.stop_gradient(questions @ documents.T)
        hardest, found = contrastive.hardest_negative(scores, negatives)
        triplet = contrastive.triplet_cosine(
            questions, documents[own], documents[hardest], settings.margin
        )
        triplet = jnp.where(found, triplet, 0.0)
    else:
        triplet = contrastive.triplet_cosine_any(questions, documents, negatives, settings.margin)
    return jnp.stack([info_nce, triplet])


def update_fn(
    state: TrainState,
    frozen: dict[str, Any],
    batch: dict[str, jax.Array],
    config: Any,
    settings: Settings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step; returns the new state and its metrics."""
    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.trainable, frozen, batch, config, settings
    )
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **parts}
    state = common.apply_gradients(state, grads, optimizer)
    return state, metrics | {"param_norm": optax.tree.norm(state.trainable)}


def make_update(
    config: Any,
    settings: Settings,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled `update_fn`, of (state, frozen, batch); the state is donated."""
    return jax.jit(
        functools.partial(update_fn, config=config, settings=settings, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase `reward_model`: reads questions with answers; writes `checkpoints/`,
    `calibration.json` and `metrics.jsonl`. With `config.steps=0` an import is calibrated as it is."""
    began = time.monotonic()
    _check_choices(config)
    folder = workdirs.open_phase(workdir, "reward_model", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    section = config.reward_model
    sharding.check_rows(config.batch_size, layout.mesh, "config.batch_size")
    sharding.check_length(section.max_tokens, layout.mesh, "config.reward_model.max_tokens")
    if section.head_weight:
        sharding.check_rows(section.graded_pairs, layout.mesh, "config.reward_model.graded_pairs")

    # Data and model.
    records = inputs.read_questions(config, folder)
    model = load(config, layout, records["train"])
    stream = pairs.PairStream(
        records["train"], config.batch_size, text_layout(config, model, layout), config.seed
    )
    held_out = records["validation"][: section.eval_questions or None]
    common.save_model_folder(folder, model)
    common.announce("reward_model", model, records)

    # State and compiled steps.
    settings = make_settings(config, model.embedding.pooling)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    start, state = common.restore_state(folder / "checkpoints", state, frozen)
    update = make_update(model.config, settings, optimizer, shardings, layout.mesh)
    scorer = Scorer(common.join(state.trainable, frozen), model, {}, layout)

    def score_with(state: TrainState) -> Scorer:
        return scorer.with_variables(common.join(state.trainable, frozen))

    def measure(state: TrainState, step: int) -> None:
        last = step == config.steps
        found = calibrate(config, held_out, score_with(state), probes.QUESTIONS if last else 0)
        measured = headline(found)
        recorder.write(step, measured)
        recorder.say(
            f"[reward_model] step {step}: pairwise accuracy {measured['pairwise_accuracy']:.3f}, "
            f"recall@1 {measured['random_recall']:.3f} (random), "
            f"{measured['nearest_recall']:.3f} (nearest)"
        )
        if last:
            files.write_json(folder / "calibration.json", found)

    # Loop.
    stop = hosts.Agreement()
    with (
        jax.set_mesh(layout.mesh),
        Recorder(folder, "reward_model", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            measure(state, 0)
        if config.steps == 0:
            checkpointer.save(0, common.checkpoint_items(state, frozen))
        batches: list[list[int]] = []
        for step in range(start + 1, config.steps + 1):
            place = (step - 1) % section.mine_every
            if place == 0 or not batches:
                batches = arranged(config, folder, stream, step - place, score_with(state))
            batch = common.put_batch(stream.batch(step, batches[place]), layout.mesh)
            state, metrics = update(state, frozen, batch)
            recorder.push(step, metrics)
            last = step == config.steps
            if last or step % config.log.validate_every == 0:
                measure(state, step)
            preempted = stop.agreed(bool(sigterm)) and not last
            if last or preempted or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, common.checkpoint_items(state, frozen))
                if preempted:
                    checkpointer.wait()
                    raise workdirs.Preempted("reward_model", step)

    figures = [
        workdirs.figure(folder, "pairwise accuracy (chance 0.5)", "pairwise_accuracy"),
        workdirs.figure(folder, "recall@1 among answers at random", "random_recall"),
        workdirs.figure(folder, "recall@1 among nearest questions'", "nearest_recall"),
    ]
    return workdirs.finish(folder, "reward_model", began, figures)


def calibrate(config: ConfigDict, records: list[dict], scorer: Scorer, limit: int) -> dict:
    """What goes to calibration.json: ranks, thresholds, quantiles; corruptions and probes of `limit`
    questions, none where that is 0."""
    language = config.data.language
    visible = probes.visible_characters(scorer.max_tokens, language)
    found = calibration.calibrate(
        records, scorer, config.reward_model.pass_rate, language, visible, config.seed, limit
    )
    if limit:
        cosine = probes.run(records, scorer, language, visible, config.seed, limit)
        found["probes"] = {"cosine": cosine}
    return found


def headline(found: dict) -> dict[str, float]:
    """What of a calibration is followed during training."""
    measured = {name: found[name] for name in ("pairwise_accuracy", "pairwise_accuracy_error")}
    for name in ("random", "nearest"):
        measured[f"{name}_recall"] = found[name]["recall_at_1"]
        measured[f"{name}_recall_error"] = found[name]["recall_at_1_error"]
    return measured


def arranged(
    config: ConfigDict, folder: Path, stream: pairs.PairStream, first: int, scorer: Scorer
) -> list[list[int]]:
    """The pairs of each of the `mine_every` batches from step `first` on.

    They are the next of the stream, put together by `config.reward_model.in_batch`; "mined" means
    that the model as it is now takes the questions for alike, so that their answers are the hardest
    to tell apart. (Answers are many times longer than questions: to embed those too would cost a
    fifth of the training.) What a model has chosen is kept in `batches/`: a resumed run no longer has
    the model that chose.
    """
    section = config.reward_model
    chosen = stream.window((first - 1) * config.batch_size, section.mine_every * config.batch_size)
    path = folder / "batches" / f"{first}.json"
    if section.in_batch == "random":
        size = config.batch_size
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]

    def kept() -> list[list[int]] | None:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    if (batches := hosts.from_lead(kept)) is not None:
        return batches
    if section.in_batch == "same_topic":
        similarity = arrangement.by_topic([stream.topic(pair) for pair in chosen])
    else:
        questions = scorer.embed_questions([stream.question(pair) for pair in chosen])
        similarity = questions @ questions.T
    groups = [stream.group(pair) for pair in chosen]

    def choose() -> list[list[int]]:
        order = arrangement.by_similarity(
            similarity, groups, config.batch_size, section.company, (config.seed, first)
        )
        batches = [[chosen[int(index)] for index in batch] for batch in order]
        path.parent.mkdir(exist_ok=True)
        files.write_json(path, batches)
        return batches

    return hosts.from_lead(choose)


def _check_choices(config: ConfigDict) -> None:
    allowed = {
        "architecture": ("encoder", "decoder"),
        "triplet_negative": ("hardest", "any"),
        "in_batch": ("random", "same_topic", "mined"),
    }
    for name, choices in allowed.items():
        if config.reward_model[name] not in choices:
            raise ValueError(
                f"config.reward_model.{name} is {config.reward_model[name]!r}; allowed: "
                f"{', '.join(choices)}"
            )


def make_settings(config: ConfigDict, pooling: str) -> Settings:
    """What the loss reads of the config."""
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "pooling"]
    values = {name: config.reward_model[name] for name in names}
    return Settings(pooling=pooling, **values)


def text_layout(config: ConfigDict, model: Model, layout: Layout) -> pairs.Layout:
    """How the texts of a batch are cut, prompted and packed."""
    section, embedding = config.reward_model, model.embedding

    def tokenize(prompt: str) -> Callable[[str], list[int]]:
        return lambda text: tokenizers.text_ids(
            model.tokenizer, prompt + text, max_tokens=embedding.max_tokens
        )

    parts = sharding.batch_parts(layout.mesh)
    multiple = section.rows_per_pass or 1
    return pairs.Layout(
        tokenize(embedding.query_prompt),
        tokenize(embedding.document_prompt),
        embedding.max_tokens,
        model.tokenizer.pad_token_id,
        row_multiple=math.lcm(parts, multiple),
        corrupted=section.corrupted,
        graded_pairs=section.graded_pairs if section.head_weight else 0,
        language=config.data.language,
    )


def load(config: ConfigDict, layout: Layout, records: list[dict]) -> Model:
    """The model to train: imported, or fresh with a tokenizer learnt from the records."""
    section, field = config.reward_model, "config.reward_model.init"
    if section.init:
        model = common.load_model(section.init, section, field, None, layout)
        check_positions(model, section.max_tokens, "config.reward_model.max_tokens", section.init)
    else:
        model = _fresh(config, layout, records)
    came = model.embedding
    if came is None:
        tokenizers.end_texts(model.tokenizer)
    usual = "mean" if model.module is encoder else "last"
    pooling = section.pooling or (came.pooling if came else usual)
    check_kind(pooling, model.config, "config.reward_model.pooling")
    prompts = (QUERY_PROMPTS[config.data.language], "")
    if came:
        prompts = (came.query_prompt, came.document_prompt)
    given = (section.query_prompt, section.document_prompt)
    prompts = [own if wish is None else wish for wish, own in zip(given, prompts, strict=True)]
    has_head = section.head_weight > 0
    if not has_head:
        # A head that is not trained along would grade vectors that have moved on.
        model.variables.pop("head", None)
    elif "head" not in model.variables:
        head = score_head.init_params(model.config.width)
        model.variables["head"] = hosts.put(head, sharding.replicated(layout.mesh))
    embedding = Embedding(pooling, section.max_tokens, *prompts, has_head)
    return dataclasses.replace(model, embedding=embedding)


def _fresh(config: ConfigDict, layout: Layout, records: list[dict]) -> Model:
    section = config.reward_model
    if section.tokenizer:
        tokenizer = tokenizers.load_plain(section.tokenizer, section.vocab_size)
    else:
        tokenizer = tokenizers.train(inputs.training_texts(records), section.vocab_size)
    kind = encoder.EncoderConfig if section.architecture == "encoder" else decoder.DecoderConfig
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in section.items() if name in fields}
    with common.naming_section("config.reward_model"):
        architecture = kind(max_positions=section.max_tokens, **values)
    params = common.fresh_params(common.stream(config.seed, "init"), architecture, layout)
    return Model(architecture, {"params": params}, tokenizer)
