"""What the votes of a study say: systems by dimension, agreement, attention, self-consistency.

Raters who fail attention checks are left out by one rule, `EXCLUSION`, that is fixed before any
vote is seen; agreement is given with and without them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from empathy_jax.evaluation.ranking import statistics
from empathy_jax.evaluation.ranking.statistics import Floats

EXCLUSION = (
    "foil_last_in_half: a rater is left out who put the answer to another question in the last "
    "place overall in fewer than half of the attention checks that the rater voted on"
)
INTERVALS = (
    "95 %, t with standard errors clustered by rater and by item at once; of W and alpha: "
    "percentiles of 1,000 bootstrap samples of items, raters as they are"
)
WINS = (1, 2, 3)
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Ballots:
    """Votes on items with the systems' names put back.

    Attributes:
      rater: [V] index into `raters`.
      item: [V] index into `questions`.
      ranks: dimension to places [V, S].
    """

    systems: tuple[str, ...]
    raters: tuple[str, ...]
    questions: tuple[str, ...]
    rater: NDArray[np.int64]
    item: NDArray[np.int64]
    ranks: Mapping[str, Floats]

    def without(self, excluded: set[str]) -> "Ballots":
        keep = np.array([self.raters[index] not in excluded for index in self.rater], bool)
        ranks = {name: values[keep] for name, values in self.ranks.items()}
        return dataclasses.replace(self, rater=self.rater[keep], item=self.item[keep], ranks=ranks)


def analyse(
    public: Mapping[str, Any],
    key: Mapping[str, Any],
    votes: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    """The whole analysis.

    Args:
      public, key: what `study.json` and `key.json` hold.
      votes: of `votes.read`.

    Returns:
      What `analysis.json` holds.

    Raises:
      ValueError: the key is of another study, or no vote on an item is left.
    """
    if key["study"] != public["study"]:
        raise ValueError(
            f"the key is of the study {key['study']}, and the study is {public['study']}; "
            "give the key.json that was built with this study.json"
        )
    everyone = unblind(public, key, votes)
    raters = describe_raters(key, votes)
    excluded = {name for name, entry in raters.items() if entry["excluded"]}
    kept = everyone.without(excluded)
    if not len(kept.rater):
        raise ValueError(
            f"no vote on an item is left: {len(everyone.rater)} were cast, and {len(excluded)} "
            f"raters are left out ({EXCLUSION})"
        )
    return {
        "study": public["study"],
        "systems": list(kept.systems),
        "votes": len(kept.rater),
        "votes_expected": sum(trial["kind"] == "item" for trial in key["trials"].values()),
        "items": len(np.unique(kept.item)),
        "raters": len(np.unique(kept.rater)),
        "chance": {
            **{f"win_at_{k}": min(k / len(kept.systems), 1.0) for k in WINS},
            "mean_rank": (len(kept.systems) + 1) / 2,
        },
        "exclusion": EXCLUSION,
        "excluded": sorted(excluded),
        "intervals": INTERVALS,
        "dimensions": {name: _dimension(kept, name) for name in public["dimensions"]},
        "agreement": {
            name: {"kept": agreement(kept, name), "everyone": agreement(everyone, name)}
            for name in public["dimensions"]
        },
        "rater_details": raters,
    }


def unblind(
    public: Mapping[str, Any],
    key: Mapping[str, Any],
    votes: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Ballots:
    """Votes on items; checks and repeats are left out."""
    raters = tuple(public["raters"])
    items: dict[str, int] = {}
    chosen = [
        (rater, key["trials"][trial], vote)
        for (rater, trial), vote in votes.items()
        if key["trials"][trial]["kind"] == "item"
    ]
    systems = len(key["systems"])
    ranks = {
        name: np.array([_places(secret, vote, name, systems) for _, secret, vote in chosen])
        for name in public["dimensions"]
    }
    item = [items.setdefault(secret["question"], len(items)) for _, secret, _ in chosen]
    return Ballots(
        tuple(key["systems"]),
        raters,
        tuple(items),
        np.array([raters.index(rater) for rater, _, _ in chosen], np.int64),
        np.array(item, np.int64),
        {name: values.reshape(-1, systems) for name, values in ranks.items()},
    )


def _places(
    secret: Mapping[str, Any], vote: Mapping[str, Any], dimension: str, systems: int
) -> Floats:
    order = [secret["cards"][card] for card in vote["rankings"][dimension]]
    return statistics.ranks_of(order, systems)


def describe_raters(
    key: Mapping[str, Any], votes: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """For each rater: votes, seconds, attention checks, and agreement with the own repeats.

    `tau` is Kendall's tau-b between the two overall rankings of an item that was shown twice, mean
    over items; `same_first` is how often the same system was first.
    """
    systems = len(key["systems"])
    found = {}
    for rater in key["codes"]:
        own = [(key["trials"][t], vote) for (who, t), vote in votes.items() if who == rater]
        checks = [vote["rankings"]["overall"][-1] == s["foil"] for s, vote in own if s["foil"]]
        first, again = (
            {
                secret["question"]: _places(secret, vote, "overall", systems)
                for secret, vote in own
                if secret["kind"] == kind
            }
            for kind in ("item", "repeat")
        )
        pairs = [(first[question], again[question]) for question in first.keys() & again.keys()]
        found[rater] = {
            "votes": len(own),
            "trials": sum(trial["rater"] == rater for trial in key["trials"].values()),
            "median_seconds": float(np.median([vote["seconds"] for _, vote in own]))
            if own
            else None,
            "checks": len(checks),
            "checks_passed": sum(checks),
            "excluded": 2 * sum(checks) < len(checks),
            "repeats": len(pairs),
            "tau": _mean([statistics.kendalls_tau(*pair) for pair in pairs]),
            "same_first": _mean([float(a.argmin() == b.argmin()) for a, b in pairs]),
        }
    return found


def _dimension(ballots: Ballots, name: str) -> dict[str, Any]:
    """System to measures, each with `value`, `low` and `high` (None where there is no interval)."""
    ranks = ballots.ranks[name]
    columns = {f"win_at_{k}": _means(ballots, statistics.win_at(ranks, k), 0, 1) for k in WINS}
    columns["mean_rank"] = _means(ballots, ranks, 1, ranks.shape[1])
    try:
        logs, influence = statistics.plackett_luce(ranks)
        columns["log_strength"] = _with_intervals(ballots, logs, influence, -np.inf, np.inf)
    except ValueError:  # a system that is always first has no finite strength
        columns["log_strength"] = [{"value": None, "low": None, "high": None}] * ranks.shape[1]
    return {
        system: {measure: values[index] for measure, values in columns.items()}
        for index, system in enumerate(ballots.systems)
    }


def _means(ballots: Ballots, values: Floats, least: float, most: float) -> list[dict[str, Any]]:
    means = values.mean(0)
    return _with_intervals(ballots, means, values - means, least, most)


def _with_intervals(
    ballots: Ballots, values: Floats, influence: Floats, least: float, most: float
) -> list[dict[str, Any]]:
    errors, freedom = statistics.two_way_error(influence, ballots.rater, ballots.item)
    if freedom < 1:
        return [{"value": float(value), "low": None, "high": None} for value in values]
    half = statistics.t_quantile(freedom) * errors
    low, high = np.clip(values - half, least, most), np.clip(values + half, least, most)
    return [
        {"value": float(v), "low": float(a), "high": float(b)}
        for v, a, b in zip(values, low, high, strict=True)
    ]


def agreement(ballots: Ballots, name: str) -> dict[str, Any]:
    """Kendall's W, mean over items with two raters or more, and Krippendorff's ordinal alpha.

    A unit of alpha is a system's answer to an item; its values are the places that raters gave it.
    """
    ranks, systems = ballots.ranks[name], len(ballots.systems)
    shared = [item for item in np.unique(ballots.item) if (ballots.item == item).sum() > 1]
    if not shared:
        nothing = {"value": None, "low": None, "high": None}
        return {"kendalls_w": nothing, "krippendorff_alpha": nothing, "items": 0}
    rows = np.isin(ballots.item, shared)
    by_item = np.array([statistics.kendalls_w(ranks[ballots.item == item]) for item in shared])
    units = (ballots.item[rows, None] * systems + np.arange(systems)).ravel()
    _, pairs = statistics.coincidences(ranks[rows].ravel(), units)
    pairs = pairs.reshape(len(shared), systems, *pairs.shape[1:]).sum(1)

    rng = np.random.default_rng(0)
    drawn = rng.integers(len(shared), size=(_RESAMPLES, len(shared)))
    return {
        "kendalls_w": statistics.percentile_interval(
            np.nanmean(by_item), np.array([np.nanmean(by_item[index]) for index in drawn])
        ),
        "krippendorff_alpha": statistics.percentile_interval(
            statistics.krippendorff_alpha(pairs.sum(0)),
            np.array([statistics.krippendorff_alpha(pairs[index].sum(0)) for index in drawn]),
        ),
        "items": len(shared),
    }


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None
