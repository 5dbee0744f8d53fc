"""The phase `evaluate`: test questions answered by a model, scored beside what chance gives.

The floor takes what people answered to a different question and scores it in the same way: a fluent
human text that has nothing to do with the question. The ceiling is what people's own answers get. A
measure says something about the model only where it stands off that floor; `training/measures.py`
has them.

The reward itself is put to the test as well, with every way to cheat of `evaluation/probes.py`: the
reward model's cosine alone, and the reward of an answer as the phase rl would compose it.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, files, hosts, resources, sharding
from empathy_jax.data import pairs
from empathy_jax.evaluation import probes, report, safety_table
from empathy_jax.evaluation.metrics import resampling, tokens
from empathy_jax.evaluation.metrics.catalogue import MEASURES
from empathy_jax.metric_writer import Progress
from empathy_jax.training import common, completions, inputs, lineage, measures, reward_terms
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.scorer import Scorer

# Batches of the engine per write: a killed run loses no more than these.
BATCHES_PER_WRITE = 2


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase: `generations.jsonl`, then scores, values and `report.html`; resumes if killed.

    `values.jsonl` has the measures of each generation, `references.jsonl` the questions with what
    people answered: with them a folder can be compared with others (`evaluation.compare`).
    """
    began = time.monotonic()
    folder = workdirs.open_phase(workdir, "evaluate", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    init = common.model_place(config, workdir)
    model = common.load_policy(config, workdir, layout)
    questions = read_test_questions(config, folder, model)
    common.announce("evaluate", model, {"test": questions})
    judges = measures.load_judges(config, workdir, layout)
    with jax.set_mesh(layout.mesh), workdirs.watch_sigterm() as sigterm:
        rows = generate(config, folder, model, questions, sigterm)
        table, per_row, wins = measures.score(rows, questions, judges, config)
        probed = probe(questions, judges.scorer, config) if judges.scorer is not None else {}

    scores = {
        "model": init,
        "questions": len(questions),
        "completions": len(rows),
        "references": sum(len(record["answers"]) for record in questions),
        "chain": count_chains(rows),
        "measures": table,
        "wins": wins,
        "safety": safety_table.describe(questions, rows),
        "tokenizations": tokens.describe(),
        "intervals": resampling.INTERVALS,
        "judges": measures.describe(judges, config),
        "probes": probed,
    }
    files.write_jsonl(folder / "references.jsonl", questions)
    files.write_jsonl(
        folder / "values.jsonl",
        (
            {"id": row["id"], "sample": row["sample"], "values": values}
            for row, values in zip(rows, per_row, strict=True)
        ),
    )
    files.write_json(folder / "scores.json", scores)
    references = {record["id"]: [a["text"] for a in record["answers"]] for record in questions}
    cases = [
        {**rows[index], "references": references[rows[index]["id"]], "measures": per_row[index]}
        for index in report.choose_cases(rows, config.seed)
    ]
    lengths = {
        "model": [row["characters"] for row in per_row if row["characters"] is not None],
        "people": [len(tokens.characters(text)) for own in references.values() for text in own],
    }
    page = report.render(scores, cases, _curves(init, workdir), _settings(folder), lengths)
    files.write_text(folder / "report.html", page)
    print(f"[evaluate] the report: {folder / 'report.html'}", flush=True)
    figures = [_figure(name, table[name]) for name in table if MEASURES[name].headline]
    return workdirs.finish(folder, "evaluate", began, figures, model=init)


def read_test_questions(config: ConfigDict, folder: Path, model: common.Model) -> list[dict]:
    """The first `config.evaluate.questions` of the test split; overlong ones as the config says.

    Raises:
      ValueError: when no question is left, or one is too long (`config.data.overlong="error"`).
    """
    records = inputs.read_questions(config, folder)["test"]
    if not records:
        raise ValueError(
            f"the test split of config.data.questions ({config.data.questions!r}) is empty, with "
            f"config.data.test_fraction {config.data.test_fraction}; name other questions than "
            "those that the model was trained on, with a fraction above 0"
        )
    kept, rejects = inputs.fitting_questions(records, model.tokenizer, config.data)
    files.append_jsonl(folder / "rejected.jsonl", rejects)
    if not kept:
        raise ValueError(
            f"no question is left to evaluate: all {len(rejects)} of the test split of "
            f"config.data.questions ({config.data.questions!r}) are longer than "
            f"config.data.max_prompt_tokens ({config.data.max_prompt_tokens}); raise that"
        )
    return kept[: config.evaluate.questions or None]


def generate(
    config: ConfigDict,
    folder: Path,
    model: common.Model,
    questions: Sequence[dict],
    sigterm: Sequence[int] = (),
) -> list[dict]:
    """Rows of `generations.jsonl`: each question with its samples side by side, in order.

    Rows are written a few batches at a time. What a row is depends on its place alone, so a resumed
    run makes the rows that it would have made. `sigterm` ends the run after the batches at hand.
    """
    path, samples = folder / "generations.jsonl", config.evaluate.samples
    size = max(1, BATCHES_PER_WRITE * config.sampling.rows * hosts.count() // samples)

    def keep_whole_questions() -> int:
        rows = list(files.read_jsonl(path)) if path.exists() else []
        done = min(len(rows) // samples, len(questions))
        files.write_jsonl(path, rows[: done * samples])
        return done

    done = hosts.from_lead(keep_whole_questions)
    rows = list(files.read_jsonl(path))[: done * samples]
    stop = hosts.Agreement()
    key = common.stream(config.seed, "evaluate")
    progress = Progress("evaluate", len(questions), every=1)
    for start in range(done, len(questions), size):
        some = questions[start : start + size]
        made = completions.complete(key, model.variables, model, some, config, samples, start)
        made = [completions.flat(row, index % samples) for index, row in enumerate(made)]
        files.append_jsonl(path, made)
        resources.note(folder)
        rows += made
        valid = np.mean([row["rule"] is None for row in rows])
        progress.update(min(start + size, len(questions)), {"valid": valid})
        if stop.agreed(bool(sigterm)) and start + size < len(questions):
            raise workdirs.Preempted("evaluate", start + size)
    progress.close()
    return rows


def probe(questions: Sequence[dict], scorer: Scorer, config: ConfigDict) -> dict[str, dict]:
    """How often each way to cheat beats the human answer of the test questions.

    Each probe is a batch of its own for the whole reward, as if the policy had learnt to answer
    every question so: only then does the charge for templates see what it is there for. (An answer
    that is the nearest one of several questions counts as a template there, too.)

    Returns:
      `cosine` and `reward` to what `probes.compare` gives; nothing when fewer than two questions
      have different good answers.
    """
    if len({pairs.positives(record)[0] for record in questions if pairs.positives(record)}) < 2:
        return {}
    cases = probes.make_cases(
        questions,
        scorer.embed_questions,
        config.data.language,
        scorer.calibration["max_characters"],
        config.seed,
        probes.QUESTIONS,
    )
    made = probes.texts(cases)
    cosines = probes.score(cases, made, scorer.similarity)
    asked = [case.question for case in cases]
    whole = {
        name: reward_terms.combine_answer(
            reward_terms.answer_terms(asked, made[name], similarity, scorer, config), config
        )
        for name, similarity in cosines.items()
    }
    return {"cosine": probes.compare(cosines), "reward": probes.compare(whole)}


def count_chains(rows: Sequence[dict]) -> dict[str, Any]:
    """How many rows are valid chains, break each rule first, and have each layer whole."""
    rules = Counter(row["rule"] for row in rows if row["rule"] is not None)
    return {
        "valid": sum(row["rule"] is None for row in rows),
        "rules": dict(rules.most_common()),
        "layers": {
            name: sum(row["whole_layers"][name] for row in rows) for name in chain_of_empathy.LAYERS
        },
    }


def _curves(init: str, workdir: Path) -> dict[str, list[dict]]:
    """Phase to its metrics.jsonl: of the runs that made the model, and of the reward model."""
    stages, _ = lineage.trace(init)
    folders = [*(stage.folder for stage in stages), workdir / "reward_model"]
    paths = {folder.name: folder / "metrics.jsonl" for folder in folders}
    return {name: list(files.read_jsonl(path)) for name, path in paths.items() if path.exists()}


def _settings(folder: Path) -> dict[str, dict]:
    """The resolved config and the environment of the phase."""
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("config", "environment")
    }


def _figure(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    figure = {
        "name": MEASURES[name].label,
        "before": entry["floor"],
        "after": entry["value"],
    }
    if entry["error"] is not None:
        figure |= {"error_before": entry["floor_error"], "error_after": entry["error"]}
    return figure
