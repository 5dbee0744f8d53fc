"""Strengths of systems from decided comparisons, with and without control for style.

    P(i beats j) = σ(θ_i - θ_j + Σ_f γ_f x_f(i, j))

is Bradley-Terry with the style of the two answers beside their writers: θ is then the strength at
equal style (length-controlled AlpacaEval, https://arxiv.org/abs/2404.04475). Where one verdict has
a bias δ for the first place, P(first wins) = σ(d + δ), two independent verdicts that agree have the
odds

    σ(d + δ) σ(d - δ) / (σ(-d - δ) σ(-d + δ)) = exp(2 d)

in which δ is gone: consistent wins are fit as they are, and no place enters the model. Hence θ is in
log-odds of a consistent win over a consistent loss.
"""

import numpy as np

from empathy_jax.evaluation.judge.outcomes import LOSS, WIN, Codes
from empathy_jax.evaluation.ranking.statistics import Floats

# Standard deviation of the prior of θ and γ, in log-odds: it matters only where data say nothing, as
# for a system that always wins, and makes every maximum finite.
PRIOR = 10.0
_LONGEST_STEP = 2.0
_MOST_STEPS = 200


def games(outcomes: Codes, style: Floats) -> tuple[Floats, Floats, Floats]:
    """Decided comparisons as rows of a regression.

    Args:
      outcomes: [Q, S, S].
      style: [Q, S, S, F] differences; F may be 0.

    Returns:
      Rows [G, S + F] for θ and γ, whether the first system won [G], and the question of each [G].
    """
    systems = outcomes.shape[1]
    i, j = np.triu_indices(systems, 1)
    question, pair = np.nonzero(np.isin(outcomes[:, i, j], (WIN, LOSS)))
    i, j = i[pair], j[pair]
    names = np.eye(systems)[i] - np.eye(systems)[j]
    rows = np.concatenate([names, style[question, i, j]], axis=1)
    return rows, (outcomes[question, i, j] == WIN).astype(np.float64), question


def fit(rows: Floats, won: Floats, weights: Floats, start: Floats | None = None) -> Floats:
    """Coefficients of maximum penalised likelihood, for many weightings at once.

        max_β Σ_g w_g (y_g η_g - log(1 + exp η_g)) - |β|² / (2 PRIOR²),   η = rows β

    by Newton's method; the penalty also makes the θ sum to zero.

    Args:
      rows: [G, P].
      won: [G], 0 or 1.
      weights: [B, G].
      start: [P], near the maximum; zeros by default.

    Returns:
      [B, P].

    Raises:
      ValueError: when it has not converged, which data of this kind do not bring about.
    """
    size = rows.shape[1]
    beta = np.tile(np.zeros(size) if start is None else start, (len(weights), 1))
    squares = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    for _ in range(_MOST_STEPS):
        chance = 1 / (1 + np.exp(-(beta @ rows.T)))
        gradient = (weights * (won - chance)) @ rows - beta / PRIOR**2
        curvature = (weights * chance * (1 - chance)) @ squares
        curvature = curvature.reshape(-1, size, size) + np.eye(size) / PRIOR**2
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        # Far from the maximum a whole step may overshoot.
        longest = np.abs(step).max(1, keepdims=True, initial=0)
        beta = beta + step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < 1e-9:
            return beta
    raise ValueError("the strengths of the systems have not converged")


def resampled(outcomes: Codes, style: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Coefficients of the data and of bootstrap samples of questions.

    Args:
      outcomes, style: as in `games`.
      weights: [B, Q], how often each question is in each sample.

    Returns:
      [S + F] and [B, S + F].
    """
    rows, won, question = games(outcomes, style)
    best = fit(rows, won, np.ones((1, len(rows))))[0]
    return best, fit(rows, won, weights[:, question], best)
