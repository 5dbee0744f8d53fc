"""Stage two: policy gradients with the rewards of Empathy-R1; GRPO (https://arxiv.org/abs/2402.03300)
and its kin by config.

Each step samples a group of completions for every question (`rollout`), scores them and turns the
scores into advantages (`reward_terms`), and takes one or more optimizer steps on them
(`policy_update`). A step is a function of the state, of what is carried from the steps before
(`carried`) and of its number, so a run that was killed repeats exactly from its checkpoint.

Two log-probabilities of a token are kept apart: the sampler's, stored with the rollout, and the
trainer's. The ratio of the loss is trainer to trainer; `rl.mismatch` corrects the rest.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from empathy_jax import files, hosts, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import pipeline
from empathy_jax.metric_writer import Recorder
from empathy_jax.optimizer import make_optimizer
from empathy_jax.training import carried as carried_lib
from empathy_jax.training import (
    common,
    completions,
    held_out,
    inputs,
    policy_update,
    reward_terms,
    rl_settings,
    rollout_metrics,
)
from empathy_jax.training import rollout as rollouts
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.scorer import load_scorer


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase `rl`: reads a policy, a reward model and questions; writes `checkpoints/`,
    `metrics.jsonl`, `rollouts.jsonl`."""
    began = time.monotonic()
    layout = sharding.make_layout(config.mesh)
    mesh = layout.mesh
    settings = rl_settings.make_settings(config, sharding.batch_parts(mesh))
    folder = workdirs.open_phase(workdir, "rl", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary

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
    prompts = [example["tokens"].tolist() for example in examples["train"]]
    common.save_model_folder(folder, model)
    common.announce("rl", model, records)

    # State. With adapters the reference that never moves is the base: no copy of the weights.
    updates = config.steps * settings.minibatches * settings.passes
    optimizer = make_optimizer(config.optimizer, updates)
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    copies = settings.needs_reference and (settings.reference_every or not frozen)
    reference = jax.tree.map(jnp.copy, state.trainable) if copies else {}
    carried = carried_lib.begin()

    def checkpoint_items() -> dict:
        """Everything that the next step depends on."""
        items = common.checkpoint_items(state, frozen)
        items["carried"] = hosts.put(carried, sharding.replicated(mesh))
        return items | ({"reference": reference} if settings.reference_every else {})

    start, items = common.restore_items(folder / "checkpoints", checkpoint_items())
    state, carried = common.state_of(items, frozen), jax.device_get(items["carried"])
    reference = items.get("reference", reference)
    del items

    # Compiled steps.
    update = policy_update.make_update(model.config, settings, optimizer, shardings, mesh)
    log_probs = policy_update.make_log_probs(model.config, settings, mesh)

    def sample(step: int, number: int) -> rollouts.Rollout:
        """Round `number` of a step: its own questions, or fresh ones where groups lack signal."""
        questions = dataset[step - 1 + number * config.steps]["index"]
        key = jax.random.fold_in(common.stream(config.seed, "rollout"), step)
        return rollouts.sample(
            jax.random.fold_in(key, number),
            questions,
            common.join(state.trainable, frozen),
            model,
            records["train"],
            prompts,
            scorer,
            config,
        )

    def measure_held_out(step: int) -> dict[str, float]:
        variables = common.join(state.trainable, frozen)
        return held_out.measure(
            step, variables, model, records["validation"], scorer, config, folder
        )

    # Loop.
    files.keep_jsonl(folder / "rollouts.jsonl", lambda row: row["step"] <= start)
    files.keep_jsonl(folder / held_out.FILE, lambda row: start > 0 and row["step"] <= start)
    stop = hosts.Agreement()
    with (
        jax.set_mesh(mesh),
        Recorder(folder, "rl", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            recorder.write(0, measure_held_out(0))
        step, stopped = start, carried_lib.stop_reason(carried, settings)
        while step < config.steps and stopped is None:
            step += 1
            rollout = rollouts.refill(
                sample(step, 0), functools.partial(sample, step), config.rl.max_refills, config
            )
            batch = rollouts.pack(rollout, settings.completions_per_row, pad_id)
            placed = common.put_batch(batch, mesh)
            # Programs that do not wait for one another may deadlock in their collectives on CPUs.
            if settings.needs_reference:
                found = log_probs(common.join(reference, frozen), placed)
                batch["ref_log_probs"] = jax.device_get(found)
            if settings.needs_old:
                found = log_probs(common.join(state.trainable, frozen), placed)
                batch["old_log_probs"] = jax.device_get(found)
            rollout = dataclasses.replace(
                rollout, terms=rollout.terms | policy_update.kl_term(batch, settings)
            )
            reward = reward_terms.combine(rollout.terms, config)
            advantages, baseline = reward_terms.advantages(
                rollout.terms, config, carried["baseline"]
            )
            batch["advantages"] = advantages.ravel()[batch["completion_ids"]][..., None]
            state, metrics = policy_update.learn(
                update,
                state,
                frozen,
                batch,
                carried_lib.entropy_weight(carried, settings),
                policy_update.minibatch_rows(config.seed, step, len(batch["tokens"]), settings),
                mesh,
            )
            metrics |= rollout_metrics.measure(rollout, reward, config)
            carried = carried_lib.after(carried, baseline, metrics, settings)
            stopped = carried_lib.stop_reason(carried, settings)
            if settings.reference_every and step % settings.reference_every == 0:
                reference = jax.tree.map(jnp.copy, state.trainable)

            recorder.push(step, metrics)
            lines = rollouts.lines(step, rollout, reward, advantages.ravel())
            files.append_jsonl(folder / "rollouts.jsonl", lines[: config.rl.rollout_examples])
            last = step == config.steps or stopped is not None
            if last:
                recorder.write(step, measure_held_out(step))
            if last or step % config.log.validate_every == 0:
                recorder.say(completions.show(rollout.rows[0]))
            preempted = stop.agreed(bool(sigterm)) and not last
            if last or preempted or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, checkpoint_items())
                if preempted:
                    checkpointer.wait()
                    raise workdirs.Preempted("rl", step)
        if stopped is not None:
            recorder.say(f"[rl] stopped at step {step} of {config.steps}: {stopped}")

    figures = [
        workdirs.figure(folder, "reward on held-out questions", "held_out_reward"),
        workdirs.figure(folder, "chain validity on held-out questions", "held_out_validity"),
        workdirs.figure(folder, "reward-model cosine on held-out questions", "held_out_similarity"),
    ]
    gain = held_out.paired_gain(folder)
    ended = {"steps": step, "stopped": stopped}
    return workdirs.finish(folder, "rl", began, figures, gain=gain, **ended)
