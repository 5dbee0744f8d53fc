"""The tables of an analysis as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from empathy_jax.evaluation.ranking.report import plain, table

_SYSTEMS = {
    "wins": "consistent wins %",
    "losses": "losses %",
    "win_at_1": "Win@1 %",
    "mean_rank": "mean rank",
    "log_strength": "log-strength",
    "log_strength_controlled": "at equal style",
}
_PERCENT = {"wins", "losses", "win_at_1", "consistency", "first_shown", "votes", "people_votes"}


def tables(found: Mapping[str, Any]) -> str:
    """What was asked; for each judge and dimension the systems and the win matrix; agreement."""
    lines = [
        "# Answers compared by language models",
        "",
        f"{found['questions']} questions, {len(found['systems'])} systems, {found['mode']}, each "
        f"comparison in both orders. Intervals: {found['intervals']}. Left out: "
        f"{_counts(found['left_out'])}.",
    ]
    if found["stopped"]:
        lines += ["", f"Not finished: {plain(found['stopped'])}"]
    for name, judge in found["judges"].items():
        requests = judge["requests"]
        lines += [
            "",
            f"## Judge {plain(name)} ({plain(judge['model'])})",
            "",
            f"{requests['verdicts']} verdicts of {requests['all']} requests, {requests['repaired']} "
            f"of them after a repair; without a verdict: {_counts(requests['faults'])}.",
        ]
        for dimension, entry in judge["dimensions"].items():
            lines += _dimension(dimension, entry, found)
    if found["agreement"]:
        lines += ["", "## Agreement of the judges", "", *_agreement(found["agreement"])]
    if found["people"]:
        lines += _people(found["people"])
    return "\n".join(lines) + "\n"


def _dimension(name: str, entry: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    order = sorted(
        entry["systems"], key=lambda system: -(entry["systems"][system]["wins"]["value"] or 0)
    )
    chance = found["chance"]
    rows = [[plain(s), *(cell(m, entry["systems"][s][m]) for m in _SYSTEMS)] for s in order]
    by_chance = [_number(m, chance[m]) if m in chance else "" for m in _SYSTEMS]
    lines = [
        "",
        f"### {name.capitalize()}",
        "",
        f"Comparisons: {_counts(entry['outcomes'])}. Both orders agree on "
        f"{cell('consistency', entry['consistency'])} %; the answer shown first is preferred in "
        f"{cell('first_shown', entry['first_shown'])} % of the preferences.",
        "",
        *table(["system", *_SYSTEMS.values()], [*rows, ["chance", *by_chance]]),
        "",
        "Consistent wins of the row over the column, in %:",
        "",
        *_matrix(entry["wins"], found["systems"]),
    ]
    if entry["style"]:
        body = [
            [feature, cell("coefficient", value), _number("share", found["style"][feature])]
            for feature, value in entry["style"].items()
        ]
        lines += ["", *table(["style", "log-odds per sd", "share within systems"], body)]
    return lines


def _matrix(wins: Sequence[Sequence[float | None]], systems: Sequence[str]) -> list[str]:
    names = [plain(name) for name in systems]
    return table(
        ["", *names],
        [
            [name, *("" if i == j else _number("wins", won) for j, won in enumerate(row))]
            for i, (name, row) in enumerate(zip(names, wins, strict=True))
        ],
    )


def _agreement(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    measures = {"kappa": "κ", "kappa_decided": "κ, both decided", "tau": "τ of rankings"}
    return table(
        ["dimension", "pairs", "both decided", *measures.values()],
        [
            [
                dimension,
                str(entry["pairs"]),
                str(entry["decided"]),
                *(cell(measure, entry[measure]) for measure in measures),
            ]
            for dimension, entry in entries.items()
        ],
    )


def _people(people: Mapping[str, Any]) -> list[str]:
    lines = [
        "",
        "## Agreement with people",
        "",
        f"{people['votes']} votes on {people['questions']} questions, of "
        f"{', '.join(map(plain, people['systems']))}. Left out: {_counts(people['left_out'])}.",
    ]
    measures = {
        "votes": "on the judge's side %",
        "people_votes": "on other people's side %",
        "tau": "τ, judge",
        "people_tau": "τ, one person",
    }
    for name, entries in people["judges"].items():
        body = [
            [dimension]
            + [cell(measure, entry[measure]) for measure in measures]
            + [_number("systems_tau", entry["systems_tau"])]
            for dimension, entry in entries.items()
        ]
        head = ["dimension", *measures.values(), "τ of the systems"]
        lines += ["", f"### {plain(name)} and single votes", "", *table(head, body)]
        lines += ["", f"### {plain(name)} and the majority", "", *_agreement(entries)]
    return lines


def cell(name: str, entry: Mapping[str, float | None]) -> str:
    """A value with its interval in brackets."""
    text = _number(name, entry["value"])
    if entry["low"] is None:
        return text
    return f"{text} [{_number(name, entry['low'])}, {_number(name, entry['high'])}]"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if name in _PERCENT else f"{value:.2f}"


def _counts(counts: Mapping[str, int]) -> str:
    parts = [f"{plain(name)} {number}" for name, number in counts.items() if number]
    return ", ".join(parts) or "none"
