"""The phase `generate`: a file of questions answered, or one question in the terminal.

A question's samples depend on the seed and on its text alone: the same ones come out whatever else is
in the file, and however often the run was killed.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from empathy_jax import files, resources, sharding
from empathy_jax.corpus import readers, records
from empathy_jax.metric_writer import Progress
from empathy_jax.serving import guarded, terminal
from empathy_jax.training import common, completions, inputs, reward_terms
from empathy_jax.training import workdir as workdirs
from empathy_jax.training.scorer import Scorer, find_scorer

STDIN = "-"
# Batches of the engine per write: a killed run loses no more than these.
BATCHES_PER_WRITE = 2


def run(config: ConfigDict, workdir: Path) -> dict:
    """The phase: `generations.jsonl`, or an answer on the screen."""
    began = time.monotonic()
    if config.generate.question:
        return terminal.run(config, workdir)
    folder = workdirs.open_phase(workdir, "generate", config)
    if (summary := workdirs.finished(folder)) is not None:
        return summary
    layout = sharding.make_layout(config.mesh)
    init = common.model_place(config, workdir)
    model = common.load_policy(config, workdir, layout)
    questions = read_questions(config, folder, model)
    common.announce("generate", model, {"questions": questions})
    guarded.announce("generate", guarded.region(config))
    scorer = find_scorer(config, workdir, layout)
    with jax.set_mesh(layout.mesh), workdirs.watch_sigterm() as sigterm:
        rows = generate(config, folder, model, questions, scorer, sigterm)
    print(f"[generate] {len(rows)} completions: {folder / 'generations.jsonl'}", flush=True)
    values = {
        "valid chains": np.mean([row["rule"] is None for row in rows]),
        "tokens of a completion": np.mean([row["tokens"] for row in rows]),
        "tokens per second": _rate(rows),
    }
    if scorer is not None:
        values["reward"] = np.mean([row["reward"] for row in rows])
    figures = [{"name": n, "before": None, "after": float(v)} for n, v in values.items()]
    return workdirs.finish(folder, "generate", began, figures, model=init)


def read_questions(config: ConfigDict, folder: Path, model: common.Model) -> list[dict]:
    """All question records of `config.data.questions`; overlong ones as the config says.

    Raises:
      ValueError: when no question is left, or one is too long (`config.data.overlong="error"`).
    """
    data = config.data
    if data.questions == STDIN:
        found, rejects = read_lines(sys.stdin)
    else:
        path = inputs.questions_path(config, folder.parent)
        found, rejects = readers.read_questions(path, data.language, data.max_rejected)
    kept, overlong = inputs.fitting_questions(found, model.tokenizer, data)
    files.write_jsonl(folder / "rejected.jsonl", [*rejects, *overlong])
    if not kept:
        raise ValueError(
            f"config.data.questions ({data.questions!r}) holds no question to answer: {len(rejects)} "
            f"could not be read, {len(overlong)} are longer than config.data.max_prompt_tokens "
            f"({data.max_prompt_tokens})"
        )
    return kept


def read_lines(lines: Iterable[str]) -> tuple[list[dict], list[dict]]:
    """Questions of a stream, one a line: as text, or as a JSON record with `question`.

    Returns:
      The records in the order of first sight, and the rejects.
    """
    found: dict[str, dict] = {}
    rejects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line) if line.lstrip().startswith("{") else {"question": line}
            record = records.question_record(value.get("question"), (), "standard input")
            found.setdefault(record["id"], record)
        except ValueError as error:
            rejects.append({"file": STDIN, "line": number, "reason": str(error)})
    return list(found.values()), rejects


def generate(
    config: ConfigDict,
    folder: Path,
    model: common.Model,
    questions: Sequence[dict],
    scorer: Scorer | None,
    sigterm: Sequence[int] = (),
) -> list[dict]:
    """Rows of `generations.jsonl`, a few batches at a time; those that are there are not made again.

    `sigterm` ends the run after the batches at hand.
    """
    path, samples = folder / "generations.jsonl", config.generate.samples
    rows = list(files.read_jsonl(path)) if path.exists() else []
    rows = rows[: len(rows) // samples * samples]
    files.write_jsonl(path, rows)
    known = {row["id"] for row in rows}
    left = [record for record in questions if record["id"] not in known]
    size = max(1, BATCHES_PER_WRITE * config.sampling.rows // samples)
    progress = Progress("generate", len(questions), every=1)
    for start in range(0, len(left), size):
        made = answer(config, model, left[start : start + size], scorer)
        files.append_jsonl(path, made)
        resources.note(folder)
        rows += made
        valid = np.mean([row["rule"] is None for row in rows])
        progress.update(len(rows) // samples, {"valid": valid})
        if sigterm and start + size < len(left):
            raise workdirs.Preempted("generate", len(rows) // samples)
    progress.close()
    return rows


def answer(
    config: ConfigDict, model: common.Model, questions: Sequence[dict], scorer: Scorer | None
) -> list[dict]:
    """Rows of some questions, decoded together, with scores where there is a scorer.

    `batch_seconds` and `batch_tokens` are of all of them: no row has a time of its own in a batch.
    """
    samples, began = config.generate.samples, time.monotonic()
    streams = [completions.stream_number(q["id"], i) for q in questions for i in range(samples)]
    key = common.stream(config.seed, "serving")
    made = completions.complete(
        key, model.variables, model, list(questions), config, samples, row_ids=streams
    )
    seconds, tokens = time.monotonic() - began, sum(row["tokens"] for row in made)
    rows = [
        completions.flat(row, index % samples)
        | {"batch_seconds": round(seconds, 3), "batch_tokens": tokens}
        for index, row in enumerate(made)
    ]
    if (region := guarded.region(config)) is not None:
        rows = [guarded.row(row, region) for row in rows]
    if scorer is None:
        return rows
    terms = reward_terms.score(made, scorer, config)
    total = reward_terms.combine(terms, config)
    for index, row in enumerate(rows):
        row["reward"] = float(total[index])
        row["terms"] = {name: float(values[index]) for name, values in terms.items()}
    return rows


def _rate(rows: Sequence[dict]) -> float:
    """Tokens per second over all batches."""
    return sum(row["tokens"] for row in rows) / sum(
        row["batch_seconds"] * row["tokens"] / max(row["batch_tokens"], 1) for row in rows
    )
