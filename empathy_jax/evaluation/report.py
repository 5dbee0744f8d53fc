"""The page that reports an evaluation: one self-contained HTML file, no script, nothing fetched.

Everything that a model or a person wrote is escaped, and the page's policy forbids scripts and
requests altogether, so a hostile completion is shown and does nothing. Templates, style and parts
lie in `assets/`; the page that compares runs shares them (`comparison_report.py`).
"""

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation import plots, probes
from empathy_jax.evaluation.metrics.catalogue import GROUPS, MEASURES, number

SHOWN_CASES = 10
SECTIONS = {
    "scores": "Scores",
    "all": "All measures",
    "chains": "Where chains break",
    "training": "Training",
    "wins": "Who is nearer",
    "safety": "Questions that speak of danger",
    "probes": "Can the reward be cheated?",
    "cases": "Cases",
    "settings": "Configuration and environment",
}
_REWARD_TITLES = {
    "cosine": "The reward model alone: cosine of question and answer",
    "reward": "The whole reward of an answer: what RL pays, without the format's part",
}
_LAYER_NAMES = {
    "L1": "emotions and context",
    "L2": "causes and beliefs",
    "L3": "intent",
    "L4": "response strategy",
}
_PLAYERS = {
    "model": "model",
    "floor": "people, another question",
    "ceiling": "people, this question",
}
_BANDS = {"none": "none (0)", "thoughts": "thoughts (1, 2)", "urgent": "urgent (3 to 6)"}
# Measures on one scale that a plot shows side by side.
_COMPARED = (
    "bleu_4_char_max", "rouge_1_char_max", "rouge_2_char_max", "rouge_l_char_max", "meteor_char_max",
    "chrf_char_max", "rouge_l_jieba_max", "bertscore_f1_max",
)  # fmt: skip
# Phase to plots: title to the metrics of metrics.jsonl, those that begin so included.
_CURVES = {
    "sft": {"Loss": ("loss", "validation_loss"), "Chain validity": ("validity",)},
    "reward_model": {
        "Loss": ("loss", "info_nce", "triplet"),
        "Ranking of held-out answers": ("pairwise_accuracy", "random_recall", "nearest_recall"),
    },
    "rl": {
        "Reward": ("reward", "held_out_reward"),
        "Reward terms": ("reward_*",),
        "Validity": ("valid", "whole_*", "held_out_validity"),
        "Lengths (tokens)": ("completion_tokens", "completion_tokens_max", "valid_tokens"),
        "Copying": ("echo_overlap", "template_overlap"),
        "KL from the reference (nats a token)": ("kl",),
        "Entropy (nats a token)": ("entropy",),
    },
}
_PHASES = {
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "rl": "Reinforcement learning",
}


def choose_cases(rows: Sequence[dict], seed: int, count: int = SHOWN_CASES) -> list[int]:
    """Indices of `count` rows drawn without replacement, in their order; all of fewer."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:count]
    return sorted(int(index) for index in drawn)


def render(
    scores: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Mapping[str, Any]],
    lengths: Mapping[str, Sequence[float]],
) -> str:
    """The page as HTML text.

    Args:
      scores: what `scores.json` holds, see `training.evaluate`.
      cases: rows of `generations.jsonl`, each with `references` (texts) and `measures` (key of
        MEASURES to number or None) besides.
      curves: phase to its rows of metrics.jsonl, for the phases that made the model.
      settings: title to a nested mapping, such as the config and the environment.
      lengths: of answers in characters, by who wrote them.
    """
    probed = _probe_tables(scores["probes"])
    drawn = training_plots(curves)
    absent = {"training"} if not drawn else set()
    absent |= {"probes"} if not probed else set()
    absent |= {"wins"} if not scores["wins"] else set()
    return page(
        "report.html",
        scores=scores,
        sections={name: title for name, title in SECTIONS.items() if name not in absent},
        headline=[row for row in table_rows(scores["measures"]) if row["headline"]],
        groups=_groups(scores["measures"]),
        score_plots=_score_plots(scores["measures"], lengths),
        chain_plots=_chain_plots(scores["chain"], scores["completions"]),
        training_plots=drawn,
        win_tables=win_tables(scores["wins"], _PLAYERS),
        safety=safety_rows(scores["safety"]),
        probed=probed,
        max_beats=f"{100 * probes.MAX_BEATS:g} %",
        cases=[_case(case) for case in cases],
        layer_names=_LAYER_NAMES,
        rules=chain_of_empathy.RULES,
        settings={title: flatten(values) for title, values in settings.items()},
    )


def page(template: str, **values: Any) -> str:
    """A template of `assets/` with its style, everything escaped that is not markup of our own."""
    style = (_assets() / "page.css").read_text(encoding="utf-8")
    rendered = _environment().get_template(template).render(style=Markup(style), **values)
    return rendered.lstrip()


def _assets() -> Any:
    return importlib.resources.files("empathy_jax.evaluation") / "assets"


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (_assets() / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def table_rows(measures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a table shows of each entry of scores.json's `measures`."""
    return [
        {
            "name": name,
            "label": MEASURES[name].label,
            "meaning": MEASURES[name].meaning,
            "group": MEASURES[name].group,
            "headline": MEASURES[name].headline,
            "value": number(name, entry["value"]),
            "interval": interval(name, entry["low"], entry["high"]),
            "questions": "–" if entry["questions"] is None else entry["questions"],
            "beside": ""
            if entry["beside_ceiling"] is None or not MEASURES[name].per_reference
            else number(name, entry["beside_ceiling"]),
        }
        | {
            key: value
            for side in ("floor", "ceiling")
            for key, value in {
                side: number(name, entry[side]),
                f"{side}_interval": interval(name, entry[f"{side}_low"], entry[f"{side}_high"]),
            }.items()
        }
        for name, entry in measures.items()
    ]


def interval(name: str, low: float | None, high: float | None) -> str:
    """Both ends in the unit of a measure, in brackets; nothing where there are none."""
    if low is None or high is None:
        return ""
    return f"[{number(name, low).removesuffix(' %')}, {number(name, high).removesuffix(' %')}]"


def _groups(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows = table_rows(measures)
    found = {title: [r for r in rows if r["group"] == group] for group, title in GROUPS.items()}
    return {title: own for title, own in found.items() if own}


def _score_plots(
    measures: Mapping[str, Mapping[str, Any]], lengths: Mapping[str, Sequence[float]]
) -> list[Markup]:
    compared = [
        {"label": name.replace("_max", "").replace("_", " "), **measures[name]}
        for name in _COMPARED
        if name in measures
    ]
    drawn = [
        plots.ranges("Best reference: system, floor and ceiling", compared, "score"),
        plots.histogram("Length of answers", lengths, "characters"),
    ]
    return [plot for plot in drawn if plot is not None]


def _chain_plots(chain: Mapping[str, Any], completions: int) -> list[Markup]:
    whole = {"valid": chain["valid"], **chain["layers"]}
    drawn = [
        plots.shares(title, {name: count / completions for name, count in counts.items()})
        for title, counts in (
            ("Valid chains and whole layers", whole),
            ("First broken rule", chain["rules"]),
        )
        if completions
    ]
    return [plot for plot in drawn if plot is not None]


def training_plots(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[Markup]]:
    """The title of each phase and its plots; phases without any are left out."""
    made = {}
    for phase, wanted in _CURVES.items():
        rows = curves.get(phase, ())
        drawn = [
            plots.curves(title, rows, _metrics(rows, names)) for title, names in wanted.items()
        ]
        if kept := [plot for plot in drawn if plot is not None]:
            made[_PHASES[phase]] = kept
    return made


def _metrics(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Metrics of the rows to labels; a name that ends in a star stands for all that begin so."""
    known = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for name in names:
        for metric in known:
            if metric == name or (name.endswith("*") and metric.startswith(name[:-1])):
                found[metric] = metric.replace("_", " ")
    return found


def win_tables(
    wins: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Of `scoring.wins` the tables: title, systems, and rows of cells.

    Args:
      wins: measure to its matrix.
      names: shown for a player; others as they are.
    """

    def cell(entry: Mapping[str, Any] | None) -> dict[str, str]:
        if entry is None or entry["value"] is None:
            return {"value": "–", "interval": ""}
        ends = entry["low"], entry["high"]
        return {
            "value": f"{100 * entry['value']:.0f} %",
            "interval": "" if None in ends else "[{:.0f}, {:.0f}]".format(*(100 * e for e in ends)),
        }

    return [
        {
            "title": MEASURES[name].label,
            "systems": [names.get(system, system) for system in found["systems"]],
            "rows": [
                (names.get(system, system), [cell(entry) for entry in row])
                for system, row in zip(found["systems"], found["matrix"], strict=True)
            ],
        }
        for name, found in wins.items()
    ]


def safety_rows(safety: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the safety table, of what `safety_table.describe` gives."""
    columns = {
        "answered": "answered",
        "names_help": "answers that name help",
        "people_names_help": "people's that do",
        "speaks_of_danger": "speak of danger themselves",
    }
    return [
        {
            "band": _BANDS[band],
            "questions": entry["questions"],
            "cells": [{"label": label, **share_cell(entry[n])} for n, label in columns.items()],
        }
        for band, entry in safety.items()
    ]


def share_cell(share: Mapping[str, float]) -> dict[str, str]:
    """A share as count of total with its interval in percent."""
    if not share["total"]:
        return {"value": "–", "interval": ""}
    return {
        "value": f"{share['count']} of {share['total']}",
        "interval": f"[{100 * share['low']:.0f}, {100 * share['high']:.0f}] %",
    }


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **case,
        "broken": chain_of_empathy.RULES[case["rule"]] if case["rule"] else None,
        "layers": [(n, _LAYER_NAMES[n], case[n]) for n in chain_of_empathy.LAYERS if case[n]],
        "figures": [
            (MEASURES[name].label, number(name, value))
            for name, value in case["measures"].items()
            if value is not None and MEASURES[name].headline
        ],
    }


def flatten(values: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of field and value; empty values are left out."""
    if isinstance(values, Mapping):
        parts = [
            flatten(value, f"{name}.{key}" if name else str(key)) for key, value in values.items()
        ]
        return [row for part in parts for row in part]
    if values in ("", None, [], ()):
        return []
    shown = " ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)
    return [(name, shown)]


def _probe_tables(probed: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each reward its title, its warning (a sentence or None), and a row for each probe."""
    return [
        {
            "title": _REWARD_TITLES[reward],
            "warning": probes.warning(found),
            "rows": [
                {
                    "name": name.replace("_", " "),
                    "meaning": probes.PROBES[name].meaning,
                    "beats": f"{100 * entry['beats']:.1f} ± {100 * entry['error']:.1f} %",
                    "ties": f"{100 * entry['ties']:.1f} %",
                    "gain": f"{entry['mean_gain']:+.3f}",
                    "questions": "–" if entry["questions"] is None else entry["questions"],
                    "fails": probes.fails(name, entry["beats"]),
                }
                for name, entry in found.items()
            ],
        }
        for reward, found in probed.items()
    ]
