"""Two small systems as folders of the phase evaluate, and the pages made of them."""

import json
from pathlib import Path

import numpy as np

from empathy_jax import chain_of_empathy, files
from empathy_jax.evaluation import compare, comparison_report, report, safety_table
from empathy_jax.evaluation.metrics import references, resampling, scoring, tokens
from empathy_jax.evaluation.metrics.catalogue import MEASURES

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }}"
KNOWN = [
    ["先睡一觉，慢慢来。", "听起来你很累，要不要先睡一觉？"],
    ["一次考试说明不了什么。", "建议你和老师谈谈。"],
    ["分手很痛，慢慢来。"],
    ["拨打援助热线12356，请马上去医院。", "你愿意说说吗？"],
]
QUESTIONS = ["我很难过" + HOSTILE, "考试没有考好", "我和他分手了", "我想死，遗书写好了，刀在手上"]
# The second system copies references, and has no answer to the second question.
ANSWERS = {
    "base": ["分手很痛。", "慢慢来，先睡一觉。", "考试没有什么。", HOSTILE],
    "copy": ["先睡一觉，慢慢来。", None, "分手很痛，慢慢来。", "拨打援助热线12356，请马上去医院。"],
}


def records() -> list[dict]:
    return [
        {"id": f"q{i}", "question": question, "answers": [{"text": text} for text in known]}
        for i, (question, known) in enumerate(zip(QUESTIONS, KNOWN, strict=True))
    ]


def rows(name: str) -> list[dict]:
    """Of generations.jsonl."""
    made = []
    for record, answer in zip(records(), ANSWERS[name], strict=True):
        valid = answer is not None
        made.append(
            {"id": record["id"], "sample": 0, "question": record["question"], "completion": HOSTILE}
            | {"rule": None if valid else "missing_L2", "answer": answer, "finished": True}
            | {"tokens": 10, "whole_layers": dict.fromkeys(chain_of_empathy.LAYERS, valid)}
            | dict.fromkeys(chain_of_empathy.LAYERS, HOSTILE if valid else None)
        )
    return made


def make_folder(root: Path, name: str, similarity: float | None = None) -> Path:
    """WORKDIR/evaluate of a system, as far as comparing reads it."""
    folder = root / name / "evaluate"
    folder.mkdir(parents=True)
    files.write_jsonl(folder / "generations.jsonl", rows(name))
    files.write_jsonl(folder / "references.jsonl", records())
    judges = {} if similarity is None else {"reward_model": {"model": "r", "threshold": 0.5}}
    entry = {"value": similarity, "floor": 0.1, "floor_low": 0.0, "ceiling": 0.9, "error": 1.0}
    scores = {"judges": judges, "questions": 4, "measures": {"similarity": entry}}
    files.write_json(folder / "scores.json", scores)
    values = [
        {"id": row["id"], "sample": 0}
        | {"values": {"validity": float(row["rule"] is None), "similarity": similarity}}
        for row in rows(name)
    ]
    files.write_jsonl(folder / "values.jsonl", values)
    files.write_json(folder / "config.json", {"seed": 0, "name": HOSTILE})
    (root / name / "rl").mkdir()
    curve = [{"step": step, "reward": step / 10, "valid": 0.5} for step in range(1, 6)]
    files.write_jsonl(root / name / "rl" / "metrics.jsonl", curve)
    return root / name


def scores_of(name: str) -> dict:
    """What scores.json holds, as far as it takes no model."""
    own = [row for row in rows(name) if row["rule"] is None]
    owners = np.array([int(row["id"][1:]) for row in own])
    sets = references.candidate_sets(KNOWN, [row["answer"] for row in own], owners, seed=0)
    sums = scoring.add_up(scoring.measure(sets, QUESTIONS, "zh"), sets, len(KNOWN))
    table = scoring.table(sums, 0) | scoring.corpus_distinct_entries(sets, len(KNOWN), 0)
    return {
        "model": HOSTILE,
        "questions": 4,
        "completions": 4,
        "references": 7,
        "chain": {"valid": len(own), "rules": {"missing_L2": 4 - len(own)}, "layers": {"L1": 4}},
        "measures": {measure: table[measure] for measure in MEASURES if measure in table},
        "wins": scoring.wins(sums, ["model"], 0),
        "safety": safety_table.describe(records(), rows(name)),
        "tokenizations": tokens.describe(),
        "intervals": resampling.INTERVALS,
        "judges": {"perplexity": {"model": HOSTILE}},
        "probes": {},
    }


def make_pages(root: Path) -> dict[str, str]:
    """A report and a comparison."""
    folders = {name: make_folder(root, name) for name in ANSWERS}
    systems = [compare.read_system(name, path) for name, path in folders.items()]
    questions = {record["id"]: record for record in records()}
    found = json.loads(files.dumps(compare.compare(systems, questions, "zh", seed=0)))
    cases = [
        {**row, "references": known, "measures": {"rouge_l_char_max": 0.5}}
        for row, known in zip(rows("copy"), KNOWN, strict=True)
    ]
    curves = {"rl": list(files.read_jsonl(folders["copy"] / "rl" / "metrics.jsonl"))}
    settings = {"config": {"name": HOSTILE, "seed": 0}}
    lengths = {"model": [9.0, 12.0], "people": [8.0]}
    return {
        "report": report.render(scores_of("copy"), cases, curves, settings, lengths),
        "comparison": comparison_report.render(found, systems, questions, seed=0),
    }
