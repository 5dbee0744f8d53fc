"""What the runs of a model say of it, as Markdown: how it was made, on which data, how it measures.

Everything is read from the folders of the runs (`lineage.py`). A folder that holds another model by now
has nothing to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from empathy_jax.evaluation import report
from empathy_jax.training import lineage
from empathy_jax.training.lineage import Stage, read_json

_STAGES = {
    "sft": "Supervised fine-tuning on chains",
    "reward_model": "Contrastive training of the reward model",
    "rl": "Reinforcement learning guided by the reward model",
    "evaluate": "Evaluation",
}
_SAMPLE = "the sample corpus of empathy_jax"
_UNITS = {"sft": "packed rows", "reward_model": "pairs", "rl": "questions"}
_RECORDS = {"sft": "chains"}
_HUB = "hub:"


def recipe(stages: Sequence[Stage], base: str) -> str:
    """Start, and for each stage steps, optimizer, loss and machine.

    Args:
      stages: oldest first; none for an import.
      base: the weights that it all began with, in words.
    """
    parts = [f"Start: {base}."]
    if not stages:
        parts.append("Imported and exported again: the weights are not trained further.")
    for number, stage in enumerate(stages, start=1):
        lines = [f"- {line}" for line in _recipe(stage)]
        parts.append("\n".join([f"### {number}. {_STAGES[stage.phase]}", "", *lines]))
    return "\n\n".join(parts)


def data(stages: Sequence[Stage], evaluated: Stage | None) -> str:
    """Counts of records by stage, then where they come from and under which licences."""
    lines, notes = [], {}
    for stage in (*stages, *([evaluated] if evaluated else [])):
        counted = stage.read("records.json")
        place = counted["place"] if counted else _configured_place(stage)
        lines.append(f"- {_STAGES[stage.phase]}: {_counts(stage, counted)}{_place_name(place)}.")
        notes |= {note: None for note in _source_notes(place)}
    if not lines:
        return "Nothing is known here of the data that the imported weights were trained on."
    return "\n\n".join(["\n".join(lines), *notes])


def measures(stages: Sequence[Stage], evaluated: Stage | None) -> str:
    """A table of the figures of each stage, and one of the evaluation beside its floor."""
    rows = [
        f"| {_STAGES[stage.phase]} | {figure['name']} | {_number(figure, 'before')} | "
        f"{_number(figure, 'after')} |"
        for stage in stages
        for figure in (stage.read("summary.json") or {"figures": ()})["figures"]
    ]
    parts = []
    if rows:
        head = ["| stage | figure | before | after |", "|---|---|---|---|"]
        parts.append("\n".join(["In training, on held-out records:", "", *head, *rows]))
    if evaluated is not None:
        parts.append(_evaluation(evaluated.read("scores.json")))
    return "\n\n".join(parts) or "Nothing was measured of this model."


def hub_datasets(stages: Sequence[Stage]) -> list[str]:
    """The data sets of the hub that the stages were trained on."""
    places = [place for stage in stages if (place := _configured_place(stage)).startswith(_HUB)]
    return sorted({place.removeprefix(_HUB).partition(":")[0] for place in places})


def _recipe(stage: Stage) -> Iterator[str]:
    if not stage.is_same:
        yield f"{stage.step} steps; its folder has been trained anew since, so no more is known"
        return
    config, section, optimizer = stage.config, stage.section, stage.config["optimizer"]
    summary = stage.read("summary.json")
    ended = "" if summary else "; not finished"
    if summary and summary.get("stopped"):
        ended = f"; ended early: {summary['stopped']}"
    yield f"{stage.step} of {config['steps']} steps of {config['batch_size']} {_UNITS[stage.phase]}{ended}"
    yield (
        f"AdamW (β {optimizer['b1']}, {optimizer['b2']}): learning rate {optimizer['learning_rate']:g} "
        f"({optimizer['schedule']}, {optimizer['warmup_steps']} steps of warm-up), weight decay "
        f"{optimizer['weight_decay']:g}, gradients clipped at norm {optimizer['clip_norm']:g}"
    )
    rank = section["lora_rank"]
    what = f"adapters of rank {rank}, α {section['lora_alpha']:g}" if rank else "all weights"
    yield (
        f"trained: {what}; kept in {section['param_dtype']}, computed in {section['compute_dtype']}; "
        f"seed {config['seed']}"
    )
    yield from _LOSSES[stage.phase](config)
    if stage.phase == "rl":
        yield _judge(stage)
    environment = stage.read("environment.json")
    if environment is not None:
        packages = ", ".join(f"{name} {environment['packages'][name]}" for name in ("jax", "flax"))
        commit = environment["commit"] or "unknown"
        yield f"{len(environment['devices'])} devices; {packages}; commit {commit}"


def _sft_loss(config: Mapping[str, Any]) -> Iterator[str]:
    section = config["sft"]
    yield "loss: cross-entropy of chain and answer, prompts left out"
    if section["tag_weight"]:
        yield f"a second loss of weight {section['tag_weight']:g}: which tag stands here"
    if section["shuffled_every"]:
        yield f"every {section['shuffled_every']}th update on chains of shuffled sentences"


def _reward_model_loss(config: Mapping[str, Any]) -> Iterator[str]:
    section = config["reward_model"]
    weights = {
        f"InfoNCE at temperature {section['temperature']:g}": section["info_nce_weight"],
        f"triplet with margin {section['margin']:g}": section["triplet_weight"],
        "Bradley-Terry on graded answers": section["head_weight"],
    }
    yield "loss: " + ", ".join(f"{weight:g} × {name}" for name, weight in weights.items() if weight)
    yield (
        f"negatives: batches by `{section['in_batch']}`, {section['corrupted']} spoilt answers a "
        "question"
    )


def _rl_loss(config: Mapping[str, Any]) -> Iterator[str]:
    section = config["rl"]
    yield (
        f"{section['group_size']} samples a question at temperature "
        f"{config['sampling']['temperature']:g}; advantage `{section['advantage']}`, ratio "
        f"`{section['ratio']}`, surrogate `{section['surrogate']}` ({section['clip_low']:g} below, "
        f"{section['clip_high']:g} above), aggregation `{section['aggregation']}`"
    )
    kl = f"`{section['kl_estimator']}` in the {section['kl_placement']}, weight {section['kl_weight']:g}"
    yield f"KL from the start: {kl if section['kl_weight'] else 'not charged'}"
    terms = ("format", "answer", "echo", "template", "quality")
    weights = ", ".join(f"{term} {section[f'{term}_weight']:g}" for term in terms)
    yield f"reward: answers `{section['answer_reward']}`; weights {weights}"
    if section["min_answer_characters"]:
        yield f"answers below {section['min_answer_characters']} characters are charged for"


def _judge(stage: Stage) -> str:
    """The reward model that a policy was trained under."""
    taken = (stage.read("inputs.json") or {}).get("reward_model", {})
    place = taken.get("place", "")
    run = stage.folder.parent / place
    stages, base = lineage.trace(str(run if run.exists() else place))
    words = f"reward model: from {lineage.base_name(base)}"
    return f"{words}, {taken['step']} steps" if stages and "step" in taken else words


_LOSSES = {"sft": _sft_loss, "reward_model": _reward_model_loss, "rl": _rl_loss}


def _configured_place(stage: Stage) -> str:
    return str(stage.config["data"]["chains" if stage.phase == "sft" else "questions"])


def _counts(stage: Stage, counted: Mapping[str, Any] | None) -> str:
    if counted is None:
        return ""
    name = _RECORDS.get(stage.phase, "questions")
    if stage.phase == "evaluate":
        return f"{stage.read('scores.json')['questions']:,} test {name} of "
    return f"{counted['train']:,} training and {counted['validation']:,} validation {name} of "


def _place_name(place: str) -> str:
    """A source by its name alone, without the machine's path."""
    if place in ("sample", ""):
        return _SAMPLE if place else "what an earlier phase of the run has made"
    if place.startswith(_HUB):
        return place
    if _corpus(place) is not None:
        return "the corpus described below"
    if _annotation(place) is not None:
        return "the annotation described below"
    return _cell(Path(place).name)


def _corpus(place: str) -> Path | None:
    """The folder of the phase `corpus` that a path lies in."""
    path = Path(place)
    folders = (path, *path.parents[:2])
    return next(
        (f for f in folders if (f / "stats.json").exists() and (f / "card.md").exists()), None
    )


def _annotation(place: str) -> Path | None:
    """The folder of the phase `annotate` that a path lies in."""
    folder = Path(place).parent
    return folder if (folder / "report.json").exists() else None


def _source_notes(place: str) -> Iterator[str]:
    if place == "sample":
        yield "The sample corpus was written for empathy_jax; its people are fictional. Apache-2.0."
    elif (folder := _corpus(place)) is not None:
        yield from _corpus_notes(read_json(folder / "stats.json"))
    elif (folder := _annotation(place)) is not None:
        found = read_json(folder / "report.json")
        yield (
            f"The chains were written by the teacher model `{_cell(found['teacher'])}`: "
            f"{found['questions']['chains']:,} of {found['questions']['all']:,} questions have one. The "
            "teacher's terms of use may bind a model that is trained on them."
        )
    elif place and not place.startswith(_HUB):
        yield "Of the other sources nothing but the name is known; the terms of each apply."


def _corpus_notes(stats: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        f"| {_cell(source['path'])} | {_cell(source['licence']) or 'not stated'} | "
        f"{source['read']:,} | {source['cleaned']:,} |"
        for source in stats["sources"]
    ]
    head = ["| source | licence | pairs read | left after cleaning |", "|---|---|---|---|"]
    pairs = stats["pairs"]
    yield (
        f"The corpus has {stats['questions']:,} questions with {stats['answers']:,} answers: of "
        f"{pairs['read']:,} pairs read {pairs['kept']:,} were kept. Licences are those that the builder "
        "of the corpus stated; personal data were replaced where rules found them."
    )
    yield "\n".join([*head, *rows])


def _evaluation(scores: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in scores["measures"].items():
        known = report.MEASURES.get(name)
        label = f"{known.label} ({known.meaning})" if known else name
        rows.append(f"| {label} | {_number(entry, 'value')} | {_number(entry, 'floor')} |")
    return "\n".join(
        [
            f"On {scores['questions']:,} held-out test questions, {scores['completions']:,} "
            f"completions, {scores['chain']['valid']:,} of them whole chains; ± is a standard error, "
            "brackets are an interval of 95 %. The floor is what people answered to a different "
            "question, scored in the same way.",
            "",
            "| measure | this model | floor |",
            "|---|---|---|",
            *rows,
        ]
    )


# Where a value's standard error and the ends of its interval stand beside it.
_SPREADS = {
    "before": ("error_before", None, None),
    "after": ("error_after", None, None),
    "value": ("error", "low", "high"),
    "floor": ("floor_error", "floor_low", "floor_high"),
}


def _number(entry: Mapping[str, Any], name: str) -> str:
    """A value with its interval, where it has one, else with its standard error."""
    value = entry.get(name)
    if value is None:
        return "-"
    error, low, high = (entry.get(key) for key in _SPREADS[name])
    if low is not None and high is not None:
        return f"{value:.4g} [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")


def _cell(text: str) -> str:
    """A name that comes from outside, without what Markdown would read as markup."""
    return "".join(c for c in text if c not in "`<>[]*|\r\n")
