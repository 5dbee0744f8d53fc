"""Stage one: supervised fine-tuning on chains, with the loss on what the model writes.

Cross-entropy of the completion's tokens (four layers, answer, end token) given the prompt, over rows
that hold several packed examples which cannot see one another. With `config.sft.tag_weight` a second
term asks, where a tag stands, which of the tags it is, and every `config.sft.shuffled_every`th update
sees chains whose elements hold sentences of any other. Both are for small models that start from
nothing, which would learn the text long before the form: tags are one token in a hundred.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy, files, hosts, losses, passes, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import pipeline
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation.calibration import mean_and_error
from empathy_jax.metric_writer import Recorder
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.optimizer import make_optimizer
from empathy_jax.training import common, completions, inputs
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.common import TrainState


def loss_fn(
    trainable: Any,
    frozen: dict[str, Any],
    batch: dict[str, Any],
    config: decoder.DecoderConfig,
    tag_ids: tuple[int, ...] = (),
    tag_weight: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats, Σ -log p(y) + w Σ_tags -log p(y | a tag), over the counted tokens.

    Args:
      trainable, frozen: see `common.join`.
      batch: tokens, targets, loss_mask, segment_ids, positions, each [B, T].
      config: the architecture.
      tag_ids: tokens that tags are made of.
      tag_weight: w; 0 leaves the second sum out.

    Returns:
      (sum, number of counted tokens).
    """
    variables = common.join(trainable, frozen)
    params = variables["params"]
    hidden, _ = decoder.hidden_states(
        params,
        config,
        batch["tokens"],
        batch["positions"],
        causal_mask(batch["segment_ids"]),
        lora=variables.get("lora"),
    )
    log_probs, _ = losses.token_log_probs_from_hidden(
        params,
        config,
        hidden,
        batch["targets"],
        common.LOGIT_CHUNK,
        loss_mask=batch["loss_mask"],
        entropy_gradient=False,
    )
    total, count = losses.cross_entropy_sum(log_probs, batch["loss_mask"])
    if tag_weight:
        places = batch["targets"][..., None] == jnp.asarray(tag_ids)
        among_tags = decoder.logits(params, config, hidden, jnp.asarray(tag_ids))
        which = losses.token_log_probs(among_tags, jnp.argmax(places, axis=-1))
        is_tag = jnp.any(places, axis=-1) & batch["loss_mask"]
        total = total + tag_weight * losses.cross_entropy_sum(which, is_tag)[0]
    return total, count


def update_fn(
    state: TrainState,
    frozen: dict[str, Any],
    batch: dict[str, Any],
    config: decoder.DecoderConfig,
    optimizer: optax.GradientTransformation,
    tag_ids: tuple[int, ...] = (),
    tag_weight: float = 0.0,
    rows_per_pass: int = 0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the mean loss of a batch; returns the new state and its metrics."""

    def loss(trainable: Any, part: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        return loss_fn(trainable, frozen, part, config, tag_ids, tag_weight)

    rows = rows_per_pass or batch["tokens"].shape[0]
    (total, count), grads = passes.accumulate(loss, state.trainable, batch, rows)
    count = jnp.maximum(count, 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics = {"loss": total / count, "grad_norm": optax.tree.norm(grads), "tokens": count}
    state = common.apply_gradients(state, grads, optimizer)
    return state, metrics | {"param_norm": optax.tree.norm(state.trainable)}


def make_update(
    config: ConfigDict,
    architecture: decoder.DecoderConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    tag_ids: tuple[int, ...],
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled `update_fn`, of (state, frozen, batch); the state is donated."""
    return jax.jit(
        functools.partial(
            update_fn,
            config=architecture,
            optimizer=optimizer,
            tag_ids=tag_ids,
            tag_weight=config.sft.tag_weight,
            rows_per_pass=config.sft.rows_per_pass,
        ),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase `sft`: reads chains; writes `checkpoints/`, `metrics.jsonl`, `samples.jsonl`.

    With `config.steps=0` the model that it would begin with is kept as it is."""
    began = time.monotonic()
    folder = workdirs.open_phase(workdir, "sft", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    mesh = layout.mesh
    _check_shapes(config, mesh)

    # Data and model.
    records = inputs.read_chains(config, folder)
    model = common.load_policy(
        config, workdir, layout, lambda: inputs.training_texts(records["train"])
    )
    examples = inputs.build_examples(
        records,
        functools.partial(
            examples_lib.sft_example,
            tokenizer=model.tokenizer,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_completion_tokens=config.data.max_completion_tokens,
            form=config.data.format,
        ),
        config,
        folder,
    )
    shape = (config.sft.row_tokens, config.batch_size, model.tokenizer.pad_token_id)
    packed = functools.partial(
        pipeline.packed_dataset, seed=config.seed, read=common.own_rows(config.batch_size, mesh)
    )
    dataset = packed(examples["train"], *shape)
    if config.sft.shuffled_every:
        shuffled = packed(
            examples_lib.shuffled_examples(
                records["train"], model.tokenizer, config.sft.row_tokens, config.data.format
            ),
            *shape,
        )
    validation = list(pipeline.padded_batches(examples["validation"], *shape))
    common.save_model_folder(folder, model)
    common.announce("sft", model, records)

    # State and compiled steps.
    optimizer = make_optimizer(config.optimizer, config.steps)
    state, frozen, shardings = common.make_state(model, optimizer, config.seed, layout)
    start, state = common.restore_state(folder / "checkpoints", state, frozen)
    tags = tag_ids(model.tokenizer)
    update = make_update(config, model.config, optimizer, shardings, mesh, tags)
    evaluate = jax.jit(
        functools.partial(loss_fn, config=model.config), out_shardings=sharding.replicated(mesh)
    )

    def validation_loss(state: TrainState) -> float:
        sums = [
            jax.device_get(evaluate(state.trainable, frozen, batch=common.put_batch(batch, mesh)))
            for batch in validation
        ]
        total, count = np.sum(sums, axis=0)
        return float(total / count)

    def sample(state: TrainState, step: int, count: int) -> list[dict]:
        key = jax.random.fold_in(common.stream(config.seed, "sample"), step)
        variables = common.join(state.trainable, frozen)
        questions = [records["validation"][i % len(records["validation"])] for i in range(count)]
        rows = completions.complete(key, variables, model, questions, config)
        files.append_jsonl(folder / "samples.jsonl", [{"step": step, **row} for row in rows])
        return rows

    # Loop.
    files.keep_jsonl(folder / "samples.jsonl", lambda row: start > 0 and row["step"] <= start)
    stop = hosts.Agreement()
    with (
        jax.set_mesh(mesh),
        Recorder(folder, "sft", start, config.steps, config.log.every) as recorder,
        Checkpointer(folder / "checkpoints", config.checkpoint.keep) as checkpointer,
        workdirs.watch_sigterm() as sigterm,
    ):
        if start == 0:
            rows = sample(state, 0, config.sft.samples)
            recorder.write(0, {"validation_loss": validation_loss(state), **validity(rows)})
        if config.steps == 0:
            checkpointer.save(0, common.checkpoint_items(state, frozen))
        for step in range(start + 1, config.steps + 1):
            is_shuffled = config.sft.shuffled_every and step % config.sft.shuffled_every == 0
            batch = (shuffled if is_shuffled else dataset)[step - 1]
            batch = common.put_own_rows(batch, config.batch_size, mesh)
            state, metrics = update(state, frozen, batch)
            recorder.push(step, metrics)
            last = step == config.steps
            if last or step % config.log.validate_every == 0:
                loss = validation_loss(state)
                recorder.write(step, {"validation_loss": loss})
                recorder.say(f"[sft] step {step}: validation loss {loss:.4f}")
            if last:
                rows = sample(state, step, config.sft.samples)
                recorder.write(step, validity(rows))
                recorder.say(completions.show(rows[0]))
            elif config.sft.sample_every and step % config.sft.sample_every == 0:
                recorder.say(completions.show(sample(state, step, 1)[0]))
            preempted = stop.agreed(bool(sigterm)) and not last
            if last or preempted or step % config.checkpoint.every == 0:
                recorder.flush()
                checkpointer.save(step, common.checkpoint_items(state, frozen))
                if preempted:
                    checkpointer.wait()
                    raise workdirs.Preempted("sft", step)

    figures = [
        workdirs.figure(folder, "validation loss (nats per token)", "validation_loss"),
        workdirs.figure(folder, "chain validity of samples", "validity"),
    ]
    return workdirs.finish(folder, "sft", began, figures)


def _check_shapes(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses batches and rows that the mesh or the passes do not divide."""
    rows = config.sft.rows_per_pass
    sharding.check_rows(config.batch_size, mesh, "config.batch_size")
    sharding.check_rows(rows, mesh, "config.sft.rows_per_pass")
    sharding.check_length(config.sft.row_tokens, mesh, "config.sft.row_tokens")
    if rows < 0 or (rows and config.batch_size % rows):
        raise ValueError(
            f"config.sft.rows_per_pass is {rows}; it must be a divisor of config.batch_size, "
            f"{config.batch_size}, or 0 for all rows at once"
        )


def tag_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that the tags of a chain, and the end of a turn, are made of."""
    pieces = (tokenizers.completion_ids(tokenizer, tag) for tag in chain_of_empathy.TAGS)
    return tuple(sorted({id_ for piece in pieces for id_ in piece}))


def validity(rows: list[dict]) -> dict[str, float]:
    """Share of completions that are whole chains, with its standard error."""
    mean, error = mean_and_error([row["valid"] for row in rows])
    return {"validity": mean, "validity_error": error}
