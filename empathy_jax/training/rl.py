"""Stage two: GRPO (https://arxiv.org/abs/2402.03300) with the rewards of Empathy-R1.

Each step samples a group of completions for every question, scores them (format, answer, echo),
turns the scores into advantages within the group, and takes one or more clipped policy-gradient
steps with a KL penalty to the policy that the phase started from. A step is a function of the state
and its number alone, so a run that was killed repeats exactly from its checkpoint.

Departures from GRPO as published: without minibatches the update is strictly on-policy, so the ratio
is 1 and the clip idle; two log-probabilities of a token are kept apart, the sampler's (logged as
`sampler_gap`) and the trainer's (used).
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from empathy_jax import files, losses, masked, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import pipeline
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.metric_writer import Recorder
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.optimizer import make_optimizer
from empathy_jax.rl import advantages as advantages_lib
from empathy_jax.rl import policy_gradient, rewards
from empathy_jax.training import common, completions, inputs
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import Model, TrainState
from empathy_jax.training.reward_model import Scorer, load_scorer

LENGTH_STEP = 256  # padded lengths are multiples of this, so that few shapes are compiled
KL = {"k1": policy_gradient.kl_k1, "k2": policy_gradient.kl_k2, "k3": policy_gradient.kl_k3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the loss reads of `config.rl`, and the sampling temperature."""

    clip_low: float
    clip_high: float
    kl_weight: float
    kl_estimator: str
    aggregation: str
    rows_per_pass: int
    temperature: float
    max_completion_tokens: int


def make_settings(config: ConfigDict) -> Settings:
    """The settings of a config, checked.

    Raises:
      ValueError: for an unknown choice, or one that has no effect.
    """
    rl = config.rl
    allowed = {
        "kl_estimator": ("k2", "k3"),
        "aggregation": ("sequence_mean", "token_mean", "constant_length"),
        "advantage": ("grpo", "dr_grpo", "gdpo"),
        "answer_reward": ("continuous", "binary"),
    }
    for name, choices in allowed.items():
        if rl[name] not in choices:
            why = (
                " (k1 as a loss has no expected gradient on-policy)" if rl[name] == "k1" else ""
            )
            raise ValueError(
                f"config.rl.{name} is {rl[name]!r}{why}; allowed: {', '.join(choices)}"
            )
    if config.sampling.temperature <= 0:
        raise ValueError(
            f"config.sampling.temperature is {config.sampling.temperature}; rollouts need it above 0"
        )
    rows = config.batch_size * rl.group_size
    if rows % rl.minibatches or (rows // rl.minibatches) % min(rl.rows_per_pass, rows):
        raise ValueError(
            f"config.batch_size {config.batch_size} x config.rl.group_size {rl.group_size} = {rows} "
            f"completions cannot be cut into config.rl.minibatches {rl.minibatches} of whole "
            f"config.rl.rows_per_pass {rl.rows_per_pass}"
        )
    names = ("clip_low", "clip_high", "kl_weight", "kl_estimator", "aggregation", "rows_per_pass")
    return Settings(
        **{name: rl[name] for name in names},
        temperature=config.sampling.temperature,
        max_completion_tokens=config.data.max_completion_tokens,
    )


def log_probs_fn(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    config: decoder.DecoderConfig,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy at each target of padded rows, each [B, T]."""
    hidden, _ = decoder.hidden_states(
        variables["params"],
        config,
        batch["tokens"],
        batch["positions"],
        causal_mask(batch["segment_ids"]),
        lora=variables.get("lora"),
    )
    return losses.token_log_probs_from_hidden(
        variables["params"], config, hidden, batch["targets"], common.LOGIT_CHUNK, temperature
    )


def loss_fn(
    trainable: Any,
    batch: dict[str, jax.Array],
    frozen: dict[str, Any],
    config: decoder.DecoderConfig,
    settings: Settings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Policy-gradient loss with its KL penalty, summed over completions, and sums for the metrics.

    Args:
      trainable, frozen: see `common.join`.
      batch: tokens, targets, loss_mask, segment_ids, positions, sampler_log_probs, ref_log_probs
        and old_log_probs [B, T]; advantages [B, 1]. Where `old_log_probs` is absent the policy is
        taken to be the one that sampled.
      config: the architecture.
      settings: see `Settings`.
    """
    log_probs, entropy = log_probs_fn(
        common.join(trainable, frozen), batch, config, settings.temperature
    )
    mask = batch["loss_mask"]
    old = batch.get("old_log_probs", jax.lax.stop_gradient(log_probs))
    clip = (settings.clip_low, settings.clip_high)
    surrogate = policy_gradient.clipped_surrogate(log_probs, old, batch["advantages"], *clip)
    kl = KL[settings.kl_estimator](log_probs, batch["ref_log_probs"])
    per_token = surrogate + settings.kl_weight * kl
    total, count = aggregate(per_token, mask, settings)
    clipped = policy_gradient.is_clipped(log_probs, old, batch["advantages"], *clip)
    gap = jnp.abs(log_probs - batch["sampler_log_probs"])
    sums = {
        "count": count,
        "tokens": masked.masked_count(log_probs, mask),
        "kl": masked.masked_sum(policy_gradient.kl_k3(log_probs, batch["ref_log_probs"]), mask),
        "entropy": masked.masked_sum(entropy, mask),
        "clip_fraction": masked.masked_sum(clipped.astype(jnp.float32), mask),
        "sampler_gap": masked.masked_sum(gap, mask),
    }
    return total, jax.tree.map(jax.lax.stop_gradient, sums)


def aggregate(values: jax.Array, mask: jax.Array, settings: Settings) -> policy_gradient.SumCount:
    """Sum and count by `config.rl.aggregation`."""
    if settings.aggregation == "sequence_mean":
        return policy_gradient.sequence_mean_token_mean(values, mask)
    if settings.aggregation == "token_mean":
        return policy_gradient.token_mean(values, mask)
    return policy_gradient.constant_length(values, mask, settings.max_completion_tokens)


def update_fn(
    state: TrainState,
    frozen: dict[str, Any],
    batch: dict[str, jax.Array],
    config: decoder.DecoderConfig,
    settings: Settings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a (mini)batch of completions; returns the new state and its metrics."""
    (total, sums), grads = common.accumulate(
        functools.partial(loss_fn, frozen=frozen, config=config, settings=settings),
        state.trainable,
        batch,
        settings.rows_per_pass,
    )
    count = jnp.maximum(sums.pop("count"), 1)
    tokens = jnp.maximum(sums.pop("tokens"), 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics = {"loss": total / count, "grad_norm": optax.global_norm(grads)}
    metrics |= {name: value / tokens for name, value in sums.items()}
    return common.apply_gradients(state, grads, optimizer), metrics


def score(rows: list[dict], scorer: Scorer, config: ConfigDict) -> dict[str, np.ndarray]:
    """Every reward term of judged completions, float32 [N] each, and `similarity` as it came.

    An invalid completion has no answer: its answer and echo terms are 0.
    """
    formats = np.asarray([row["valid"] for row in rows], np.float32)
    answers = [row["answer"] or "" for row in rows]
    questions = [row["question"] for row in rows]
    similarity = scorer.similarity(questions, answers)
    calibration = scorer.calibration
    if config.rl.answer_reward == "binary":
        answer = rewards.binary_answer(similarity, calibration["threshold"])
    else:
        answer = rewards.quantile_scaled(similarity, calibration["quantiles"])
    overlap = [rewards.echo_overlap(q, a) for q, a in zip(questions, answers, strict=True)]
    return {
        "format": formats,
        "answer": rewards.gated(formats, answer),
        "echo": rewards.gated(formats, rewards.echo_penalty(overlap)),
        "similarity": similarity,
    }


def combine(terms: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """The reward of each completion: the weighted sum of its terms."""
    weights = reward_weights(config)
    return rewards.total({name: terms[name] for name in weights}, weights)


def reward_weights(config: ConfigDict) -> dict[str, float]:
    """Weights of the terms; an echo is charged for."""
    rl = config.rl
    return {"format": rl.format_weight, "answer": rl.answer_weight, "echo": -rl.echo_weight}


def group_advantages(terms: dict[str, np.ndarray], config: ConfigDict) -> np.ndarray:
    """Advantages [Q, G] by `config.rl.advantage`."""
    shape = (-1, config.rl.group_size)
    if config.rl.advantage == "gdpo":
        weights = reward_weights(config)
        stacked = jnp.stack([jnp.reshape(terms[name], shape) for name in weights])
        return np.asarray(advantages_lib.per_reward(stacked, jnp.asarray(list(weights.values()))))
    total = jnp.reshape(combine(terms, config), shape)
    if config.rl.advantage == "dr_grpo":
        return np.asarray(advantages_lib.group_centered(total))
    return np.asarray(advantages_lib.group_relative(total))


def training_rows(
    prompts: list[list[int]], done: Any, advantages: np.ndarray, pad_id: int
) -> dict[str, np.ndarray]:
    """Padded rows of prompt and completion with the loss on the completion's tokens.

    Args:
      prompts: token ids, one list per completion.
      done: the engine's `Completions`.
      advantages: [N].
      pad_id: fills the rows to a multiple of LENGTH_STEP.
    """
    rows = len(prompts)
    longest = max(len(p) + int(n) for p, n in zip(prompts, done.lengths, strict=True)) - 1
    width = -(-longest // LENGTH_STEP) * LENGTH_STEP
    shape = (rows, width)
    batch = {
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.full(shape, pad_id, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.tile(np.arange(width, dtype=np.int32), (rows, 1)),
        "sampler_log_probs": np.zeros(shape, np.float32),
        "advantages": np.asarray(advantages, np.float32).reshape(rows, 1),
    }
    for row, prompt in enumerate(prompts):
        count = int(done.lengths[row])
        ids = np.concatenate([prompt, done.tokens[row, :count]])
        place = slice(len(prompt) - 1, ids.size - 1)
        batch["tokens"][row, : ids.size - 1] = ids[:-1]
        batch["targets"][row, : ids.size - 1] = ids[1:]
        batch["segment_ids"][row, : ids.size - 1] = 1
        batch["loss_mask"][row, place] = True
        batch["sampler_log_probs"][row, place] = done.log_probs[row, :count]
    return batch


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase `rl`: reads a policy, a reward model and questions; writes `checkpoints/`,
    `metrics.jsonl`, `rollouts.jsonl`."""
    began = time.monotonic()
    settings = make_settings(config)
    folder = workdirs.open_phase(workdir, "rl", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    mesh = layout.mesh

    # Data, policy and reward model.
    records = inputs.read_questions(config, folder)
    model = common.load_policy(config, workdir, layout)
    scorer = load_scorer(config, workdir, layout)
    limits = {"tokenizer": model.tokenizer, "max_prompt_tokens": config.data.max_prompt_tokens}
    make_example = functools.partial(examples_lib.prompt_example, **limits)
    examples = inputs.build_examples(records, make_example, config, folder)
    pad_id = model.tokenizer.pad_token_id
    dataset = pipeline.prompt_dataset(
        examples["train"], config.data.max_prompt_tokens, config.batch_size, pad_id, config.seed
    )
    common.save_model_folder(folder, model)

    # State and compiled steps. The reference is the policy as it came; with adapters it is the base.
    updates = config.steps * config.rl.minibatches
    optimizer = make_optimizer(config.optimizer, updates)
    reference = {"params": jax.tree.map(jnp.copy, model.variables["params"])}
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    start, state = common.restore_state(folder / "checkpoints", state, frozen)
    update = jax.jit(
        functools.partial(
            update_fn, config=model.config, settings=settings, optimizer=optimizer
        ),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    log_probs = jax.jit(
        functools.partial(
            rows_log_probs,
            config=model.config,
            temperature=settings.temperature,
            rows=settings.rows_per_pass,
        )
    )

    def rollout(state: TrainState, step: int) -> tuple[list[dict], list[list[int]], Any]:
        chosen = [int(i) for i in dataset[step - 1]["index"] for _ in range(config.rl.group_size)]
        prompts = [examples["train"][i]["tokens"].tolist() for i in chosen]
        key = jax.random.fold_in(common.stream(config.seed, "rollout"), step)
        done = completions.generate(
            key,
            common.join(state.trainable, frozen),
            model,
            prompts[:: config.rl.group_size],
            config,
            config.rl.group_size,
        )
        rows = completions.judged([records["train"][i] for i in chosen], model, done)
        return rows, prompts, done

    def learn(
        state: TrainState, prompts: list[list[int]], done: Any, advantages: np.ndarray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        host = training_rows(prompts, done, advantages.ravel(), pad_id)
        batch = common.put_batch(host, mesh)
        batch["ref_log_probs"] = log_probs(reference, batch)
        if config.rl.minibatches == 1:
            return update(state, frozen, batch)
        batch["old_log_probs"] = log_probs(common.join(state.trainable, frozen), batch)
        size = host["tokens"].shape[0] // config.rl.minibatches
        for part in range(config.rl.minibatches):
            rows = jax.tree.map(lambda leaf: leaf[part * size : (part + 1) * size], batch)  # noqa: B023
            state, metrics = update(state, frozen, rows)
        return state, metrics

    def held_out(state: TrainState) -> dict[str, float]:
        """Reward of the same held-out questions and random streams, before and after."""
        some = records["validation"][: config.rl.eval_questions]
        rows = completions.complete(
            common.stream(config.seed, "evaluate"),
            common.join(state.trainable, frozen),
            model,
            some,
            config,
            config.rl.eval_samples,
        )
        terms = score(rows, scorer, config)
        per_question = combine(terms, config).reshape(len(some), -1).mean(axis=1)
        reward, error = common.mean_and_error(per_question)
        validity, validity_error = common.mean_and_error(terms["format"])
        similarity, similarity_error = common.mean_and_error(terms["similarity"])
        files.append_jsonl(
            folder / "held_out.jsonl",
            [{"reward_per_question": per_question.tolist(), "ids": [r["id"] for r in some]}],
        )
        return {
            "held_out_reward": reward,
            "held_out_reward_error": error,
            "held_out_validity": validity,
            "held_out_validity_error": validity_error,
            "held_out_similarity": similarity,
            "held_out_similarity_error": similarity_error,
            "held_out_echo": float(terms["echo"].mean()),
            "held_out_tokens": float(np.mean([row["tokens"] for row in rows])),
        }

    # Loop.
    files.keep_jsonl(folder / "rollouts.jsonl", lambda row: row["step"] <= start)
    files.keep_jsonl(folder / "held_out.jsonl", lambda _: start > 0)
    with (
        jax.set_mesh(mesh),
        Recorder(folder, "rl", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            recorder.write(0, held_out(state))
        for step in range(start + 1, config.steps + 1):
            rows, prompts, done = rollout(state, step)
            terms = score(rows, scorer, config)
            reward, advantages = combine(terms, config), group_advantages(terms, config)
            state, metrics = learn(state, prompts, done, advantages)
            observed = rollout_metrics(rows, terms, reward, config)
            recorder.push(step, {"reward": observed["reward"], **metrics, **observed})
            lines = rollout_lines(step, rows, terms, reward, advantages.ravel())
            files.append_jsonl(folder / "rollouts.jsonl", lines[: config.rl.rollout_examples])
            last = step == config.steps
            if not last and step % config.log.validate_every == 0:
                recorder.say(completions.show(rows[0]))
            if last or sigterm or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, common.checkpoint_items(state, frozen))
                if sigterm and not last:
                    checkpointer.wait()
                    raise workdirs.Preempted("rl", step)
        recorder.write(config.steps, held_out(state))

    figures = [
        workdirs.figure(folder, "reward on held-out questions", "held_out_reward"),
        workdirs.figure(folder, "chain validity on held-out questions", "held_out_validity"),
        workdirs.figure(folder, "reward-model cosine on held-out questions", "held_out_similarity"),
    ]
    return workdirs.finish(folder, "rl", began, figures, gain=paired_gain(folder))


def rows_log_probs(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    config: decoder.DecoderConfig,
    temperature: float,
    rows: int,
) -> jax.Array:
    """Log-probabilities [B, T] of the targets, `rows` rows at a time."""
    names = ("tokens", "targets", "segment_ids", "positions")
    return jax.lax.map(
        lambda row: log_probs_fn(
            variables, jax.tree.map(lambda leaf: leaf[None], row), config, temperature
        )[0][0],
        {name: batch[name] for name in names},
        batch_size=rows,
    )


def rollout_metrics(
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


def rollout_lines(
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


def paired_gain(folder: Path) -> dict[str, float]:
    """Mean change of the held-out reward, question by question, with its standard error."""
    measured = [row["reward_per_question"] for row in files.read_jsonl(folder / "held_out.jsonl")]
    change = np.asarray(measured[-1]) - np.asarray(measured[0])
    mean, error = common.mean_and_error(change)
    return {"mean": mean, "error": error, "questions": len(change)}
