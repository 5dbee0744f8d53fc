"""A small study with three raters and three systems, hostile texts, and votes."""

from typing import Any

from empathy_jax.evaluation.ranking import DIMENSIONS, study

SYSTEMS = ("secret-alpha", "secret-beta", "secret-gamma")
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
    "<svg onload=window.hacked=3> \u202eright to left \x00\x01\x08 {{ 7 * 7 }} &lt; \u2028\u2029 '\"`${1}"
)


def make_study(
    answers: tuple[str, str, str] = ("好", "中", "差"), questions: int = 5, **settings: Any
) -> tuple[dict, dict]:
    asked = [
        study.Question(f"q{n}", f"问题 {n}", tuple(f"{n} {text}" for text in answers))
        for n in range(questions)
    ]
    chosen = {"raters": 3, "raters_per_item": 3, "checks": 1, "repeats": 1, "seed": 3} | settings
    return study.build(SYSTEMS, asked, study.Settings(**chosen))


def make_vote(public: dict, rater: str, place: int = 0, revision: int = 1) -> dict[str, Any]:
    """A vote on the rater's trial that ranks the cards as they are displayed."""
    trial = public["raters"][rater]["trials"][place]
    order = [card for card, _ in trial["cards"]]
    return {
        "trial": trial["trial"],
        "revision": revision,
        "rankings": {dimension: list(order) for dimension in DIMENSIONS},
        "seconds": 12.5,
    }
