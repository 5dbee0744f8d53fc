"""Seconds to measure 1,000 generations against 4 references each, with floor, ceiling, intervals.

    PYTHONPATH=. python benchmarks/metrics_speed.py [--questions=1000] [--characters=400]

Texts are sentences of the sample corpus put together at random, so that long n-grams match more often
than among texts that people wrote independently. Measured is all of `evaluation/metrics` that takes no
model: texts to values (both tokenizations), sums, 2,000 bootstrap samples, Distinct-n at equal length.
That is 4,000 pairs of generations and references, 12,000 of references with each other and 16,000 of
answers to other questions with references. Prints one JSON line; `goal_s` is 20 s on two cores.
"""

import argparse
import json
import os
import time

import numpy as np

from empathy_jax.corpus import sample
from empathy_jax.corpus.rules import sentences
from empathy_jax.evaluation.metrics import references, scoring

GOAL = 20.0


def compose(rng: np.random.Generator, pool: list[str], count: int, characters: int) -> list[str]:
    """Texts of at least so many characters, one sentence more or less."""
    made = []
    for _ in range(count):
        parts: list[str] = []
        wanted = characters * rng.uniform(0.7, 1.3)
        while sum(map(len, parts)) < wanted:
            parts.append(pool[rng.integers(len(pool))])
        made.append("".join(parts))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--characters", type=int, default=400)
    options = parser.parse_args()
    texts = [a["text"] for r in sample.sample_questions("zh") for a in r["answers"]]
    pool = [text[start:end] for text in texts for start, end in sentences.spans(text)]
    rng, count = np.random.default_rng(0), options.questions
    questions = compose(rng, pool, count, options.characters // 2)
    answers = compose(rng, pool, count, options.characters)
    flat = compose(rng, pool, count * options.references, options.characters)
    known = [flat[start::count] for start in range(count)]

    clock = {}
    began = wall = time.perf_counter()
    cpu = time.process_time()
    sets = references.candidate_sets(known, answers, range(count), seed=0)
    values = scoring.measure(sets, questions, "zh")
    clock["values"], wall = time.perf_counter() - wall, time.perf_counter()
    sums = scoring.add_up(values, sets, count)
    table = scoring.table(sums, seed=0)
    clock["intervals"], wall = time.perf_counter() - wall, time.perf_counter()
    table |= scoring.corpus_distinct_entries(sets, count, seed=0)
    clock["distinct"] = time.perf_counter() - wall
    print(
        json.dumps(
            {
                "benchmark": "metrics_speed",
                "questions": count,
                "references": options.references,
                "mean_characters": round(float(np.mean([len(text) for text in answers]))),
                "measures": len(table),
                "wall_s": round(time.perf_counter() - began, 2),
                "cpu_s": round(time.process_time() - cpu, 2),
                "parts_wall_s": {name: round(seconds, 2) for name, seconds in clock.items()},
                "goal_s": GOAL,
                "load": [round(load, 2) for load in os.getloadavg()],
            }
        )
    )


if __name__ == "__main__":
    main()
