"""One update of the policy: what its loss is made of, by config, and the optimizer's step.

    loss = aggregate( w · surrogate(ρ, A) + β · KL(π ‖ π_ref) - α · entropy )

with the importance ratio ρ of the policy to the one that sampled (as the trainer computes both), the
advantage A, the weight w of what sampler and trainer disagree on, and the reference π_ref. Every part
is a choice of its own; docs/policy_gradient.md lists them with their papers.

R rows of T places hold G completions of C tokens each (`rollout_rows`); losses work on the N = R · G
completions.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from empathy_jax import losses, masked, passes, sharding
from empathy_jax.models import decoder, shared_prompt
from empathy_jax.rl import aggregation, corrections, kl, overlong, policy_gradient, ratios
from empathy_jax.training import common
from empathy_jax.training.common import TrainState
from empathy_jax.training.rl_settings import Settings

Batch = dict[str, Any]

KL = {"k1": kl.kl_k1, "k2": kl.kl_k2, "k3": kl.kl_k3}
LOG_WEIGHTS = {"token": corrections.token_log_weight, "sequence": corrections.sequence_log_weight}


# --- log-probabilities ---


def log_probs_fn(
    variables: dict[str, Any],
    batch: Batch,
    config: decoder.DecoderConfig,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy at each completion token, each [N, C], 0 where there is none.

    Args:
      variables: see `common.join`.
      batch: rows of `rollout_rows.pack_rollouts`.
      config: the architecture.
      temperature: of the sampler.
      entropy_gradient: whether the entropy is learnt from; else it is only reported.
    """
    layout = shared_prompt.from_batch(batch)
    params, lora = variables["params"], variables.get("lora")
    tokens, positions = batch["tokens"], batch["positions"]
    hidden, _ = decoder.hidden_states(params, config, tokens, positions, layout, lora=lora)
    log_probs, entropy = losses.token_log_probs_from_hidden(
        params,
        config,
        hidden,
        batch["targets"],
        common.LOGIT_CHUNK,
        temperature,
        batch["loss_mask"],
        entropy_gradient=entropy_gradient,
    )
    return (
        shared_prompt.per_completion(log_probs, layout),
        shared_prompt.per_completion(entropy, layout),
    )


def rows_log_probs(
    variables: dict[str, Any],
    batch: Batch,
    config: decoder.DecoderConfig,
    temperature: float,
    rows: int,
) -> jax.Array:
    """Log-probabilities [R, G, C] of completion tokens, `rows` rows at a time."""

    def of_pass(part: Batch) -> jax.Array:
        log_probs, _ = log_probs_fn(variables, part, config, temperature)
        return log_probs.reshape(part["places"].shape)

    return passes.map_rows(of_pass, batch, rows)


def kl_term(batch: Batch, settings: Settings) -> dict[str, np.ndarray]:
    """{"kl": Σ_t KL(π ‖ π_ref) of each completion, float32 [N]} where the reward charges for it.

    Args:
      batch: with old_log_probs and ref_log_probs [R, G, C] on the host.
      settings: for the estimator; k1 is the one whose mean pull is that of the true KL.
    """
    if not settings.kl_weight or settings.kl_placement != "reward":
        return {}
    old, ref = (_by_completion(batch[name]) for name in ("old_log_probs", "ref_log_probs"))
    values = KL[settings.kl_estimator](jnp.asarray(old), jnp.asarray(ref))
    summed = np.where(_by_completion(batch["completion_mask"]), np.asarray(values), 0).sum(axis=1)
    found = np.empty(len(summed), np.float32)
    found[batch["completion_ids"].ravel()] = summed
    return {"kl": found}


# --- loss and update ---


def loss_fn(
    trainable: Any,
    batch: Batch,
    frozen: dict[str, Any],
    entropy_weight: jax.Array | float,
    config: decoder.DecoderConfig,
    settings: Settings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss summed over completions (or tokens), and sums for the metrics.

    Args:
      trainable, frozen: see `common.join`.
      batch: of `rollout_rows.pack_rollouts`, with cut_off [R, G] and, as `settings` wants them,
        ref_log_probs and old_log_probs [R, G, C]. Where `old_log_probs` is absent the policy is
        taken to be the one that sampled.
      entropy_weight: α, now; read where the settings have an entropy target.
      config: the architecture.
      settings: see `Settings`.
    """
    variables = common.join(trainable, frozen)
    log_probs, entropy = log_probs_fn(
        variables, batch, config, settings.temperature, settings.entropy_target > 0
    )
    names = ("completion_mask", "sampler_log_probs", "advantages", "ref_log_probs", "old_log_probs")
    parts = {name: _by_completion(batch[name]) for name in names if name in batch}
    mask = parts["completion_mask"]
    if settings.overlong_filter:
        mask = overlong.without_cut_off(mask, batch["cut_off"].ravel())
    old = parts.get("old_log_probs", jax.lax.stop_gradient(log_probs))
    log_ratio = _log_ratio(log_probs, old, mask, settings)
    per_token, too_low, too_high = _surrogate(log_ratio, log_probs, parts["advantages"], settings)
    weights = _mismatch_weights(old, parts["sampler_log_probs"], mask, settings)
    per_token = weights * per_token
    averaged = {
        "entropy": entropy,
        "clipped_low": too_low,
        "clipped_high": too_high,
        "sampler_gap": jnp.abs(old - parts["sampler_log_probs"]),
        "mismatch_weight": weights,
    }
    if "ref_log_probs" in parts:
        ref = parts["ref_log_probs"]
        averaged["kl"] = kl.kl_k3(log_probs, ref)
        if settings.kl_weight and settings.kl_placement == "loss":
            per_token += settings.kl_weight * KL[settings.kl_estimator](log_probs, ref)
    if settings.entropy_target:
        per_token -= entropy_weight * entropy
    total, count = _aggregate(per_token, mask, settings)
    sums = {
        name: masked.masked_sum(jnp.broadcast_to(values, mask.shape).astype(jnp.float32), mask)
        for name, values in averaged.items()
    }
    sums |= {"count": count, "tokens": jnp.sum(mask, dtype=jnp.float32)}
    return total, jax.tree.map(jax.lax.stop_gradient, sums)


def _by_completion(values: Any) -> Any:
    """[R, G, C] as [N, C]."""
    return values.reshape(-1, values.shape[-1])


def _log_ratio(
    log_probs: jax.Array, old: jax.Array, mask: jax.Array, settings: Settings
) -> jax.Array:
    if settings.ratio == "token":
        return ratios.token_log_ratio(log_probs, old)
    if settings.ratio == "sequence":
        return ratios.sequence_log_ratio(log_probs, old, mask)
    return ratios.on_policy_log_ratio(log_probs)


def _surrogate(
    log_ratio: jax.Array, log_probs: jax.Array, advantages: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The policy-gradient loss of tokens, and where the ratio is bounded below and above."""
    if settings.surrogate == "cispo":
        high = settings.clip_high
        loss = policy_gradient.cispo(log_ratio, log_probs, advantages, high)
        return loss, jnp.zeros_like(log_ratio, bool), log_ratio > jnp.log1p(high)
    clip = (settings.clip_low, settings.clip_high, settings.clip_ceiling)
    loss = policy_gradient.clipped_surrogate(log_ratio, advantages, *clip)
    return loss, *policy_gradient.is_clipped(log_ratio, advantages, *clip)


def _mismatch_weights(
    old: jax.Array, sampler: jax.Array, mask: jax.Array, settings: Settings
) -> jax.Array:
    if settings.mismatch == "none":
        return jnp.ones((len(mask), 1))
    log_weight = LOG_WEIGHTS[settings.mismatch_level](old, sampler, mask)
    largest = settings.mismatch_ceiling
    if settings.mismatch == "truncated":
        return corrections.truncated_weights(log_weight, 0.0, largest)
    return corrections.masked_weights(log_weight, 1.0 / largest, largest)


def _aggregate(
    values: jax.Array, mask: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array]:
    """Sum and count by `config.rl.aggregation`."""
    if settings.aggregation == "sequence_mean":
        return aggregation.sequence_mean_token_mean(values, mask)
    if settings.aggregation == "token_mean":
        return aggregation.token_mean(values, mask)
    return aggregation.constant_length(values, mask, settings.max_completion_tokens)


def update_fn(
    state: TrainState,
    frozen: dict[str, Any],
    batch: Batch,
    entropy_weight: jax.Array | float,
    config: decoder.DecoderConfig,
    settings: Settings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a (mini)batch of rows; returns the new state and its metrics."""
    loss = functools.partial(
        loss_fn, frozen=frozen, entropy_weight=entropy_weight, config=config, settings=settings
    )
    (total, sums), grads = passes.accumulate(loss, state.trainable, batch, settings.rows_per_pass)
    count = jnp.maximum(sums.pop("count"), 1)
    tokens = jnp.maximum(sums.pop("tokens"), 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics = {"loss": total / count, "grad_norm": optax.tree.norm(grads)}
    metrics |= {name: value / tokens for name, value in sums.items()}
    state = common.apply_gradients(state, grads, optimizer)
    return state, metrics | {"param_norm": optax.tree.norm(state.trainable)}


def make_update(
    config: decoder.DecoderConfig,
    settings: Settings,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled `update_fn`, of (state, frozen, batch, entropy weight); the state is donated."""
    return jax.jit(
        functools.partial(update_fn, config=config, settings=settings, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def make_log_probs(
    config: decoder.DecoderConfig, settings: Settings, mesh: Mesh
) -> Callable[..., jax.Array]:
    """The compiled `rows_log_probs`, of (variables, batch)."""
    return jax.jit(
        functools.partial(
            rows_log_probs,
            config=config,
            temperature=settings.temperature,
            rows=settings.rows_per_pass,
        ),
        out_shardings=sharding.replicated(mesh),
    )


def minibatch_rows(seed: int, step: int, rows: int, settings: Settings) -> list[np.ndarray]:
    """The rows of each update on a rollout batch: every pass takes all of them in an order of its own.

    The order is a function of the seed and the step alone. One minibatch is the batch as it is.
    """
    if settings.minibatches == 1:
        return [np.arange(rows)] * settings.passes
    key = jax.random.fold_in(common.stream(seed, "minibatches"), step)
    found: list[np.ndarray] = []
    for number in range(settings.passes):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, number), rows))
        found += np.split(order, settings.minibatches)
    return found


def learn(
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    frozen: dict[str, Any],
    batch: Batch,
    entropy_weight: jax.Array,
    order: list[np.ndarray],
    mesh: Mesh,
) -> tuple[TrainState, dict[str, float]]:
    """The state after an update on each of the minibatches, and the mean of each metric over them.

    Args:
      update: the compiled `update_fn`.
      state, frozen: see `common.make_state`.
      batch: on the host, every row.
      entropy_weight: of the bonus.
      order: rows of each minibatch, of `minibatch_rows`.
      mesh: where the minibatches go.
    """
    seen = []
    for rows in order:
        part = common.put_batch({name: leaf[rows] for name, leaf in batch.items()}, mesh)
        state, metrics = update(state, frozen, part, entropy_weight)
        seen.append(jax.device_get(metrics))
    return state, {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}
