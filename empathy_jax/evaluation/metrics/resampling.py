"""Intervals and paired tests of measures, with the question as the unit that is drawn.

Answers to one question resemble each other, so questions are resampled whole. A measure is a
function of sums over questions (a mean, a ratio of two sums, BLEU of a corpus), which makes every
bootstrap sample one matrix product: counts of drawn questions times the sums of each.

Legend: Q questions, B samples, S sums of a measure.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
RESAMPLES = 2000
FLIPS = 10_000
LEVEL = 0.95
INTERVALS = (
    f"95 %, percentiles of {RESAMPLES:,} bootstrap samples of questions; corpus-level Distinct: "
    "1.96 standard deviations over half-samples of questions"
)
TESTS = (
    f"differences with paired bootstrap intervals (95 %, {RESAMPLES:,} samples of questions); p by "
    f"swapping the two systems question by question, two-sided, all ways or {FLIPS:,} drawn; p_holm "
    "is corrected for the pairs of systems within a measure (Holm)"
)
_BLOCK = 500  # bootstrap samples whose counts are held at a time


def ratio(sums: Floats) -> Floats:
    """First sum over the second, NaN where that is 0: [..., 2] to [...]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] != 0, sums[..., 0] / sums[..., 1], np.nan)


def exp_ratio(sums: Floats) -> Floats:
    """exp of `ratio`: a geometric mean of what is summed as logarithms."""
    return np.exp(ratio(sums))


@dataclasses.dataclass(frozen=True)
class Sums:
    """A measure as `finish` of sums over questions.

    Attributes:
      values: [Q, S]; zeros for a question that has no value.
      finish: [..., S] to [...].
      counted: bool [Q], which questions have a value.
    """

    values: Floats
    finish: Callable[[Floats], Floats]
    counted: NDArray[np.bool_]

    @property
    def value(self) -> float:
        """The measure over all questions; NaN without any."""
        return float(self.finish(self.values.sum(axis=0))) if self.counted.any() else float("nan")

    def only(self, kept: NDArray[np.bool_]) -> "Sums":
        """The measure over the questions of a mask [Q]."""
        counted = self.counted & kept
        return Sums(np.where(counted[:, None], self.values, 0.0), self.finish, counted)


def by_question(columns: npt.ArrayLike, owners: npt.ArrayLike, questions: int) -> Floats:
    """Mean of each column over the answers to a question, [Q, C]; NaN for a question without any.

    Args:
      columns: [N, C], one row per answer; a row with a NaN is left out.
      owners: [N], the question of each answer.
      questions: Q.
    """
    columns, owners = np.asarray(columns, np.float64), np.asarray(owners, np.int64)
    known = ~np.isnan(columns).any(axis=1)
    sums = np.zeros((questions, columns.shape[1]))
    np.add.at(sums, owners[known], columns[known])
    counts = np.bincount(owners[known], minlength=questions)[:, None]
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def mean_of(
    values: npt.ArrayLike, owners: npt.ArrayLike, questions: int, finish: Callable = ratio
) -> Sums:
    """The mean over questions of the mean over their answers.

    Args:
      values: [N], NaN where an answer has none.
      owners: [N], the question of each answer.
      questions: Q.
      finish: `ratio`, or `exp_ratio` for the geometric mean of values given as logarithms.
    """
    means = by_question(np.reshape(values, (-1, 1)), owners, questions)
    counted = ~np.isnan(means[:, 0])
    sums = np.column_stack([np.where(counted, means[:, 0], 0.0), counted.astype(np.float64)])
    return Sums(sums, finish, counted)


def sums_of(
    columns: npt.ArrayLike, owners: npt.ArrayLike, questions: int, finish: Callable
) -> Sums:
    """A function of several sums, each the mean over a question's answers.

    With `ratio` this is a ratio of means: Σ_q reflections_q / Σ_q questions_q, say.
    """
    means = by_question(columns, owners, questions)
    counted = ~np.isnan(means).any(axis=1)
    return Sums(np.where(counted[:, None], means, 0.0), finish, counted)


def bootstrap(
    measures: Mapping[Hashable, Sums], seed: int, resamples: int = RESAMPLES
) -> dict[Hashable, Floats]:
    """Each measure under the same B draws of Q questions with replacement, [B] each.

    Since the draws are the same, the difference of two results is that of the paired bootstrap.
    """
    if not measures:
        return {}
    stacked = np.concatenate([sums.values for sums in measures.values()], axis=1)
    questions, rng = len(stacked), np.random.default_rng(seed)
    drawn = np.zeros((resamples, stacked.shape[1]))
    if questions:
        for start in range(0, resamples, _BLOCK):
            size = min(_BLOCK, resamples - start)
            chances = np.full(questions, 1 / questions)
            counts = rng.multinomial(questions, chances, size).astype(np.float64)
            drawn[start : start + size] = counts @ stacked
    edges = np.cumsum([sums.values.shape[1] for sums in measures.values()])[:-1]
    parts = np.split(drawn, edges, axis=1)
    return {
        name: sums.finish(part) for (name, sums), part in zip(measures.items(), parts, strict=True)
    }


def summarise(sums: Sums, resampled: Floats) -> dict[str, Any]:
    """A measure as JSON values.

    Returns:
      `value`; `error`, the standard deviation over the samples; `low` and `high`, the interval;
      `questions`. None where there is no value, or fewer than two questions to draw.
    """
    count = int(sums.counted.sum())
    value = sums.value
    if np.isnan(value):
        return {"value": None, "error": None, "low": None, "high": None, "questions": count}
    return {"value": value, **spread(resampled if count > 1 else ()), "questions": count}


def spread(resampled: npt.ArrayLike) -> dict[str, float | None]:
    """`error`, `low` and `high` of what a bootstrap gave; None of nothing."""
    known = np.asarray(resampled, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return {"error": None, "low": None, "high": None}
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"error": float(known.std()), "low": float(low), "high": float(high)}


def compare(first: Sums, second: Sums, seed: int) -> dict[str, Any]:
    """The first measure less the second, over the questions that both have.

    Returns:
      `difference`, its `low` and `high` by the paired bootstrap, `p` of `swap_p`, and `questions`;
      None where fewer than two questions are shared, or one side has no value on them.
    """
    shared = first.counted & second.counted
    count = int(shared.sum())
    sides = {0: _of(first, shared), 1: _of(second, shared)}
    if count < 2 or np.isnan([sides[0].value, sides[1].value]).any():
        nothing = dict.fromkeys(("difference", "low", "high", "p"))
        return {**nothing, "questions": count}
    drawn = bootstrap(sides, seed)
    difference = drawn[0] - drawn[1]
    interval = spread(difference)
    return {
        "difference": sides[0].value - sides[1].value,
        "low": interval["low"],
        "high": interval["high"],
        "p": swap_p(sides[0], sides[1], seed),
        "questions": count,
    }


def _of(sums: Sums, kept: NDArray[np.bool_]) -> Sums:
    return Sums(sums.values[kept], sums.finish, sums.counted[kept])


def swap_p(first: Sums, second: Sums, seed: int, flips: int = FLIPS) -> float:
    """Two-sided p of "it makes no difference which system answered".

    If that is so, the two systems may be swapped on any question: p is the share of the 2^Q ways to
    do so whose difference is at least as large as the one seen. Beyond `flips` ways as many are
    drawn, and the one seen is counted among them. For a mean this is the sign-flip test of paired
    differences (Fisher 1935; Good 2005, https://doi.org/10.1007/b138696).

    Args:
      first, second: of the same Q questions.
    """
    a, b = first.values, second.values
    ways, exact = _ways(len(a), seed, flips)
    swapped = ways @ (b - a)
    differences = first.finish(a.sum(axis=0) + swapped) - second.finish(b.sum(axis=0) - swapped)
    seen = abs(first.value - second.value)
    # Rounding must not make the way that was seen smaller than itself.
    extreme = int(np.sum(np.abs(differences) >= seen * (1 - 1e-9) - 1e-15))
    return extreme / len(ways) if exact else (extreme + 1) / (flips + 1)


@functools.lru_cache(maxsize=2)
def _ways(questions: int, seed: int, flips: int) -> tuple[Floats, bool]:
    """Ways to swap, one a row with 1 where a question is swapped; and whether these are all."""
    if questions < 62 and 2**questions <= flips:
        ways = np.arange(2**questions)[:, None] >> np.arange(questions) & 1
        return ways.astype(np.float64), True
    drawn = np.random.default_rng(seed).integers(0, 2, (flips, questions), np.int8)
    return drawn.astype(np.float64), False


def win_share(first: Sums, second: Sums, seed: int) -> dict[str, Any]:
    """Share of the questions of both on which the first has more, ties half, as `summarise`."""
    shared = first.counted & second.counted
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = first.finish(first.values), second.finish(second.values)
    won = np.where(shared, (a > b) + 0.5 * (a == b), np.nan)
    sums = mean_of(won, np.arange(len(won)), len(won))
    return summarise(sums, bootstrap({0: sums}, seed)[0])


def over_runs(values: npt.ArrayLike) -> dict[str, Any]:
    """Mean of a measure over runs that differ in their seed, with Student's 95 % interval.

        m ± t_{n-1} s / √n

    It says what other seeds would give on the same questions, as far as few runs can.

    Args:
      values: of the runs, NaN for one that has none.

    Returns:
      `values` and `mean`; `low` and `high`, None of fewer than two values.
    """
    given = np.asarray(values, np.float64)
    known = given[~np.isnan(given)]
    found = {
        "values": [None if np.isnan(value) else float(value) for value in given],
        "mean": float(known.mean()) if known.size else None,
        "low": None,
        "high": None,
    }
    if known.size > 1:
        quantile = special.stdtrit(known.size - 1, (1 + LEVEL) / 2)
        half = float(quantile * known.std(ddof=1) / np.sqrt(known.size))
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, in their order; None stays None.

    Holm 1979, https://www.jstor.org/stable/4615733: the k-th smallest of m is multiplied by
    m - k + 1, and is no smaller than those before it.
    """
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[place] = highest
    return corrected
