"""How far two judges agree, or a judge and people: kappa of pairs, Kendall's tau of rankings.

All measures are sums over questions, so that a bootstrap of questions is a weighting of them.
"""

import numpy as np

from empathy_jax.evaluation.judge import outcomes as codes
from empathy_jax.evaluation.judge.outcomes import LOSS, WIN, Codes
from empathy_jax.evaluation.ranking import statistics
from empathy_jax.evaluation.ranking.statistics import Floats


def tables(first: Codes, second: Codes) -> Floats:
    """Counts [Q, 3, 3] of outcomes (win, undecided, loss) of the first by those of the second.

    Each pair of systems that both judged counts from either side, so that no measure depends on
    which system is called the first. Ties and flipped verdicts are undecided; pairs of equal texts
    are left out.
    """
    both = codes.judged(first) & codes.judged(second)
    both &= (first != codes.SAME) & (second != codes.SAME)
    classes = [
        np.where(found == WIN, 0, np.where(found == LOSS, 2, 1)) for found in (first, second)
    ]
    cells = np.zeros((len(first), 3, 3))
    question = np.nonzero(both)[0]
    np.add.at(cells, (question, classes[0][both], classes[1][both]), 0.5)
    return cells


def cohens_kappa(cells: Floats) -> Floats:
    """Cohen's kappa of confusion matrices [..., C, C]; NaN where chance alone agrees always.

        κ = (p_o - p_e) / (1 - p_e),   p_e = Σ_c p_c. p_.c

    (Cohen 1960, https://doi.org/10.1177/001316446002000104): 1 is one opinion, 0 is chance.
    """
    total = cells.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(cells, axis1=-2, axis2=-1) / total
        expected = (cells.sum(-1) * cells.sum(-2)).sum(-1) / total**2
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def decided(cells: Floats) -> Floats:
    """The part [..., 2, 2] of confusion matrices [..., 3, 3] in which both decided."""
    return cells[..., ::2, ::2]


def taus(first: Floats, second: Floats) -> Floats:
    """Kendall's tau-b [Q] of two rankings [Q, S] of each question; NaN where one is not known."""
    return np.array(
        [
            statistics.kendalls_tau(*pair) if not np.isnan(pair).any() else np.nan
            for pair in zip(first, second, strict=True)
        ],
        np.float64,
    ).reshape(-1)
