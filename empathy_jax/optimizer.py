"""Optimizer and learning-rate schedule from the config."""

from typing import Any

import jax
import optax

MOMENT_DTYPES = ("float32", "bfloat16")


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

    Args:
      config: `config.optimizer`.
      steps: optimizer updates of the whole run.

    Raises:
      ValueError: see `make_schedule`; and for a dtype of the moments that is not in MOMENT_DTYPES.
    """
    dtypes = {"mu": config.mu_dtype, "nu": config.nu_dtype}
    for name, dtype in dtypes.items():
        if dtype not in MOMENT_DTYPES:
            raise ValueError(
                f"config.optimizer.{name}_dtype is {dtype!r}; allowed: {', '.join(MOMENT_DTYPES)}"
            )
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            _moments_in(adam, dtypes),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            optax.scale_by_learning_rate(make_schedule(config, steps)),
        ),
    )


def _moments_in(
    adam: optax.GradientTransformation, dtypes: dict[str, str]
) -> optax.GradientTransformation:
    """Adam whose moments are kept in the given dtypes and computed in float32.

    optax narrows the first moment alone (`mu_dtype`). In bfloat16, which has 8 significant bits, the
    mean of squares moves where 1 - b2 is well above 2⁻⁸: with b2 = 0.95 it does, with 0.999 it stands
    still.

    Args:
      adam: a transformation whose state has `mu` and `nu`.
      dtypes: of these two.
    """

    def cast(state: optax.ScaleByAdamState, to: dict[str, str]) -> optax.ScaleByAdamState:
        moments = {name: optax.tree.cast(getattr(state, name), to[name]) for name in to}
        return state._replace(**moments)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        return cast(adam.init(params), dtypes)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        wide = cast(state, dict.fromkeys(dtypes, "float32"))
        updates, state = adam.update(updates, wide, params)
        return updates, cast(state, dtypes)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: kernels and adapter matrices."""

    def is_matrix(path: tuple, _: Any) -> bool:
        return str(getattr(path[-1], "key", path[-1])) in ("kernel", "a", "b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
