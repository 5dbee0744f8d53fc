"""Optimizer and learning-rate schedule from the config."""

from typing import Any

import jax
import optax


def make_schedule(config: Any, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, linear or cosine decay to `final_fraction` of the peak.

    Args:
      config: `config.optimizer`: learning_rate, warmup_steps, schedule, final_fraction.
      steps: optimizer updates of the whole run.

    Raises:
      ValueError: for a learning rate that is not above 0, or an unknown schedule.
    """
    if not config.learning_rate > 0:
        raise ValueError(
            f"config.optimizer.learning_rate is {config.learning_rate}; it must be above 0"
        )
    peak, warmup = config.learning_rate, min(config.warmup_steps, max(steps - 1, 0))
    final = peak * config.final_fraction
    decay_steps = max(steps - warmup, 1)
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, final, decay_steps)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
    else:
        raise ValueError(
            f"config.optimizer.schedule is {config.schedule!r}; allowed: constant, linear, cosine"
        )
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: Any, steps: int) -> optax.GradientTransformation:
    """AdamW (https://arxiv.org/abs/1711.05101) with gradients clipped by their global norm.

    Weight decay falls on matrices only: a leaf whose last path entry is a bias, a scale or an
    embedding is left alone.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: kernels and adapter matrices."""

    def is_matrix(path: tuple, _: Any) -> bool:
        return str(getattr(path[-1], "key", path[-1])) in ("kernel", "a", "b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
