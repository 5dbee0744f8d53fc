"""What `config.rl` may hold: every field's values, and which of them have no effect together."""

import dataclasses
import math

from ml_collections import ConfigDict

from empathy_jax.rl.stop_conditions import Limits
from empathy_jax.training import reward_terms, rollout_rows

CHOICES = {
    "advantage": reward_terms.ADVANTAGES,
    "answer_reward": ("continuous", "binary"),
    "threshold": tuple(reward_terms.THRESHOLDS),
    "ratio": ("token", "sequence", "none"),
    "surrogate": ("clip", "cispo"),
    "aggregation": ("sequence_mean", "token_mean", "constant_length"),
    "kl_estimator": ("k1", "k2", "k3"),
    "kl_placement": ("loss", "reward"),
    "mismatch": ("none", "truncated", "masked"),
    "mismatch_level": ("token", "sequence"),
}
# Lowest and highest value that a field may have.
RANGES = {
    "clip_low": (0.0, 1.0),
    "clip_high": (0.0, math.inf),
    "clip_ceiling": (0.0, math.inf),
    "kl_weight": (0.0, math.inf),
    "mismatch_ceiling": (1.0, math.inf),
    "minibatches": (1, math.inf),
    "passes": (1, math.inf),
    "rows_per_pass": (1, math.inf),
    "stop_window": (1, math.inf),
    "max_refills": (0, math.inf),
    "overlong_buffer": (0, math.inf),
    "min_answer_characters": (0, math.inf),
    "entropy_target": (0.0, math.inf),
    "reference_every": (0, math.inf),
    "baseline_decay": (0.0, 0.999999),
    "max_kl": (0.0, math.inf),
    "min_validity": (0.0, 1.0),
    "max_overlap_rise": (0.0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the update reads of `config.rl`, checked, and the sampling temperature.

    Attributes:
      clip_ceiling: None where it is off.
      rows_per_pass: packed rows; in the config it counts completions.
      limits: what ends a run; they ask for a KL too.
    """

    ratio: str
    surrogate: str
    clip_low: float
    clip_high: float
    clip_ceiling: float | None
    aggregation: str
    kl_estimator: str
    kl_placement: str
    kl_weight: float
    mismatch: str
    mismatch_level: str
    mismatch_ceiling: float
    entropy_target: float
    overlong_filter: bool
    reference_every: int
    minibatches: int
    passes: int
    rows_per_pass: int
    completions_per_row: int
    temperature: float
    max_completion_tokens: int
    limits: Limits

    @property
    def needs_reference(self) -> bool:
        """Whether anything reads the reference's log-probabilities."""
        return self.kl_weight > 0 or self.limits.max_kl > 0

    @property
    def needs_old(self) -> bool:
        """Whether the policy's log-probabilities are wanted before its update.

        With one update a batch the update itself computes them.
        """
        in_reward = self.kl_weight > 0 and self.kl_placement == "reward"
        return in_reward or self.minibatches * self.passes > 1


def make_settings(config: ConfigDict, devices: int = 1) -> Settings:
    """The settings of a config, checked.

    Args:
      config: of the run.
      devices: that hold different rows, `sharding.batch_parts`.

    Raises:
      ValueError: for an unknown choice, a value out of range, or one that has no effect.
    """
    rl = config.rl
    _check_values(config)
    _check_effects(config)
    completions = config.batch_size * rl.group_size
    per_pass = min(rl.rows_per_pass, completions // rl.minibatches)
    if completions % rl.minibatches or (completions // rl.minibatches) % per_pass:
        raise ValueError(
            f"config.batch_size {config.batch_size} x config.rl.group_size {rl.group_size} = "
            f"{completions} completions cannot be cut into config.rl.minibatches {rl.minibatches} of "
            f"whole config.rl.rows_per_pass {rl.rows_per_pass}"
        )
    if per_pass % devices:
        raise ValueError(
            f"config.rl.rows_per_pass {rl.rows_per_pass} takes {per_pass} completions at a time, "
            f"which cannot be divided over {devices} devices (config.mesh)"
        )
    per_row = rollout_rows.completions_per_row(rl.group_size, per_pass, devices)
    made = {
        "clip_ceiling": rl.clip_ceiling or None,
        "rows_per_pass": per_pass // per_row,
        "completions_per_row": per_row,
        "temperature": config.sampling.temperature,
        "max_completion_tokens": config.data.max_completion_tokens,
        "limits": Limits(rl.max_kl, rl.min_validity, rl.max_overlap_rise, rl.stop_window),
    }
    as_they_are = {field.name for field in dataclasses.fields(Settings)} - made.keys()
    return Settings(**made, **{name: rl[name] for name in as_they_are})


def _check_values(config: ConfigDict) -> None:
    rl = config.rl
    for name, choices in CHOICES.items():
        if rl[name] not in choices:
            raise ValueError(f"config.rl.{name} is {rl[name]!r}; allowed: {', '.join(choices)}")
    for name, (lowest, highest) in RANGES.items():
        if not lowest <= rl[name] <= highest:
            bound = f"{lowest} or more" if highest == math.inf else f"from {lowest} to {highest}"
            raise ValueError(f"config.rl.{name} is {rl[name]}; it must be {bound}")
    if config.sampling.temperature <= 0:
        raise ValueError(
            f"config.sampling.temperature is {config.sampling.temperature}; rollouts need it above 0"
        )
    if rl.group_size < 2 and rl.advantage != "reinforce":
        raise ValueError(
            f"config.rl.group_size is {rl.group_size}; config.rl.advantage {rl.advantage!r} "
            "needs 2 or more to compare"
        )
    if rl.overlong_buffer > config.data.max_completion_tokens:
        raise ValueError(
            f"config.rl.overlong_buffer is {rl.overlong_buffer}; it must be at most "
            f"config.data.max_completion_tokens, {config.data.max_completion_tokens}"
        )
    if 0 < rl.clip_ceiling <= 1 + rl.clip_high:
        raise ValueError(
            f"config.rl.clip_ceiling is {rl.clip_ceiling}; it must be above 1 + "
            f"config.rl.clip_high = {1 + rl.clip_high}, or 0 for none"
        )


def _check_effects(config: ConfigDict) -> None:
    """Refuses values that would change nothing, which their user does not know."""
    rl = config.rl
    if rl.kl_weight and rl.kl_placement == "loss" and rl.kl_estimator == "k1":
        raise ValueError(
            "config.rl.kl_estimator is 'k1' in the loss, where its expected gradient is 0; allowed: "
            "k2, k3, or config.rl.kl_placement=reward"
        )
    if rl.surrogate == "cispo" and rl.ratio == "none":
        raise ValueError(
            "config.rl.surrogate is 'cispo', which bounds a ratio, and config.rl.ratio is 'none'; "
            "allowed: ratio token or sequence, or surrogate clip"
        )
    if rl.clip_ceiling and (rl.surrogate == "cispo" or rl.ratio == "none"):
        raise ValueError(
            f"config.rl.clip_ceiling is {rl.clip_ceiling}, which config.rl.surrogate "
            f"{rl.surrogate!r} with config.rl.ratio {rl.ratio!r} does not read; set it to 0"
        )
    if rl.reference_every and not (rl.kl_weight or rl.max_kl):
        raise ValueError(
            f"config.rl.reference_every is {rl.reference_every}, but nothing reads the reference: "
            "config.rl.kl_weight and config.rl.max_kl are 0"
        )
    if rl.max_refills and rl.advantage == "reinforce":
        raise ValueError(
            f"config.rl.max_refills is {rl.max_refills}, but with config.rl.advantage 'reinforce' "
            "groups of equal rewards carry signal too; set it to 0"
        )
