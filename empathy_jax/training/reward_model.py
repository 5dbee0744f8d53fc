"""The reward model: questions and answers in one space, learnt by contrast.

An answer is drawn to its own question and away from the answers of the other questions in the batch:
InfoNCE over the cosines of the whole batch plus a triplet loss against the hardest of them. Answers
of the same question are never each other's negatives.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from empathy_jax import contrastive, files, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import pairs
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation import calibration
from empathy_jax.metric_writer import Recorder
from empathy_jax.models import decoder, encoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.models.pooling import check_kind, normalise, pool
from empathy_jax.optimizer import make_optimizer
from empathy_jax.sharding import Layout
from empathy_jax.training import common, inputs
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import Model, TrainState

TEXTS_PER_PASS = 32  # embedded side by side when scoring


def embed(
    variables: dict[str, Any], config: Any, pooling: str, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """Unit vectors of texts, [B, D] in float32.

    Args:
      variables: `params`, and `lora` where there are adapters.
      config: an encoder's or a decoder's architecture.
      pooling: "mean", "cls" or "last".
      tokens: [B, T].
      mask: true where a token counts, [B, T].
    """
    lora = variables.get("lora")
    if isinstance(config, encoder.EncoderConfig):
        hidden = encoder.hidden_states(variables["params"], config, tokens, mask, lora=lora)
    else:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        allowed = causal_mask(mask.astype(jnp.int32))
        hidden, _ = decoder.hidden_states(
            variables["params"], config, tokens, positions, allowed, lora=lora
        )
    return normalise(pool(hidden, mask, pooling))


def loss_fn(
    trainable: Any,
    frozen: dict[str, Any],
    batch: dict[str, jax.Array],
    config: Any,
    settings: "Settings",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean contrastive loss of a batch of (question, answer) pairs, and its parts.

    Args:
      trainable, frozen: see `common.join`.
      batch: question_tokens, question_mask, answer_tokens, answer_mask [B, T] and group [B], the
        number of the question; pairs of one group are not negatives of each other.
      config: the architecture.
      settings: pooling and the losses' parameters.
    """
    variables = common.join(trainable, frozen)
    questions, answers = (
        embed(variables, config, settings.pooling, batch[f"{name}_tokens"], batch[f"{name}_mask"])
        for name in ("question", "answer")
    )
    size = questions.shape[0]
    own = jnp.arange(size)
    allowed = (batch["group"][:, None] != batch["group"][None, :]) | jnp.eye(size, dtype=bool)
    contrast = contrastive.info_nce(questions, answers, own, settings.temperature, allowed)
    cosines = questions @ answers.T
    negatives = jnp.where(allowed & ~jnp.eye(size, dtype=bool), cosines, -jnp.inf)
    hardest = jnp.argmax(jax.lax.stop_gradient(negatives), axis=1)
    triplet = contrastive.triplet_cosine(questions, answers, answers[hardest], settings.margin)
    triplet = jnp.where(jnp.any(jnp.isfinite(negatives), axis=1), triplet, 0.0)
    loss = settings.info_nce_weight * jnp.mean(contrast) + settings.triplet_weight * jnp.mean(
        triplet
    )
    hits = jnp.argmax(jnp.where(allowed, cosines, -jnp.inf), axis=1) == own
    parts = {"info_nce": jnp.mean(contrast), "triplet": jnp.mean(triplet), "recall": jnp.mean(hits)}
    return loss, parts


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of `config.reward_model` that the loss reads."""

    pooling: str
    temperature: float
    margin: float
    triplet_weight: float
    info_nce_weight: float


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


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase `reward_model`: reads questions with answers; writes `checkpoints/`,
    `calibration.json` and `metrics.jsonl`."""
    began = time.monotonic()
    folder = workdirs.open_phase(workdir, "reward_model", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    sharding.check_rows(config.batch_size, layout.mesh, "config.batch_size")

    # Data and model.
    records = inputs.read_questions(config, folder)
    model = _load(config, layout, records["train"])
    tokenize = functools.partial(
        tokenizers.text_ids, model.tokenizer, max_tokens=config.reward_model.max_tokens
    )
    pad_id = model.tokenizer.pad_token_id
    dataset = pairs.pair_dataset(
        records["train"],
        tokenize,
        config.reward_model.max_tokens,
        config.batch_size,
        pad_id,
        seed=config.seed,
    )
    common.save_model_folder(folder, model)
    common.announce("reward_model", model, records)

    # State and compiled steps.
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: config.reward_model[name] for name in names})
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    start, state = common.restore_state(folder / "checkpoints", state, frozen)
    update = jax.jit(
        functools.partial(update_fn, config=model.config, settings=settings, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(layout.mesh)),
    )

    def calibrate(state: TrainState) -> dict:
        variables = common.join(state.trainable, frozen)
        scorer = Scorer(variables, model, config.reward_model.max_tokens, {}, layout)
        return calibration.calibrate(records["validation"], scorer.embed)

    def headline(found: dict) -> dict[str, float]:
        return {
            "pairwise_accuracy": found["pairwise_accuracy"],
            "pairwise_accuracy_error": found["pairwise_accuracy_error"],
            "recall_at_1": found["recall_at_1"],
        }

    # Loop.
    with (
        jax.set_mesh(layout.mesh),
        Recorder(folder, "reward_model", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            recorder.write(0, headline(calibrate(state)))
        for step in range(start + 1, config.steps + 1):
            batch = common.put_batch(dataset[step - 1], layout.mesh)
            state, metrics = update(state, frozen, batch)
            recorder.push(step, metrics)
            last = step == config.steps
            if last or step % config.log.validate_every == 0:
                found = calibrate(state)
                recorder.write(step, headline(found))
                recorder.say(
                    f"[reward_model] step {step}: pairwise accuracy "
                    f"{found['pairwise_accuracy']:.3f}, recall@1 {found['recall_at_1']:.3f}"
                )
            if last:
                settled = {"max_tokens": config.reward_model.max_tokens, **found}
                files.write_json(folder / "calibration.json", settled)
            if last or sigterm or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, common.checkpoint_items(state, frozen))
                if sigterm and not last:
                    checkpointer.wait()
                    raise workdirs.Preempted("reward_model", step)

    figures = [
        workdirs.figure(folder, "pairwise accuracy (chance 0.5)", "pairwise_accuracy"),
        workdirs.figure(folder, "recall@1 among held-out answers", "recall_at_1"),
    ]
    return workdirs.finish(folder, "reward_model", began, figures)


def _load(config: ConfigDict, layout: Layout, records: list[dict]) -> Model:
    """The model to train: imported, or a fresh encoder with a tokenizer learnt from the records."""
    section = config.reward_model
    if section.init:
        model = common.load_model(section.init, section, "config.reward_model.init", None, layout)
        check_kind(section.pooling, model.config, "config.reward_model.pooling")
        _check_positions(model, section.max_tokens, "config.reward_model.max_tokens", section.init)
        return dataclasses.replace(model, pooling=section.pooling)
    if section.tokenizer:
        tokenizer = tokenizers.load_plain(section.tokenizer, section.vocab_size)
    else:
        tokenizer = tokenizers.train(inputs.training_texts(records), section.vocab_size)
    fields = {field.name for field in dataclasses.fields(encoder.EncoderConfig)}
    values = {name: value for name, value in section.items() if name in fields}
    with common.naming_section("config.reward_model"):
        architecture = encoder.EncoderConfig(max_positions=section.max_tokens, **values)
    check_kind(section.pooling, architecture, "config.reward_model.pooling")
    params = common.fresh_params(common.stream(config.seed, "init"), architecture, layout)
    return Model(architecture, {"params": params}, tokenizer, pooling=section.pooling)


def _check_positions(model: Model, max_tokens: int, field: str, init: str) -> None:
    if model.config.max_positions < max_tokens:
        raise ValueError(
            f"{field} is {max_tokens}, but {init} reads {model.config.max_positions} positions at "
            "most; lower it to that"
        )


class Scorer:
    """Cosine similarity of questions and answers under a reward model, with its calibration.

    Holds compiled functions and weights. A text's score does not depend on what else is in its
    batch: padding is masked.
    """

    def __init__(
        self,
        variables: dict[str, Any],
        model: Model,
        max_tokens: int,
        calibrated: dict,
        layout: Layout,
    ):
        self._variables, self._model, self._max_tokens = variables, model, max_tokens
        self.calibration = calibrated
        self._layout = layout
        self._embed = jax.jit(functools.partial(embed, config=model.config, pooling=model.pooling))

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of texts, float32 [N, D]; equal texts are embedded once."""
        unique = list(dict.fromkeys(texts))
        ids = [
            tokenizers.text_ids(self._model.tokenizer, text, max_tokens=self._max_tokens)
            for text in unique
        ]
        order = sorted(range(len(unique)), key=lambda i: len(ids[i]))
        vectors: dict[str, np.ndarray] = {}
        for begin in range(0, len(order), TEXTS_PER_PASS):
            chosen = order[begin : begin + TEXTS_PER_PASS]
            rows = [ids[i] for i in chosen] + [[]] * (TEXTS_PER_PASS - len(chosen))
            tokens, mask = pairs.pad(rows, self._model.tokenizer.pad_token_id, self._max_tokens)
            found = np.asarray(self._embed(self._variables, tokens=tokens, mask=mask))
            vectors |= {unique[i]: found[row] for row, i in enumerate(chosen)}
        return np.stack([vectors[text] for text in texts])

    def similarity(self, questions: list[str], answers: list[str]) -> np.ndarray:
        """Cosine of each question with its answer, float32 [N]."""
        return np.einsum("nd,nd->n", self.embed(questions), self.embed(answers))


def load_scorer(config: ConfigDict, workdir: Path, layout: Layout) -> Scorer:
    """The reward model of `config.reward_model.init`, or of WORKDIR/reward_model.

    Texts are cut and pooled as they were when it was calibrated, whatever the config says now.

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
            "reward_model from it and give that run's folder as config.reward_model.init"
        )
    calibrated = json.loads(path.read_text(encoding="utf-8"))
    if "max_tokens" not in calibrated:
        raise ValueError(
            f"{path} has no max_tokens; add the config.reward_model.max_tokens that the run was "
            "made with, or run the phase reward_model again"
        )
    model = common.load_model(init, section, "config.reward_model.init", None, layout)
    _check_positions(model, calibrated["max_tokens"], f"max_tokens of {path}", init)
    return Scorer(model.variables, model, calibrated["max_tokens"], calibrated, layout)
