"""Answers of several systems, compared by language models: each comparison in both orders.

    python -m empathy_jax.evaluation.judge --system=NAME=FILE ... --judge=NAME=URL,MODEL ...

`docs/judge.md` leads through it.
"""

MODES = ("pairwise", "listwise")
