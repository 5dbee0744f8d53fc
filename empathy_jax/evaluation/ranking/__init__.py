"""Blind ranking of several systems' answers by people: study, page, votes, statistics.

    python -m empathy_jax.evaluation.ranking build|serve|offline|analyse ...

As in Empathy-R1 (https://arxiv.org/abs/2509.14851), people rank the answers of all systems to one
question, and are shown no system's name. `docs/ranking.md` leads through a study.
"""

DIMENSIONS = ("fluency", "identification", "comforting", "suggestion", "overall")
