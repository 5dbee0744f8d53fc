"""Whether strengths that a biased judge hides are found, and how often their intervals hold them.

    PYTHONPATH=. python benchmarks/judge_recovery.py [--replications=200]

Four systems, 60 questions. A verdict prefers by strength, by length (1 per standard deviation of the
relative difference; the weakest system writes the longest answers), by place (the first one has 1
more) and by chance; verdicts are independent, or a system may do well or badly on a question (sd .7),
so that the verdicts on a question go together. The truth of consistent wins is that of 20,000
questions from a judge without any love of length; with independent verdicts it is twice the planted
strengths.

Prints one JSON line: for each design the mean error of the log-strengths over systems without and
with control (root mean square over systems of the mean over replications), and the coverage of the
95 % intervals, in percent.
"""

import argparse
import json
import time

import numpy as np

from empathy_jax.evaluation.judge import bradley_terry
from empathy_jax.evaluation.judge.outcomes import FLIPPED, LOSS, SAME, WIN

STRENGTHS = np.array([0.6, 0.2, -0.2, -0.6])
LOG_LENGTHS = np.array([5.0, 5.3, 5.6, 5.9])
PLACE, LENGTH = 1.0, 1.0
QUESTIONS, FRESH, RESAMPLES = 60, 20_000, 1000
DESIGNS = {"independent": 0.0, "by_question": 0.7}


def draw(rng, questions, spread, length):
    """Outcomes [Q, S, S] and standardised differences of length [Q, S, S, 1]."""
    systems = len(STRENGTHS)
    lengths = np.exp(rng.normal(LOG_LENGTHS, 0.5, (questions, systems)))
    style = (lengths[:, :, None] - lengths[:, None, :]) / (
        lengths[:, :, None] + lengths[:, None, :]
    )
    i, j = np.triu_indices(systems, 1)
    style /= np.sqrt((style[:, i, j] ** 2).mean())
    liked = STRENGTHS + spread * rng.normal(size=(questions, systems))
    likes = liked[:, i] - liked[:, j] + length * style[:, i, j]
    first = rng.random(likes.shape) < 1 / (1 + np.exp(-(likes + PLACE)))
    second = rng.random(likes.shape) < 1 / (1 + np.exp(-(likes - PLACE)))
    codes = np.where(first & second, WIN, np.where(first | second, FLIPPED, LOSS))
    outcomes = np.full((questions, systems, systems), SAME, np.int8)
    outcomes[:, i, j] = codes
    outcomes[:, j, i] = np.where(codes == FLIPPED, FLIPPED, -codes)
    return outcomes, style[..., None]


def truth(rng, spread):
    outcomes, style = draw(rng, FRESH, spread, 0.0)
    return bradley_terry.resampled(outcomes, style[..., :0], np.ones((1, FRESH)))[0]


def simulate(rng, replications, spread):
    """Errors of the point estimates and coverage, without and with control."""
    systems, known = len(STRENGTHS), truth(rng, spread)
    errors, covered = np.zeros((2, 2, systems))
    for _ in range(replications):
        outcomes, style = draw(rng, QUESTIONS, spread, LENGTH)
        chances = np.full(QUESTIONS, 1 / QUESTIONS)
        weights = rng.multinomial(QUESTIONS, chances, size=RESAMPLES).astype(float)
        for index, used in enumerate((style[..., :0], style)):
            best, drawn = bradley_terry.resampled(outcomes, used, weights)
            low, high = np.percentile(drawn[:, :systems], (2.5, 97.5), axis=0)
            errors[index] += (best[:systems] - known) / replications
            covered[index] += ((low <= known) & (known <= high)) / replications
    return {
        "truth": known.round(2).tolist(),
        "error": np.sqrt((errors[0] ** 2).mean()).round(3),
        "error_controlled": np.sqrt((errors[1] ** 2).mean()).round(3),
        "coverage": (100 * covered[0].mean()).round(1),
        "coverage_controlled": (100 * covered[1].mean()).round(1),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--replications", type=int, default=200)
    replications = parser.parse_args().replications
    began, rng = time.perf_counter(), np.random.default_rng(0)
    found = {name: simulate(rng, replications, spread) for name, spread in DESIGNS.items()}
    seconds = round(time.perf_counter() - began, 1)
    result = {"benchmark": "judge_recovery", "replications": replications, "designs": found}
    print(json.dumps(result | {"seconds": seconds}))


if __name__ == "__main__":
    main()
