"""The tables of an analysis as Markdown, and its plots as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from empathy_jax import files

_COLUMNS = {
    "win_at_1": "Win@1 %",
    "win_at_2": "Win@2 %",
    "win_at_3": "Win@3 %",
    "mean_rank": "mean rank",
    "log_strength": "log-strength",
}
_COLOUR = "#3b6ea5"
_CHANCE = "#b5533c"


def tables(found: Mapping[str, Any]) -> str:
    """One table for each dimension, then agreement, then raters."""
    lines = [
        "# Ranking by people",
        "",
        f"{found['votes']} of {found['votes_expected']} votes, by {found['raters']} raters on "
        f"{found['items']} items. Intervals: {found['intervals']}.",
        "",
        f"Left out: {', '.join(found['excluded']) or 'nobody'}. Rule: {found['exclusion']}.",
    ]
    chance = found["chance"]
    for dimension, rows in found["dimensions"].items():
        body = [
            [plain(system), *(_cell(name, row[name]) for name in _COLUMNS)]
            for system, row in sorted(
                rows.items(), key=lambda entry: entry[1]["mean_rank"]["value"]
            )
        ]
        by_chance = [_cell(name, {"value": chance[name], "low": None}) for name in chance]
        body.append(["chance", *by_chance, _number("log_strength", 0.0)])
        lines += ["", f"## {dimension.capitalize()}", ""]
        lines += table(["system", *_COLUMNS.values()], body)
    lines += ["", "## Agreement of raters", ""]
    lines += table(
        ["dimension", "Kendall's W", "Krippendorff's α", "W, everyone", "α, everyone"],
        [
            [dimension]
            + [
                _cell(measure, both[who][measure])
                for who in ("kept", "everyone")
                for measure in ("kendalls_w", "krippendorff_alpha")
            ]
            for dimension, both in found["agreement"].items()
        ],
    )
    lines += ["", "## Raters", ""]
    lines += table(
        ["rater", "votes", "median s", "checks passed", "tau of repeats", "same first", ""],
        [
            [
                rater,
                f"{row['votes']} of {row['trials']}",
                _number("seconds", row["median_seconds"]),
                f"{row['checks_passed']} of {row['checks']}",
                _number("tau", row["tau"]),
                _number("same_first", row["same_first"]),
                "left out" if row["excluded"] else "",
            ]
            for rater, row in found["rater_details"].items()
        ],
    )
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the cells are put in as they are."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join('---' for _ in head)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _cell(name: str, entry: Mapping[str, float | None]) -> str:
    """A value with its interval in brackets."""
    text = _number(name, entry["value"])
    if entry["low"] is None:
        return text
    return f"{text} [{_number(name, entry['low'])}, {_number(name, entry['high'])}]"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.startswith("win_at"):
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if name == "seconds" else f"{value:.2f}"


def plain(name: str) -> str:
    """A system's name that no Markdown reader takes for more than a name."""
    return "".join(
        char if char.isalnum() or char in " .-:@/" else f"&#{ord(char)};" for char in name
    )


def draw(found: Mapping[str, Any], folder: Path) -> list[str]:
    """`win_at_1.png`, `mean_rank.png` and `log_strength.png`, a panel for each dimension.

    Returns:
      Names of the files.
    """
    import matplotlib

    drawn = []
    with matplotlib.rc_context({"text.parse_math": False}):
        for measure in ("win_at_1", "mean_rank", "log_strength"):
            figure = _panels(found, measure)
            with files.whole(folder / f"{measure}.png") as file:
                figure.savefig(file, format="png", dpi=120)
            drawn.append(f"{measure}.png")
    return drawn


def _panels(found: Mapping[str, Any], measure: str) -> Any:
    from matplotlib.figure import Figure

    dimensions, systems = found["dimensions"], list(found["systems"])
    # A plain font has no Chinese: such a name is drawn escaped.
    names = [ascii(system[:40])[1:-1] for system in systems]
    scale = 100 if measure.startswith("win_at") else 1
    figure = Figure(
        figsize=(2.6 * len(dimensions), 1.2 + 0.35 * len(systems)), layout="constrained"
    )
    panels = figure.subplots(1, len(dimensions), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (dimension, rows) in zip(panels, dimensions.items(), strict=True):
        for place, system in enumerate(systems):
            entry = rows[system][measure]
            if entry["value"] is None:
                continue
            low, high = entry["low"], entry["high"]
            if low is not None:
                axes.plot([scale * low, scale * high], [place, place], color=_COLOUR, linewidth=2)
            axes.plot(scale * entry["value"], place, "o", color=_COLOUR)
        chance = scale * found["chance"].get(measure, 0.0)
        axes.axvline(chance, color=_CHANCE, linestyle=":", linewidth=1)
        axes.set(title=dimension, xlabel=_COLUMNS[measure])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure
