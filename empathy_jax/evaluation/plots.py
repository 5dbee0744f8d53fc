"""Plots as SVG that lies in a page: its colours are the page's, so it turns dark with it.

matplotlib draws in placeholder colours, which become CSS variables of `assets/page.css`. Labels are
in English; what a user has named is drawn escaped, since no plain font has everything. The figures
are narrow, so that their letters are still letters on a phone.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

# Placeholder to CSS variable; the first are ink and lines, then one for each series.
_INK, _LINE = "#010203", "#010204"
SERIES = ("#010301", "#010302", "#010303", "#010304", "#010305", "#010306")
_VARIABLES = {_INK: "var(--ink)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_WIDTH, _HEIGHT = 4.4, 2.7  # inches
_MOST_POINTS = 400
_SETTINGS = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.edgecolor": _LINE,
    "grid.color": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def curves(
    title: str, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]
) -> Markup | None:
    """Lines of metrics over steps; None where no row has any of them.

    Args:
      title: of the plot.
      rows: of metrics.jsonl, each with `step`; a metric is drawn where it is there and finite.
      metrics: name in the rows to label.
    """
    lines = {}
    for name, label in metrics.items():
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            lines[label] = points[:: max(1, len(points) // _MOST_POINTS)]
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for colour, (label, points) in zip(SERIES * 3, lines.items(), strict=False):
            marker = "o" if len(points) < 12 else None
            axes.plot(
                *zip(*points, strict=True), color=colour, label=label, marker=marker, ms=3, lw=1.4
            )
        axes.set(xlabel="step", ylabel=next(iter(lines)) if len(lines) == 1 else "")
        if len(lines) > 1:
            axes.legend(fontsize=8)

    return _svg(title, draw)


def ranges(title: str, rows: Sequence[Mapping[str, Any]], unit: str = "") -> Markup | None:
    """Values with intervals, one row each, beside a bar at the floor and a diamond at the ceiling.

    Args:
      title: of the plot.
      rows: `label`, `value`, `low`, `high`, and `floor` and `ceiling` where there are some; all may
        be None.
      unit: of the horizontal axis.
    """
    shown = [row for row in rows if row["value"] is not None]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        marks = {"floor": ("|", SERIES[1], 13), "ceiling": ("D", SERIES[2], 5)}
        for place, row in enumerate(shown):
            for name, (marker, colour, size) in marks.items():
                if row.get(name) is not None:
                    axes.plot(row[name], place, marker, color=colour, ms=size)
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=SERIES[0], lw=2)
            axes.plot(row["value"], place, "o", color=SERIES[0], ms=5)
        axes.set_yticks(range(len(shown)), [plain(row["label"]) for row in shown])
        axes.set(xlabel=unit, ylim=(len(shown) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")

    return _svg(title, draw, 0.9 + 0.3 * len(shown))


def histogram(title: str, samples: Mapping[str, Sequence[float]], unit: str) -> Markup | None:
    """Distributions as outlines of shares, one for each sample that is not empty."""
    known = {
        name: np.asarray(values, np.float64) for name, values in samples.items() if len(values)
    }
    if not known:
        return None
    edges = np.histogram_bin_edges(np.concatenate(list(known.values())), bins=24)

    def draw(axes: Any) -> None:
        for colour, (name, values) in zip(SERIES * 3, known.items(), strict=False):
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts / len(values), edges, color=colour, label=plain(name), lw=1.6)
        axes.set(xlabel=unit, ylabel="share")
        axes.legend(fontsize=8)

    return _svg(title, draw)


def shares(title: str, values: Mapping[str, float]) -> Markup | None:
    """Horizontal bars of shares of 1, in percent."""
    if not values:
        return None

    def draw(axes: Any) -> None:
        names = [plain(name) for name in values]
        drawn = axes.barh(names, [100 * value for value in values.values()], color=SERIES[0])
        axes.bar_label(drawn, fmt="%.1f", padding=3, color=_INK)
        axes.invert_yaxis()
        axes.set(xlabel="percent", xlim=(0, 115), xticks=range(0, 101, 20))
        axes.grid(visible=False, axis="y")

    return _svg(title, draw, 0.9 + 0.24 * len(values))


def plain(name: str) -> str:
    """A name as a plain font can draw it: escaped where it is not ASCII, and not long."""
    return ascii(name[:40])[1:-1]


def _svg(title: str, draw: Any, height: float = _HEIGHT) -> Markup:
    """The figure as an element of a page, with its title for those who do not see it."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    # The salt makes the ids of one plot differ from another's, and the same each time.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: (?=[^;]*?px)[^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", text)
    opening = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
    label = f'<svg role="img" aria-label="{escape(title)}" viewBox="\\1">'
    return Markup(opening.sub(label, text, count=1))
