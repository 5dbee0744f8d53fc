"""The page that compares systems: one self-contained HTML file, as `report.py` makes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from empathy_jax import files
from empathy_jax.evaluation import plots, report
from empathy_jax.evaluation.metrics.catalogue import GROUPS, MEASURES, number

_PLAYERS = {"floor": "people, another question", "ceiling": "people, this question"}
# Headline measures that get a plot of their own.
_PLOTTED = (
    "validity", "rouge_l_char_max", "bleu_4_char_max", "chrf_char_max", "bertscore_f1_max",
    "similarity", "characters", "distinct_2_char_corpus", "echo_overlap", "advice_share",
)  # fmt: skip
# Curves that are drawn for all systems in one plot: phase, metric, title.
_CURVES = (
    ("sft", "validation_loss", "SFT: validation loss"),
    ("rl", "reward", "RL: reward"),
    ("rl", "valid", "RL: chain validity"),
    ("rl", "completion_tokens", "RL: length (tokens)"),
    ("rl", "kl", "RL: KL from the reference"),
)


def render(
    found: Mapping[str, Any], systems: Sequence[Any], questions: Mapping[str, dict], seed: int
) -> str:
    """The page as HTML text.

    Args:
      found: what comparison.json holds.
      systems: of `compare.read_system`.
      questions: id to record with answers.
      seed: of the cases.
    """
    names = found["systems"]
    return report.page(
        "comparison.html",
        found=found,
        names=names,
        headline=_rows(found, [name for name in MEASURES if MEASURES[name].headline]),
        groups={
            title: rows
            for group, title in GROUPS.items()
            if (rows := _rows(found, [name for name in MEASURES if MEASURES[name].group == group]))
        },
        score_plots=_score_plots(found),
        curve_plots=_curve_plots(systems),
        differences=_differences(found),
        run_names=[name for name in names if found["runs"][name] > 1],
        run_rows=_run_rows(found),
        run_differences=_run_differences(found),
        win_tables=report.win_tables(found["wins"], _PLAYERS),
        safety={name: report.safety_rows(found["safety"][name]) for name in names},
        cases=_cases(systems, questions, seed),
        settings={
            f"{system.name}: {part}": rows
            for system in systems
            for part, rows in _settings(system).items()
        },
    )


def _rows(found: Mapping[str, Any], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each measure: a cell for each system, floor and ceiling."""
    rows = []
    for name in wanted:
        entries = [found["measures"][system].get(name) for system in found["systems"]]
        known = [entry for entry in entries if entry is not None]
        if not known:
            continue
        rows.append(
            {
                "label": MEASURES[name].label,
                "meaning": MEASURES[name].meaning,
                "cells": [_cell(name, entry) for entry in entries],
                "floor": number(name, known[0]["floor"]),
                "ceiling": number(name, known[0]["ceiling"]),
            }
        )
    return rows


def _cell(name: str, entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None:
        return {"value": "–", "interval": "", "beside": ""}
    beside = entry["beside_ceiling"] if MEASURES[name].per_reference else None
    return {
        "value": number(name, entry["value"]),
        "interval": report.interval(name, entry["low"], entry["high"]),
        "beside": "" if beside is None else number(name, beside),
    }


def _differences(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each headline measure and pair of systems."""
    return [
        {
            "label": MEASURES[name].label,
            "pair": f"{pair['first']} less {pair['second']}",
            "value": number(name, pair["difference"]),
            "interval": report.interval(name, pair["low"], pair["high"]),
            "p": "–" if pair["p"] is None else f"{pair['p']:.2g}",
            "p_holm": "–" if pair["p_holm"] is None else f"{pair['p_holm']:.2g}",
            "is_sure": pair["p_holm"] is not None and pair["p_holm"] < 0.05,
            "questions": pair["questions"] or "–",
        }
        for name, pairs in found["differences"].items()
        if MEASURES[name].headline
        for pair in pairs
    ]


def _run_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each headline measure: a cell for each system that has several runs."""
    several = [name for name in found["systems"] if found["runs"][name] > 1]
    return [
        {
            "label": MEASURES[name].label,
            "cells": [_run_cell(name, entry["systems"].get(system)) for system in several],
        }
        for name, entry in found["by_run"].items()
        if MEASURES[name].headline
    ]


def _run_differences(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each headline measure and pair of systems with as many runs."""
    return [
        {
            "label": MEASURES[name].label,
            "pair": f"{pair['first']} less {pair['second']}",
            "cell": _run_cell(name, pair),
            "is_sure": pair["low"] is not None and (pair["low"] > 0 or pair["high"] < 0),
        }
        for name, entry in found["by_run"].items()
        if MEASURES[name].headline
        for pair in entry["differences"]
    ]


def _run_cell(name: str, entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None or entry["mean"] is None:
        return {"value": "–", "interval": "", "values": ""}
    return {
        "value": number(name, entry["mean"]),
        "interval": report.interval(name, entry["low"], entry["high"]),
        "values": ", ".join(number(name, value) for value in entry["values"]),
    }


def _score_plots(found: Mapping[str, Any]) -> list[Markup]:
    drawn = []
    for name in _PLOTTED:
        measure = MEASURES[name]
        scale = 100.0 if measure.percent else 1.0
        rows = [
            {"label": system}
            | {
                key: None if entry[key] is None else scale * entry[key]
                for key in ("value", "low", "high", "floor", "ceiling")
            }
            for system in found["systems"]
            if (entry := found["measures"][system].get(name)) is not None
        ]
        drawn.append(plots.ranges(measure.label, rows, "percent" if measure.percent else ""))
    return [plot for plot in drawn if plot is not None]


def _curve_plots(systems: Sequence[Any]) -> list[Markup]:
    drawn = []
    for phase, metric, title in _CURVES:
        rows, labels = [], {}
        for place, system in enumerate(systems):
            path = system.folder and system.folder.parent / phase / "metrics.jsonl"
            if path and path.exists():
                key = str(place)
                labels[key] = plots.plain(system.name)
                rows += [
                    {"step": row["step"], key: row.get(metric)} for row in files.read_jsonl(path)
                ]
        drawn.append(plots.curves(title, rows, labels))
    return [plot for plot in drawn if plot is not None]


def _cases(
    systems: Sequence[Any], questions: Mapping[str, dict], seed: int
) -> list[dict[str, Any]]:
    """Questions drawn at random with each system's first completion and the references."""
    first = []
    for system in systems:
        own: dict[str, dict] = {}
        for row in system.rows:
            own.setdefault(row["id"], row)
        first.append(own)
    shared = [id_ for id_ in questions if all(id_ in own for own in first)]
    return [
        {
            "id": shared[index],
            "question": questions[shared[index]]["question"],
            "answers": [
                (system.name, own[shared[index]]["answer"], own[shared[index]]["rule"])
                for system, own in zip(systems, first, strict=True)
            ],
            "references": [answer["text"] for answer in questions[shared[index]]["answers"]],
        }
        for index in report.choose_cases(shared, seed)
    ]


def _settings(system: Any) -> dict[str, list[tuple[str, str]]]:
    if system.folder is None:
        return {}
    paths = {name: system.folder / f"{name}.json" for name in ("config", "environment")}
    return {
        name: report.flatten(json.loads(path.read_text(encoding="utf-8")))
        for name, path in paths.items()
        if path.exists()
    }
