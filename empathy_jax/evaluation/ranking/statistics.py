"""Measures of rankings, each as one value per vote or with the influence of each vote.

Legend: V votes (one rater on one item), S systems. `ranks[v, s]` is the place of a system, 1 the
best; tied systems have the mean of the places that they share.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks_of(order: list[list[int]], systems: int) -> Floats:
    """Places [S] from groups of tied systems, the best group first."""
    ranks, place = np.full(systems, np.nan), 1
    for group in order:
        ranks[group] = place + (len(group) - 1) / 2
        place += len(group)
    return ranks


def win_at(ranks: Floats, k: int) -> Floats:
    """Whether each system is among the first k, [V, S].

    Tied systems share what their places earn, so a vote hands out k wins, whatever is tied. With m
    systems chance gives k / m.
    """
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(-1)
    first = ranks - (tied - 1) / 2
    return np.clip(k - first + 1, 0, tied) / tied


def two_way_error(
    influence: Floats, rater: NDArray[np.int64], item: NDArray[np.int64]
) -> tuple[Floats, int]:
    """Standard error of a mean over votes that are clustered by rater and by item at once.

        V = V_rater + V_item - V_vote,   V_c = G/(G-1) · Σ_g (Σ_{v in g} ψ_v)² / V²

    (Cameron, Gelbach & Miller 2011, https://doi.org/10.1198/jbes.2010.07136). The difference may
    come out at zero or below; then it is V_vote, the variance of independent votes.

    Args:
      influence: [V, ...] of each vote on the estimate, of mean zero: x_v less the mean for a mean.
      rater, item: [V]; each pair at most once.

    Returns:
      Standard errors [...], and the degrees of freedom for t: the smaller number of clusters less
      one. Errors are NaN when there is but one rater or one item.
    """
    votes = len(influence)
    raters, items = len(np.unique(rater)), len(np.unique(item))
    freedom = min(raters, items) - 1
    if freedom < 1:
        return np.full(influence.shape[1:], np.nan), freedom
    by_vote = votes / (votes - 1) * (influence**2).sum(0) / votes**2
    by_rater, by_item = (_cluster_variance(influence, labels) for labels in (rater, item))
    variance = by_rater + by_item - by_vote
    return np.sqrt(np.where(variance > 0, variance, by_vote)), freedom


def _cluster_variance(influence: Floats, labels: NDArray[np.int64]) -> Floats:
    _, place = np.unique(labels, return_inverse=True)
    groups = place.max() + 1
    sums = np.zeros((groups, *influence.shape[1:]))
    np.add.at(sums, place, influence)
    return groups / (groups - 1) * (sums**2).sum(0) / len(influence) ** 2


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Half width of a two-sided interval in standard errors."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, freedom))


def percentile_interval(value: float, resampled: Floats) -> dict[str, float | None]:
    """A value with the 95 % interval of its bootstrap samples; None for what is not finite."""
    if not np.isfinite(value) or not np.isfinite(resampled).all():
        return {"value": float(value) if np.isfinite(value) else None, "low": None, "high": None}
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {"value": float(value), "low": float(low), "high": float(high)}


def plackett_luce(ranks: Floats, tolerance: float = 1e-10) -> tuple[Floats, Floats]:
    """Log-strengths of Plackett-Luce by maximum likelihood, of mean zero.

        P(order) = Π_j λ_(j) / Σ_{l >= j} λ_(l),   log-strength = log λ

    by the MM algorithm (Hunter 2004, https://doi.org/10.1214/aos/1079120141). A vote with ties is
    the mean of the votes that break them, in every way.

    Args:
      ranks: [V, S].

    Returns:
      Log-strengths [S] and the influence of each vote on them [V, S], of mean zero (the inverse of
      the observed information times the vote's score).

    Raises:
      ValueError: the likelihood has no maximum, since some systems were never placed behind any of
        the others.
    """
    _require_connected(ranks)
    strict, weight, vote = _without_ties(ranks)
    at_risk = (strict[:, None, :] >= strict[:, :, None]).astype(np.float64)
    # The last one left wins from a set of itself: that says nothing, and slows the ascent.
    counts = weight[:, None] * (at_risk.sum(-1) > 1)
    won = counts.sum(0)
    sets, which = np.unique(at_risk.reshape(-1, ranks.shape[1]), axis=0, return_inverse=True)
    times = np.bincount(which.ravel(), counts.ravel(), len(sets))
    strengths = np.full(ranks.shape[1], 1 / ranks.shape[1])
    for _ in range(100_000):
        new = won / (times / (sets @ strengths) @ sets)
        new /= new.sum()
        moved = np.abs(np.log(new) - np.log(strengths)).max()
        strengths = new
        if moved < tolerance:
            break
    chances = sets * strengths / (sets @ strengths)[:, None]
    information = np.diag(times @ chances) - (chances * times[:, None]).T @ chances
    expected = at_risk * strengths / (at_risk @ strengths)[:, :, None]
    scores = np.zeros(ranks.shape)
    np.add.at(scores, vote, counts - (expected * counts[:, :, None]).sum(1))
    logs = np.log(strengths)
    return logs - logs.mean(), len(ranks) * scores @ np.linalg.pinv(information)


def _without_ties(ranks: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Strict rankings that stand for the votes, their weights (1 for each vote), their votes."""
    places = np.sort(ranks, axis=1)
    tied = (places[:, 1:] == places[:, :-1]).any(1)
    strict, vote = list(ranks[~tied]), list(np.flatnonzero(~tied))
    weight = [1.0] * len(strict)
    for index in np.flatnonzero(tied):
        row = ranks[index]
        groups = [np.flatnonzero(row == place) for place in np.unique(row)]
        ways = list(itertools.product(*map(itertools.permutations, groups)))
        for way in ways:
            strict.append(ranks_of([[system] for group in way for system in group], len(row)))
            weight.append(1 / len(ways))
            vote.append(index)
    return np.array(strict), np.array(weight), np.array(vote)


def _require_connected(ranks: Floats) -> None:
    from scipy.sparse import csgraph

    beats = (ranks[:, :, None] <= ranks[:, None, :]).any(0)
    groups, _ = csgraph.connected_components(beats, directed=True, connection="strong")
    if groups > 1:
        raise ValueError("some systems were always ranked before all the others")


def kendalls_w(ranks: Floats) -> float:
    """Kendall's W of raters who ranked the same systems, corrected for ties; NaN if all are tied.

        W = 12 Σ_s (R_s - mean R)² / (m² (n³ - n) - m Σ (t³ - t))

    (Kendall & Babington Smith 1939, https://doi.org/10.1214/aoms/1177732186): 1 is one opinion, 0
    none in common. Independent raters reach 1/m in the mean.

    Args:
      ranks: [m raters, n systems], m of 2 or more.
    """
    raters, systems = ranks.shape
    sums = ranks.sum(0)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(-1)
    correction = (tied**2 - 1).sum()  # Σ over groups of t³ - t is Σ over members of t² - 1
    most = raters**2 * (systems**3 - systems) - raters * correction
    return float(12 * ((sums - sums.mean()) ** 2).sum() / most) if most > 0 else float("nan")


def coincidences(values: Floats, units: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Krippendorff's coincidence matrix of each unit.

    Args:
      values: [N] judgements, of any unit and any rater.
      units: [N], which unit each is of; units with one judgement pair with nothing.

    Returns:
      The C different values in order, and [U, C, C]: pairs of values within a unit, each pair in
      both directions, divided by the judgements of the unit less one.
    """
    levels, column = np.unique(values, return_inverse=True)
    _, row = np.unique(units, return_inverse=True)
    counts = np.zeros((row.max() + 1, len(levels)))
    np.add.at(counts, (row, column), 1)
    pairs = counts[:, :, None] * counts[:, None, :] - np.eye(len(levels)) * counts[:, None, :]
    return levels, pairs / np.maximum(counts.sum(1) - 1, 1)[:, None, None]


def krippendorff_alpha(coincidence: Floats) -> float:
    """Krippendorff's alpha for ordinal values; NaN where all judgements are the same.

        α = 1 - Σ o_ck δ²_ck / Σ e_ck δ²_ck,   δ_ck = Σ_{g=c..k} n_g - (n_c + n_k)/2

    (Krippendorff 2011, https://repository.upenn.edu/asc_papers/43). 1 is one opinion, 0 is chance.

    Args:
      coincidence: [C, C] sum over units, rows and columns in the order of the values.
    """
    totals = coincidence.sum(0)
    upto = np.cumsum(totals) - totals / 2
    distance = (upto[:, None] - upto[None, :]) ** 2
    expected = np.outer(totals, totals) / (totals.sum() - 1)
    disagreement = (expected * distance).sum()
    if not disagreement > 0:
        return float("nan")
    return float(1 - (coincidence * distance).sum() / disagreement)


def kendalls_tau(first: Floats, second: Floats) -> float:
    """Kendall's tau-b of two rankings of the same systems; NaN if one ties all."""
    signs = [np.sign(ranks[:, None] - ranks[None, :]) for ranks in (first, second)]
    most = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float((signs[0] * signs[1]).sum() / most) if most > 0 else float("nan")
