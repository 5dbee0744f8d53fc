"""What the points of a sweep came to: `results.csv` and a table, best first."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from empathy_jax import files
from launch.points import Point

FILE = "results.csv"


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is compared: the last `name` in `<phase>/metrics.jsonl`, or a figure of its summary."""

    phase: str
    name: str
    maximise: bool

    @classmethod
    def parse(cls, text: str, maximise: bool, phases: Sequence[str]) -> "Metric":
        """`rl/held_out_reward`; the phase is one that the points run."""
        phase, _, name = text.partition("/")
        if phase not in phases or not name:
            raise ValueError(
                f"--metric is {text!r}; it must be PHASE/NAME, such as sft/validation_loss, with "
                f"PHASE one of {', '.join(phases)}"
            )
        return cls(phase, name, maximise)

    def __str__(self) -> str:
        return f"{self.phase}/{self.name}"

    def read(self, run: Path) -> tuple[float | None, str]:
        """The value of a finished run and "", or None and the reason why there is none."""
        found: dict[str, float | None] = {}
        summary = json.loads((run / self.phase / "summary.json").read_text(encoding="utf-8"))
        found.update((figure["name"], figure["after"]) for figure in summary["figures"])
        path = run / self.phase / "metrics.jsonl"
        for row in files.read_jsonl(path) if path.exists() else ():
            found.update(row)
        if self.name not in found:
            return None, f"no {self.name!r} in {self.phase}; there are {', '.join(sorted(found))}"
        value = found[self.name]
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None, f"{self} is not a finite number"
        return float(value), ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A point, its metric (None: there is none) and why it has none."""

    point: Point
    value: float | None
    reason: str
    seconds: float | None


def collect(
    points: Sequence[Point], metric: Metric, workdir: Path, reasons: Mapping[str, str]
) -> list[Row]:
    """One row a point, best first; those without a result come last, with their reason."""
    rows = []
    for point in points:
        value, reason, seconds = None, reasons.get(point.name) or "not run yet", None
        if point.is_finished(workdir):
            run = point.folder(workdir)
            value, reason = metric.read(run)
            seconds = sum(
                json.loads((run / phase / "summary.json").read_text(encoding="utf-8"))["seconds"]
                for phase in point.phases
            )
        rows.append(Row(point, value, reason, seconds))
    sign = -1 if metric.maximise else 1
    return sorted(rows, key=lambda row: math.inf if row.value is None else sign * row.value)


def write(workdir: Path, rows: Sequence[Row], metric: Metric) -> None:
    """Write `results.csv` as a whole."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_cells(rows, metric))
    files.write_text(workdir / FILE, text.getvalue())


def table(rows: Sequence[Row], metric: Metric) -> str:
    """The same as aligned columns."""
    cells = _cells(rows, metric)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _cells(rows: Sequence[Row], metric: Metric) -> list[list[str]]:
    fields = list(dict.fromkeys(field for row in rows for field in row.point.values))
    cells = [[str(metric), *fields, "seconds", "point", "reason"]]
    for row in rows:
        value = "" if row.value is None else f"{row.value:.6g}"
        values = [row.point.values.get(field, "") for field in fields]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        cells.append([value, *values, seconds, row.point.name, row.reason])
    return cells
