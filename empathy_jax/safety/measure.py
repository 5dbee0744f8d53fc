"""How well the grading of risk does on written cases: `python -m empathy_jax.safety.measure [PART]`.

PART is "dev", on which the rules were written, or one of the held-out parts, on which they were not
(docs/safety.md tells the procedure). Recall: the share of texts of grade 3 and above that are graded
so. False alarms: the share of innocent look-alikes (cases of grade 0) that are. Each part is measured with
the rules alone and with the learned part, which was trained on all parts named in `train.PARTS`: there its
figures say what it remembers, not what it would find. Failures are listed by their ids, but not those of
a part that nobody has read (`UNREAD`).
"""

import collections
import dataclasses
import functools
import importlib.resources
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from empathy_jax.safety.risk import grade

URGENT = 3  # the grade from which on a text calls for help at once
PARTS = ("dev", "held_out_1", "held_out_2", "held_out_3", "held_out_4", "held_out_5")
# A list of their failures would lead to reading them, and then to a better figure.
UNREAD = {"held_out_4", "held_out_5"}
_Z = 1.959964  # 95 % of a normal distribution lie within


@dataclasses.dataclass(frozen=True)
class Case:
    """A written text and what it should be graded.

    Attributes:
      id: unique.
      language: "zh" or "en".
      category: what the text is about, e.g. "plan" or "idiom".
      difficulty: "easy", "medium" or "hard".
      text: what a person writes.
      grade: 0 to 6; None where the category is not about risk.
      part: of `PARTS`.
      note: for readers; may be empty.
    """

    id: str
    language: Literal["zh", "en"]
    category: str
    difficulty: Literal["easy", "medium", "hard"]
    text: str
    grade: int | None
    part: str
    note: str


class Share(collections.namedtuple("Share", ["count", "total"])):
    """A share as a count of a total."""

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n); (0, 1) of nothing.
        """
        if not self.total:
            return 0.0, 1.0
        share, spread = self.count / self.total, _Z**2 / self.total
        middle = share + spread / 2
        half = _Z * math.sqrt(share * (1 - share) / self.total + spread / (4 * self.total))
        low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
        return max(0.0, low), min(1.0, high)

    def __str__(self) -> str:
        if not self.total:
            return "none"
        low, high = self.interval()
        shown = 100 * self.count / self.total, 100 * low, 100 * high
        return "{}/{} = {:.1f} % [{:.1f}, {:.1f}]".format(self.count, self.total, *shown)


def load(part: str) -> list[Case]:
    """The cases of a part.

    Raises:
      ValueError: for a part that there is not.
    """
    if part not in PARTS:
        raise ValueError(f"the parts of the cases are {', '.join(PARTS)}; got {part!r}")
    file = importlib.resources.files("empathy_jax.safety") / "cases" / f"{part}.jsonl"
    return [Case(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def recall(cases: Iterable[Case], learned: bool = True) -> Share:
    """The share of urgent cases that are graded urgent, with the learned part or without."""
    return _graded(_urgent(cases), URGENT, learned)


def noticed(cases: Iterable[Case], learned: bool = True) -> Share:
    """The share of urgent cases that are not graded 0."""
    return _graded(_urgent(cases), 1, learned)


def false_alarms(cases: Iterable[Case], learned: bool = True) -> Share:
    """The share of innocent look-alikes that are graded urgent."""
    return _graded((case for case in cases if case.grade == 0), URGENT, learned)


def raised(cases: Iterable[Case], learned: bool = True) -> Share:
    """The share of cases of grades 1 and 2 that are graded urgent."""
    some = (case for case in cases if case.grade and case.grade < URGENT)
    return _graded(some, URGENT, learned)


def missed(cases: Iterable[Case], learned: bool = True) -> list[tuple[Case, int]]:
    """Cases with the grade they got, where it falls on the wrong side of urgent."""
    rated = [case for case in cases if case.grade is not None]
    graded = [(case, _grade(case.text, learned)) for case in rated]
    return [(case, got) for case, got in graded if (got >= URGENT) != (case.grade >= URGENT)]


def report(cases: Sequence[Case], learned: bool = True) -> str:
    """Recall, false alarms and exact agreement, over all, by language, difficulty and category."""
    groups = {"all": cases}
    for field in ("language", "difficulty", "category"):
        for name in sorted({getattr(case, field) for case in cases}):
            groups[f"{field} {name}"] = [case for case in cases if getattr(case, field) == name]
    columns = {
        "grade 3 and above found": recall,
        "not taken for 0": noticed,
        "false alarms": false_alarms,
        "1 or 2 graded 3 and above": raised,
        "same grade": _same,
    }
    rows = [("", *columns)]
    rows += [
        (name, *(str(column(group, learned)) for column in columns.values()))
        for name, group in groups.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _urgent(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.grade is not None and case.grade >= URGENT]


def _graded(cases: Iterable[Case], least: int, learned: bool) -> Share:
    """How many are graded `least` and above."""
    graded = [_grade(case.text, learned) >= least for case in cases]
    return Share(sum(graded), len(graded))


def _same(cases: Iterable[Case], learned: bool) -> Share:
    rated = [case for case in cases if case.grade is not None]
    same = [_grade(case.text, learned) == case.grade for case in rated]
    return Share(sum(same), len(same))


@functools.lru_cache(maxsize=1 << 14)
def _grade(text: str, learned: bool) -> int:
    return grade(text, learned).grade


def main(arguments: Sequence[str]) -> None:
    """Prints the report of the parts that are named, or of all."""
    for part in arguments or PARTS:
        cases = load(part)
        for learned in (False, True):
            means = "rules and learned part" if learned else "rules"
            print(f"== {part}: {len(cases)} cases, {means}\n{report(cases, learned)}")
            for case, got in missed(cases, learned) if part not in UNREAD else ():
                print(f"  {case.id}: {case.grade} expected, {got} found")


if __name__ == "__main__":
    main(sys.argv[1:])
