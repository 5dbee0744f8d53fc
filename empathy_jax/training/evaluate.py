"""The phase `evaluate`: test questions answered by a model, scored beside what chance gives.

The floor takes what people answered to a different question and scores it in the same way: a fluent
human text that has nothing to do with the question. A measure says something about the model only
where it stands off that floor.

The reward itself is put to the test as well, with every way to cheat of `evaluation/probes.py`: the
reward model's cosine alone, and the reward of an answer as the phase rl would compose it.
"""

import functools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy, files, hosts, resources, sharding
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import pairs
from empathy_jax.evaluation import probes, report, text_metrics
from empathy_jax.evaluation.calibration import mean_and_error
from empathy_jax.metric_writer import Progress
from empathy_jax.rl import rewards
from empathy_jax.training import common, completions, inputs, reward_terms
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.scorer import Scorer, load_scorer

# Batches of the engine per write: a killed run loses no more than these.
BATCHES_PER_WRITE = 2


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase: `generations.jsonl`, then `scores.json` and `report.html`; resumes if killed."""
    began = time.monotonic()
    folder = workdirs.open_phase(workdir, "evaluate", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    init = common.model_place(config, workdir)
    model = common.load_policy(config, workdir, layout)
    questions = read_test_questions(config, folder, model)
    common.announce("evaluate", model, {"test": questions})
    scorer = None
    judge = common.first_run(workdir, ("reward_model",))
    is_calibrated = hosts.from_lead(
        lambda: judge is not None and (judge / "calibration.json").exists()
    )
    if config.reward_model.init or is_calibrated:
        scorer = load_scorer(config, workdir, layout)
    with jax.set_mesh(layout.mesh), workdirs.watch_sigterm() as sigterm:
        rows = generate(config, folder, model, questions, sigterm)
        measures, per_row = score(rows, questions, scorer, config)
        probed = probe(questions, scorer, config) if scorer is not None else {}

    scores = {
        "model": init,
        "questions": len(questions),
        "completions": len(rows),
        "chain": count_chains(rows),
        "measures": measures,
        "probes": probed,
    }
    files.write_json(folder / "scores.json", scores)
    references = {record["id"]: _best_reference(record) for record in questions}
    cases = [
        {**rows[index], "reference": references[rows[index]["id"]], "measures": per_row[index]}
        for index in report.choose_cases(rows, config.seed)
    ]
    files.write_text(folder / "report.html", report.render(scores, cases))
    print(f"[evaluate] the report: {folder / 'report.html'}", flush=True)
    figures = [_figure(name, entry) for name, entry in measures.items()]
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
    make = functools.partial(
        examples_lib.prompt_example,
        tokenizer=model.tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    examples, rejects = examples_lib.build(records, make, config.data.overlong)
    files.append_jsonl(folder / "rejected.jsonl", rejects)
    fitting = {example["id"] for example in examples}
    kept = [record for record in records if record["id"] in fitting]
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
        made = [_flat(row, index % samples) for index, row in enumerate(made)]
        files.append_jsonl(path, made)
        resources.note(folder)
        rows += made
        valid = np.mean([row["rule"] is None for row in rows])
        progress.update(min(start + size, len(questions)), {"valid": valid})
        if stop.agreed(bool(sigterm)) and start + size < len(questions):
            raise workdirs.Preempted("evaluate", start + size)
    progress.close()
    return rows


def score(
    rows: Sequence[dict],
    questions: Sequence[dict],
    scorer: Scorer | None,
    config: ConfigDict,
) -> tuple[dict[str, dict], list[dict[str, float | None]]]:
    """Measures of all rows beside their floor, and the measures of each row.

    Args:
      rows: of `generate`.
      questions: question records, each with rows.
      scorer: the reward model; None leaves its measures out.
      config: its seed decides which question's answers another question is given for the floor.

    Returns:
      Name to {"value", "error", "questions", "floor", "floor_error"}, means over questions with
      standard errors, None where nothing could be measured; and name to value for each row.
    """
    index_of = {record["id"]: index for index, record in enumerate(questions)}
    owners = np.array([index_of[row["id"]] for row in rows])
    measured = {
        "validity": np.array([row["rule"] is None for row in rows], np.float64),
        "finished": np.array([row["finished"] for row in rows], np.float64),
        "tokens": np.array([row["tokens"] for row in rows], np.float64),
    }
    table = {name: _entry(values, owners) for name, values in measured.items()}

    # The answers of valid rows and those of the floor are measured together, in one batch.
    valid = [index for index, row in enumerate(rows) if row["rule"] is None]
    answers = [rows[index]["answer"] for index in valid]
    floor_owners, floor_answers = floor(questions, config.seed)
    everyone = np.concatenate([owners[valid], floor_owners]).astype(np.int64)
    texts = [*answers, *floor_answers]
    found = _measure_answers(questions, everyone, texts, scorer, config)
    for name, values in found.items():
        model_values, floor_values = values[: len(valid)], values[len(valid) :]
        table[name] = _entry(model_values, owners[valid], floor_values, floor_owners)
        measured[name] = np.full(len(rows), np.nan)
        measured[name][valid] = model_values
    for n in (1, 2):
        table[f"distinct_{n}_all"] = {
            **_empty_entry(),
            "value": _known(text_metrics.distinct(_one_each(owners[valid], answers), n)),
            "floor": _known(text_metrics.distinct(_one_each(floor_owners, floor_answers), n)),
            "questions": len(set(owners[valid])),
        }
    per_row = [
        {name: _known(float(values[index])) for name, values in measured.items()}
        for index in range(len(rows))
    ]
    return {name: table[name] for name in report.MEASURES if name in table}, per_row


def floor(questions: Sequence[dict], seed: int) -> tuple[np.ndarray, list[str]]:
    """For each question with references, the references of another one, as if they answered it.

    Returns:
      The index of the question each text is given to, and the texts; nothing when fewer than two
      questions have references.
    """
    known = [index for index, record in enumerate(questions) if record["answers"]]
    if len(known) < 2:
        return np.zeros(0, np.int64), []
    others = text_metrics.derangement(len(known), seed)
    given = [
        (index, answer["text"])
        for index, other in zip(known, others, strict=True)
        for answer in questions[known[other]]["answers"]
    ]
    return np.array([index for index, _ in given]), [text for _, text in given]


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


def _measure_answers(
    questions: Sequence[dict],
    owners: np.ndarray,
    texts: list[str],
    scorer: Scorer | None,
    config: ConfigDict,
) -> dict[str, np.ndarray]:
    asked = [questions[index]["question"] for index in owners]
    references = [[a["text"] for a in questions[index]["answers"]] for index in owners]
    found = text_metrics.score_answers(asked, texts, references)
    if scorer is not None and texts:
        similarity = scorer.similarity(asked, texts)
        passes = rewards.binary_answer(
            similarity, reward_terms.threshold(scorer.calibration, config)
        )
        found |= {"similarity": similarity, "similarity_passes": passes}
    return found


def _flat(row: dict, sample: int) -> dict:
    """A row of `completions.complete` as generations.jsonl holds it."""
    texts = row["chain"] or dict.fromkeys(chain_of_empathy.LAYERS)
    return {
        "id": row["id"],
        "sample": sample,
        "question": row["question"],
        "completion": row["completion"],
        "rule": row["rule"],
        "whole_layers": row["layers"],
        **texts,
        "answer": row["answer"],
        "finished": row["finished"],
        "tokens": row["tokens"],
    }


def _entry(
    values: npt.ArrayLike,
    owners: npt.ArrayLike,
    floor_values: npt.ArrayLike = (),
    floor_owners: npt.ArrayLike = (),
) -> dict[str, Any]:
    """Mean over questions and its standard error, of the model and of the floor."""
    means = text_metrics.by_question(values, owners)
    entry = {**_empty_entry(), "questions": means.size}
    if means.size:
        entry["value"], entry["error"] = mean_and_error(means)
    floor_means = text_metrics.by_question(floor_values, floor_owners)
    if floor_means.size:
        entry["floor"], entry["floor_error"] = mean_and_error(floor_means)
    return entry


def _empty_entry() -> dict[str, Any]:
    return {"value": None, "error": None, "questions": 0, "floor": None, "floor_error": None}


def _one_each(owners: npt.ArrayLike, texts: Sequence[str]) -> list[str]:
    """The first text of each owner."""
    first: dict[int, str] = {}
    for owner, text in zip(owners, texts, strict=True):
        first.setdefault(int(owner), text)
    return list(first.values())


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _best_reference(record: dict) -> str | None:
    """The reference with the highest score, the first of equal ones."""
    best = max(record["answers"], key=lambda answer: answer.get("score", 0), default=None)
    return best and best["text"]


def _figure(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    figure = {
        "name": report.MEASURES[name].label,
        "before": entry["floor"],
        "after": entry["value"],
    }
    if entry["error"] is not None:
        figure |= {"error_before": entry["floor_error"], "error_after": entry["error"]}
    return figure
