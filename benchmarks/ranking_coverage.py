"""How often the 95 % intervals of `evaluation/ranking` hold the truth, by simulation.

    PYTHONPATH=. python benchmarks/ranking_coverage.py [--replications=500]

A rater prefers by the system's strength, an own taste for each system, how well the system did on
the item, and Gumbel noise: without tastes and items this is Plackett-Luce. Three designs: 20 raters
by 100 items as in the paper, independent votes; the same with tastes (sd .5) and items (sd .7); and
with these, 12 raters and 60 items of 4 raters each. Strengths are known; where tastes and items
make the measures different from Plackett-Luce's, the truth is that of 200,000 fresh raters on fresh
items. Beside the intervals of the package, for Win@1: `votes_independent`, which ignores clusters,
and `pigeonhole`, percentiles of a bootstrap that draws raters and items (Owen 2007).

Prints one JSON line: for each design the mean coverage over systems of each measure, in percent.
"""

import argparse
import json
import time

import numpy as np

from empathy_jax.evaluation.ranking import design, statistics

STRENGTHS = np.array([1.1, 0.2, 0.1, 0.0, -0.3, -1.1])  # the first wins about 43 %, a strong system
DESIGNS = {
    "20x100_independent": (20, 100, 20, 0.0, 0.0),
    "20x100_clustered": (20, 100, 20, 0.5, 0.7),
    "12x60_4_per_item_clustered": (12, 60, 4, 0.5, 0.7),
}
FRESH = 200_000
RESAMPLES = 300


def draw(rng, rater, item, taste, spread):
    """Ranks [V, S] of votes by rater and item indices [V]."""
    systems = len(STRENGTHS)
    tastes = taste * rng.normal(size=(rater.max() + 1, systems))
    items = spread * rng.normal(size=(item.max() + 1, systems))
    utilities = STRENGTHS + tastes[rater] + items[item] + rng.gumbel(size=(len(rater), systems))
    return (-utilities).argsort(1).argsort(1) + 1.0


def measure(ranks):
    """Each measure's values [S] and influences [V, S]."""
    found = {f"win_at_{k}": statistics.win_at(ranks, k) for k in (1, 2, 3)} | {"mean_rank": ranks}
    found = {name: (values.mean(0), values - values.mean(0)) for name, values in found.items()}
    return found | {"log_strength": statistics.plackett_luce(ranks)}


def pigeonhole(rng, values, rater, item):
    """Percentile interval [2, S] of the mean under resampled raters and items."""
    raters, items = rater.max() + 1, item.max() + 1
    of_rater = rng.multinomial(raters, np.full(raters, 1 / raters), size=RESAMPLES)
    of_item = rng.multinomial(items, np.full(items, 1 / items), size=RESAMPLES)
    weights = (of_rater[:, rater] * of_item[:, item]).astype(np.float64)
    means = weights @ values / weights.sum(1, keepdims=True)
    return np.percentile(means, (2.5, 97.5), axis=0)


def simulate(rng, replications, raters, items, per_item, taste, spread):
    """Name to mean coverage in percent."""
    fresh = np.arange(FRESH)
    truth = {
        name: value for name, (value, _) in measure(draw(rng, fresh, fresh, taste, spread)).items()
    }
    if not taste and not spread:
        truth["log_strength"] = STRENGTHS - STRENGTHS.mean()
        truth["win_at_1"] = np.exp(STRENGTHS) / np.exp(STRENGTHS).sum()
    held = {name: [] for name in [*truth, "votes_independent", "pigeonhole"]}
    for _ in range(replications):
        given = design.assign(rng, items, raters, per_item)
        rater = np.concatenate([[index] * len(own) for index, own in enumerate(given)])
        item = np.concatenate(given).astype(np.int64)
        ranks = draw(rng, rater, item, taste, spread)
        for name, (value, influence) in measure(ranks).items():
            error, freedom = statistics.two_way_error(influence, rater, item)
            off = np.abs(value - truth[name])
            held[name].append(off <= statistics.t_quantile(freedom) * error)
            if name == "win_at_1":
                naive = np.sqrt((influence**2).mean(0) / len(ranks))
                held["votes_independent"].append(off <= 1.96 * naive)
        low, high = pigeonhole(rng, statistics.win_at(ranks, 1), rater, item)
        held["pigeonhole"].append((low <= truth["win_at_1"]) & (truth["win_at_1"] <= high))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replications", type=int, default=500)
    replications = parser.parse_args().replications
    began = time.monotonic()
    found = {
        name: simulate(np.random.default_rng(0), replications, *values)
        for name, values in DESIGNS.items()
    }
    seconds = round(time.monotonic() - began)
    print(
        json.dumps(
            {
                "benchmark": "ranking_coverage",
                "replications": replications,
                "coverage_percent": found,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
