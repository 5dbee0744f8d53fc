"""The plots of a corpus as PNG. All labels are in English: no font with Chinese is needed."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from empathy_jax import files

BAR = "#3b6ea5"
REJECTED = "#b5533c"
_DPI = 120
_MOST_BARS = 30
_ANSWERS_SHOWN = 12


def draw(stats: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws every figure that the statistics have something for.

    Args:
      stats: of `statistics.describe`.
      folder: gets the files.

    Returns:
      Names of the files.
    """
    import matplotlib

    folder.mkdir(exist_ok=True)
    # A name from the data with two dollar signs is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        drawn = _figures(stats)
        for name, figure in drawn.items():
            with files.whole(folder / name) as file:
                figure.savefig(file, format="png", dpi=_DPI)
    return list(drawn)


def _figures(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by file name."""
    drawn = {}
    for part in ("question", "answer"):
        if stats["lengths"][part]["count"]:
            drawn[f"{part}_lengths.png"] = _lengths(part, stats["lengths"])
    drawn["answers_per_question.png"] = _answers(stats["answers_per_question"])
    topics = _topics(stats["topics"]["main"])
    drawn["topics.png"] = _bars("Questions by main topic", "questions", topics, BAR)
    if rules := _by_rule(stats["rejected"]):
        title = (
            f"Rejected pairs by rule ({stats['pairs']['rejected']:,} of {stats['pairs']['read']:,})"
        )
        drawn["rejected.png"] = _bars(title, "pairs", rules, REJECTED)
    return drawn


def _lengths(part: str, lengths: Mapping[str, Any]) -> Any:
    counts, edges = lengths[part]["histogram"], lengths["edges"]
    labels = [f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]
    labels.append(f"{edges[-1]}+")
    first = next(i for i, count in enumerate(counts) if count)
    last = max(i for i, count in enumerate(counts) if count)
    shown = slice(max(0, first - 1), last + 2)
    figure, axes = _axes(8, 4.5)
    axes.bar(labels[shown], counts[shown], color=BAR, width=0.9)
    axes.set_xticks(range(len(labels[shown])), labels[shown], rotation=45, ha="right")
    axes.set(xlabel="characters", ylabel=f"{part}s")
    axes.set_title(
        f"Length of {part}s: {lengths[part]['count']:,}, median {lengths[part]['p50']:,} characters"
    )
    return figure


def _answers(counts: Mapping[str, int]) -> Any:
    shown = {str(n): counts.get(str(n), 0) for n in range(_ANSWERS_SHOWN)}
    rest = sum(count for n, count in counts.items() if int(n) >= _ANSWERS_SHOWN)
    bars = shown | {f"{_ANSWERS_SHOWN}+": rest}
    if not shown["0"]:
        del bars["0"]
    figure, axes = _axes(8, 4.5)
    drawn = axes.bar(list(bars), list(bars.values()), color=BAR, width=0.9)
    axes.bar_label(drawn, labels=[f"{count:,}" if count else "" for count in bars.values()])
    axes.set(xlabel="answers", ylabel="questions", title="Answers per question")
    return figure


def _bars(title: str, unit: str, counts: Mapping[str, int], colour: str) -> Any:
    """Horizontal bars, the largest on top; all beyond the most frequent ones make one bar."""
    items = sorted(counts.items(), key=lambda item: -item[1])
    if len(items) > _MOST_BARS:
        rest = items[_MOST_BARS - 1 :]
        items = [*items[: _MOST_BARS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    figure, axes = _axes(8, 1.2 + 0.24 * len(items))
    drawn = axes.barh([name for name, _ in items], [count for _, count in items], color=colour)
    axes.bar_label(drawn, labels=[f"{count:,}" for _, count in items], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.set(xlabel=unit, title=title)
    return figure


def _topics(main: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Questions by English name; a topic whose name no plain font has is shown by its rank."""
    shown: dict[str, int] = {}
    for rank, entry in enumerate(main.values(), 1):
        name = entry["english"] if entry["english"].isascii() else f"topic {rank} (see card.md)"
        shown[name] = shown.get(name, 0) + entry["questions"]
    return shown


def _by_rule(rejected: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Counts by "stage: rule"; a reason from the data that is not ASCII is shown escaped."""
    return {
        ascii(f"{stage}: {rule}"[:60])[1:-1]: count
        for stage, rules in rejected.items()
        for rule, count in rules.items()
    }


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
