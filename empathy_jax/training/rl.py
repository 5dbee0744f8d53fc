"""Stage two: GRPO (https://arxiv.org/abs/2402.03300) with the rewards of Empathy-R1.

Each step samples a group of completions for every question, scores them (format, answer, echo,
template), turns the scores into advantages within the group, and takes one or more clipped policy-gradient
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
from empathy_jax.evaluation.calibration import mean_and_error
from empathy_jax.metric_writer import Recorder
from empathy_jax.models import decoder, shared_prompt
from empathy_jax.optimizer import make_optimizer
from empathy_jax.rl import policy_gradient
from empathy_jax.training import common, completions, inputs, rollout_rows, rollouts
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import TrainState
from empathy_jax.training.scorer import load_scorer

KL = {"k1": policy_gradient.kl_k1, "k2": policy_gradient.kl_k2, "k3": policy_gradient.kl_k3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the loss reads of `config.rl`, and the sampling temperature.

    In the config `rows_per_pass` counts completions; an update counts the rows that they are packed in.
    """

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
        "threshold": tuple(rollouts.THRESHOLDS),
    }
    for name, choices in allowed.items():
        if rl[name] not in choices:
            why = " (k1 as a loss has no expected gradient on-policy)" if rl[name] == "k1" else ""
            raise ValueError(
                f"config.rl.{name} is {rl[name]!r}{why}; allowed: {', '.join(choices)}"
            )
    if config.sampling.temperature <= 0:
        raise ValueError(
            f"config.sampling.temperature is {config.sampling.temperature}; rollouts need it above 0"
        )
    if rl.group_size < 2:
        raise ValueError(
            f"config.rl.group_size is {rl.group_size}; an advantage needs 2 or more to compare"
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
    """Log-probability and entropy of each completion's tokens, [R · G, C] each, 0 where none is.

    Args:
      variables: see `common.join`.
      batch: rows of `rollout_rows.pack_rollouts`.
      config: the architecture.
      temperature: of the sampler. The entropy is for reports and has no gradient.
    """
    layout = shared_prompt.from_batch(batch)
    hidden, _ = decoder.hidden_states(
        variables["params"],
        config,
        batch["tokens"],
        batch["positions"],
        layout,
        lora=variables.get("lora"),
    )
    log_probs, entropy = losses.token_log_probs_from_hidden(
        variables["params"],
        config,
        hidden,
        batch["targets"],
        common.LOGIT_CHUNK,
        temperature,
        batch["loss_mask"],
        entropy_gradient=False,
    )
    return shared_prompt.per_completion(log_probs, layout), shared_prompt.per_completion(
        entropy, layout
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
      batch: rows of `rollout_rows.pack_rollouts`, with ref_log_probs and old_log_probs [R, G, C].
        Where `old_log_probs` is absent the policy is taken to be the one that sampled.
      config: the architecture.
      settings: see `Settings`.
    """
    log_probs, entropy = log_probs_fn(
        common.join(trainable, frozen), batch, config, settings.temperature
    )
    names = ("completion_mask", "advantages", "ref_log_probs", "sampler_log_probs", "old_log_probs")
    # One row per completion, as all losses have it.
    of = {name: _rows(batch[name]) for name in names if name in batch}
    mask, advantages, ref_log_probs = (of[name] for name in names[:3])
    old = of.get("old_log_probs", jax.lax.stop_gradient(log_probs))
    clip = (settings.clip_low, settings.clip_high)
    surrogate = policy_gradient.clipped_surrogate(log_probs, old, advantages, *clip)
    kl = KL[settings.kl_estimator](log_probs, ref_log_probs)
    per_token = surrogate + settings.kl_weight * kl
    total, count = aggregate(per_token, mask, settings)
    clipped = policy_gradient.is_clipped(log_probs, old, advantages, *clip)
    gap = jnp.abs(log_probs - of["sampler_log_probs"])
    sums = {
        "count": count,
        "tokens": masked.masked_count(log_probs, mask),
        "kl": masked.masked_sum(policy_gradient.kl_k3(log_probs, ref_log_probs), mask),
        "entropy": masked.masked_sum(entropy, mask),
        "clip_fraction": masked.masked_sum(clipped.astype(jnp.float32), mask),
        "sampler_gap": masked.masked_sum(gap, mask),
    }
    return total, jax.tree.map(jax.lax.stop_gradient, sums)


def _rows(values: jax.Array) -> jax.Array:
    """[R, G, C] to one row per completion, [R · G, C]."""
    return values.reshape(-1, values.shape[-1])


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
    metrics = {"loss": total / count, "grad_norm": optax.tree.norm(grads)}
    metrics |= {name: value / tokens for name, value in sums.items()}
    state = common.apply_gradients(state, grads, optimizer)
    return state, metrics | {"param_norm": optax.tree.norm(state.trainable)}


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
    rows_per_update = config.batch_size * config.rl.group_size // config.rl.minibatches
    per_pass = min(config.rl.rows_per_pass, rows_per_update)
    sharding.check_rows(per_pass, mesh, "config.rl.rows_per_pass")
    per_row = rollout_rows.completions_per_row(
        config.rl.group_size, per_pass, sharding.batch_parts(mesh)
    )
    settings = dataclasses.replace(settings, rows_per_pass=per_pass // per_row)

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
    common.announce("rl", model, records)

    # State and compiled steps. The reference is the policy as it came; with adapters it is the base.
    updates = config.steps * config.rl.minibatches
    optimizer = make_optimizer(config.optimizer, updates)
    reference = {"params": jax.tree.map(jnp.copy, model.variables["params"])}
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    start, state = common.restore_state(folder / "checkpoints", state, frozen)
    update = jax.jit(
        functools.partial(update_fn, config=model.config, settings=settings, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    take = jax.jit(
        lambda batch, part: jax.tree.map(
            lambda leaf: jnp.split(leaf, config.rl.minibatches)[part], batch
        ),
        static_argnums=1,
        out_shardings=sharding.batch_sharding(mesh),
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
        host = rollout_rows.pack_rollouts(
            prompts[:: config.rl.group_size],
            done.tokens,
            done.log_probs,
            done.lengths,
            advantages.ravel(),
            per_row,
            pad_id,
        )
        batch = common.put_batch(host, mesh)
        # Programs that do not wait for one another may deadlock in their collectives on CPU devices.
        batch["ref_log_probs"] = jax.block_until_ready(log_probs(reference, batch))
        if config.rl.minibatches == 1:
            return update(state, frozen, batch)
        current = common.join(state.trainable, frozen)
        batch["old_log_probs"] = jax.block_until_ready(log_probs(current, batch))
        for part in range(config.rl.minibatches):
            state, metrics = update(state, frozen, take(batch, part))
        return state, metrics

    def held_out(state: TrainState, step: int) -> dict[str, float]:
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
        terms = rollouts.score(rows, scorer, config)
        per_question = rollouts.combine(terms, config).reshape(len(some), -1).mean(axis=1)
        reward, error = mean_and_error(per_question)
        validity, validity_error = mean_and_error(terms["format"])
        similarity, similarity_error = mean_and_error(terms["similarity"])
        files.append_jsonl(
            folder / "held_out.jsonl",
            [
                {
                    "step": step,
                    "reward_per_question": per_question.tolist(),
                    "ids": [r["id"] for r in some],
                }
            ],
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
    files.keep_jsonl(folder / "held_out.jsonl", lambda row: start > 0 and row["step"] <= start)
    with (
        jax.set_mesh(mesh),
        Recorder(folder, "rl", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            recorder.write(0, held_out(state, 0))
        for step in range(start + 1, config.steps + 1):
            rows, prompts, done = rollout(state, step)
            terms = rollouts.score(rows, scorer, config)
            reward, advantages = (
                rollouts.combine(terms, config),
                rollouts.group_advantages(terms, config),
            )
            state, metrics = learn(state, prompts, done, advantages)
            observed = rollouts.measure(rows, terms, reward, config)
            recorder.push(step, {"reward": observed["reward"], **metrics, **observed})
            lines = rollouts.lines(step, rows, terms, reward, advantages.ravel())
            files.append_jsonl(folder / "rollouts.jsonl", lines[: config.rl.rollout_examples])
            last = step == config.steps
            if last:
                recorder.write(step, held_out(state, step))
            if last or step % config.log.validate_every == 0:
                recorder.say(completions.show(rows[0]))
            if last or sigterm or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, common.checkpoint_items(state, frozen))
                if sigterm and not last:
                    checkpointer.wait()
                    raise workdirs.Preempted("rl", step)

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
    """Log-probabilities [R, G, C] of the completions' tokens, `rows` rows at a time."""

    def of_pass(part: dict[str, jax.Array]) -> jax.Array:
        log_probs, _ = log_probs_fn(variables, part, config, temperature)
        return log_probs.reshape(part["places"].shape)

    return common.map_passes(of_pass, batch, rows)


def paired_gain(folder: Path) -> dict[str, float]:
    """Mean change of the held-out reward, question by question, with its standard error."""
    measured = [row["reward_per_question"] for row in files.read_jsonl(folder / "held_out.jsonl")]
    change = np.asarray(measured[-1]) - np.asarray(measured[0])
    mean, error = mean_and_error(change)
    return {"mean": mean, "error": error, "questions": len(change)}
