"""Several systems on the same questions: every measure beside its floor and ceiling, paired tests.

    python -m empathy_jax.evaluation.compare --system=ours=runs/a --system=base=runs/b --output=result
    python -m empathy_jax.evaluation.compare --system=ours=runs/a --system=other=other.jsonl \\
        --output=result

A system is a WORKDIR with a finished phase `evaluate`, that phase's folder, or a file like its
generations.jsonl: `id`, `question` and `answer` in each line, several lines for several answers.
A name that is given several times stands for several runs of one system, such as its seeds.
References are those of the first folder, or of `--questions`. Only questions that every system was
asked are used. Texts are measured anew, all together; what a model has judged (BERTScore, perplexity,
the reward model) is taken from the folders, where all of them that have it had it from the same model.

Writes comparison.json and comparison.html.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from empathy_jax import chain_of_empathy, files
from empathy_jax.corpus import readers
from empathy_jax.evaluation import comparison_report, safety_table
from empathy_jax.evaluation.metrics import references, resampling, scoring, tokens
from empathy_jax.evaluation.metrics.catalogue import MEASURES, number
from empathy_jax.evaluation.metrics.resampling import Sums

# Part of a folder's `judges` to the measures that it stands behind, by the beginning of their names.
_JUDGED = {
    "bertscore": ("bertscore",),
    "perplexity": ("perplexity",),
    "reward_model": ("similarity", "similarity_passes", "quality"),
}
_SIDES = ("floor", "ceiling", "over_floor", "beside_ceiling")
_FORM = {"validity", "finished", "tokens", *(f"layer_{name}" for name in chain_of_empathy.LAYERS)}


@dataclasses.dataclass(frozen=True)
class System:
    """What is known of a system.

    Attributes:
      name: as it is shown.
      rows: of generations.jsonl, each with the number of its run as `run`.
      questions: id to record with answers; empty for a file alone.
      values: (id, number of the sample) to the measures of values.jsonl.
      scores: what scores.json holds; of several runs that of the first.
      folder: of the phase evaluate, of several runs that of the first; None for a file alone.
      runs: how many it is made of.
    """

    name: str
    rows: list[dict]
    questions: dict[str, dict]
    values: dict[tuple[str, int], dict[str, float | None]]
    scores: dict[str, Any]
    folder: Path | None
    runs: int = 1

    def asked(self) -> set[str]:
        """The questions that every run was asked."""
        asked = [{row["id"] for row in self.rows if row["run"] == run} for run in range(self.runs)]
        return set.intersection(*asked)


def read_system(name: str, path: Path) -> System:
    """A system from a WORKDIR, the folder of its phase evaluate, or a file of generations.

    Raises:
      ValueError: there is no such thing, or a row lacks a field.
    """
    folder = next(
        (f for f in (path / "evaluate", path) if (f / "generations.jsonl").exists()), None
    )
    if folder is None and not path.is_file():
        raise ValueError(
            f"--system={name}={path}: neither a file, nor a folder with generations.jsonl or "
            "evaluate/generations.jsonl; run the phase evaluate first"
        )
    rows = list(files.read_jsonl(folder / "generations.jsonl" if folder else path))
    counts: dict[str, int] = {}
    for number_, row in enumerate(rows, 1):
        if missing := {"id", "question", "answer"} - row.keys():
            raise ValueError(
                f"--system={name}={path}: line {number_} has no {sorted(missing)[0]!r}"
            )
        row.setdefault("rule", None if row["answer"] else "missing_answer")
        row.setdefault("sample", counts.get(row["id"], 0))
        row["run"] = 0
        counts[row["id"]] = counts.get(row["id"], 0) + 1
    if not rows:
        raise ValueError(f"--system={name}={path}: there is no generation in it")
    return System(name, rows, *_beside(folder), folder)


def join(runs: Sequence[System]) -> System:
    """Runs of one system as one system, with the samples of all for each question.

    Judges that did not judge every run are left out.
    """
    if len(runs) == 1:
        return runs[0]
    rows: list[dict] = []
    values: dict[tuple[str, int], dict[str, float | None]] = {}
    start = 0
    for run, one in enumerate(runs):
        rows += [row | {"run": run, "sample": row["sample"] + start} for row in one.rows]
        values |= {(id_, sample + start): own for (id_, sample), own in one.values.items()}
        start += 1 + max(row["sample"] for row in one.rows)
    judges = runs[0].scores.get("judges", {}).items()
    agreed = {
        part: judge
        for part, judge in judges
        if all(run.scores.get("judges", {}).get(part) == judge for run in runs)
    }
    return dataclasses.replace(
        runs[0],
        rows=rows,
        values=values,
        scores=runs[0].scores | {"judges": agreed},
        runs=len(runs),
    )


def _beside(folder: Path | None) -> tuple[dict, dict, dict]:
    """Questions, values and scores that lie beside a folder's generations."""
    if folder is None or not (folder / "references.jsonl").exists():
        return {}, {}, {}
    questions = {record["id"]: record for record in files.read_jsonl(folder / "references.jsonl")}
    values = {
        (row["id"], row["sample"]): row["values"]
        for row in files.read_jsonl(folder / "values.jsonl")
    }
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return questions, values, scores


def compare(
    systems: Sequence[System], questions: Mapping[str, dict], language: str, seed: int
) -> dict[str, Any]:
    """What comparison.json holds.

    Args:
      systems: two or more, with different names.
      questions: id to record with answers.
      language: "zh" or "en".
      seed: of the floor, the resampling and the swaps.

    Raises:
      ValueError: there is no question that every system was asked.
    """
    asked = [system.asked() for system in systems]
    shared = [id_ for id_ in questions if all(id_ in own for own in asked)]
    if not shared:
        raise ValueError(
            "no question was asked of every system and has a record; compare generations for the "
            "same test questions, or give their records with --questions"
        )
    records = [questions[id_] for id_ in shared]
    sums, distinct, by_run = _measure(systems, records, language, seed)
    names = [system.name for system in systems]
    tables = _tables(systems, sums, distinct, seed)
    for system in systems:
        if system.scores.get("questions") == len(shared):
            _add_sides(tables[system.name], system)
    wanted = set(shared)
    kept = {s.name: [row for row in s.rows if row["id"] in wanted] for s in systems}
    return {
        "systems": names,
        "questions": len(shared),
        "left_out": len({row["id"] for system in systems for row in system.rows}) - len(shared),
        "runs": {system.name: system.runs for system in systems},
        "completions": {name: len(rows) for name, rows in kept.items()},
        "measures": tables,
        "differences": differences(names, sums, distinct, seed),
        "by_run": _over_runs(names, by_run),
        "wins": scoring.wins(sums, names, seed),
        "safety": {name: safety_table.describe(records, rows) for name, rows in kept.items()},
        "tokenizations": tokens.describe(),
        "intervals": resampling.INTERVALS,
        "tests": resampling.TESTS,
        "judges": _agreed_judges(systems),
    }


def _measure(
    systems: Sequence[System], records: Sequence[dict], language: str, seed: int
) -> tuple[dict[str, dict[str, Sums]], dict[str, Any], dict[str, dict[str, list[float]]]]:
    """Sums of each measure by set (a system's name, `beside NAME`, floor, ceiling); corpus
    Distinct-n; and of systems with several runs the value of each, by measure and system."""
    place = {record["id"]: index for index, record in enumerate(records)}
    known = [[answer["text"] for answer in record["answers"]] for record in records]
    sets, rows_of = {}, {}
    for system in systems:
        own = [row for row in system.rows if row["id"] in place]
        rows_of[system.name] = own
        valid = [row for row in own if row["rule"] is None]
        answers, owners = [r["answer"] for r in valid], [place[r["id"]] for r in valid]
        made = references.candidate_sets(known, answers, owners, seed)
        sets[system.name], sets[f"beside {system.name}"] = made["model"], made["beside"]
        sets["floor"], sets["ceiling"] = made["floor"], made["ceiling"]
    asked = [record["question"] for record in records]
    values = scoring.measure(sets, asked, language)
    sums = scoring.add_up(values, sets, len(records))
    by_run: dict[str, dict[str, list[float]]] = {}
    for system in systems:
        own = rows_of[system.name]
        runs = [row["run"] for row in own if row["rule"] is None]
        owners = sets[system.name].owners
        for name, found in values[system.name].items():
            _note_runs(by_run, name, system, found, owners, runs, len(records))
    judged = {name for part in _agreed_judges(systems) for name in _measures_of(part)}
    for system in systems:
        own = rows_of[system.name]
        owners = [place[row["id"]] for row in own]
        columns = [system.values.get((row["id"], row["sample"]), {}) for row in own]
        for name in (name for name in MEASURES if name in judged or name in _FORM):
            column = np.array([_number(values.get(name)) for values in columns])
            if not np.isnan(column).all():
                logged = np.log(column) if MEASURES[name].finish is resampling.exp_ratio else column
                made = scoring.sums_of(name, logged, np.array(owners), len(records))
                sums.setdefault(name, {})[system.name] = made
                runs = [row["run"] for row in own]
                _note_runs(by_run, name, system, logged, owners, runs, len(records))
    # A set without a text would set the length at which all are measured.
    whole = {name: own for name, own in sets.items() if own.texts and not name.startswith("beside")}
    whole.pop("floor", None)
    return sums, scoring.corpus_distinct(whole, len(records), seed), by_run


def _note_runs(
    by_run: dict[str, dict[str, list[float]]],
    name: str,
    system: System,
    values: np.ndarray,
    owners: Any,
    runs: Sequence[int],
    questions: int,
) -> None:
    """Add a measure's value of each run of a system that has several; NaN where a run has none.

    Args:
      values, owners, runs: of each answer its value, its question and its run.
    """
    if system.runs == 1:
        return
    owners, runs = np.asarray(owners), np.asarray(runs)
    found = [
        scoring.sums_of(name, values[runs == run], owners[runs == run], questions).value
        for run in range(system.runs)
    ]
    by_run.setdefault(name, {})[system.name] = found


def _over_runs(
    names: Sequence[str], by_run: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, dict[str, Any]]:
    """For each measure `systems` (name to `resampling.over_runs`) and `differences` of pairs.

    Runs are paired in the order they were given: seed by seed.
    """
    found = {}
    for name in (name for name in MEASURES if name in by_run):
        own = by_run[name]
        pairs = [
            {"first": first, "second": second}
            | resampling.over_runs(np.subtract(own[first], own[second]))
            for first, second in itertools.combinations([n for n in names if n in own], 2)
            if len(own[first]) == len(own[second])
        ]
        systems = {n: resampling.over_runs(own[n]) for n in names if n in own}
        found[name] = {"systems": systems, "differences": pairs}
    return found


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _measures_of(part: str) -> list[str]:
    beginnings = _JUDGED[part]
    return [name for name in MEASURES if name.startswith(beginnings)]


def _agreed_judges(systems: Sequence[System]) -> dict[str, Any]:
    """The judges that two systems or more have, and all of these the same."""
    found = {}
    for part in _JUDGED:
        judges = [system.scores.get("judges", {}) for system in systems]
        own = [named[part] for named in judges if part in named]
        if len(own) > 1 and all(judge == own[0] for judge in own):
            found[part] = own[0]
    return found


def _tables(
    systems: Sequence[System],
    sums: Mapping[str, Mapping[str, Sums]],
    distinct: Mapping[str, Any],
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """System to the entries of its measures, as in scores.json."""
    found = {}
    for system in systems:
        sides = {
            system.name: "model", f"beside {system.name}": "beside",
            "floor": "floor", "ceiling": "ceiling",
        }  # fmt: skip
        own = {
            name: {sides[which]: one for which, one in sets.items() if which in sides}
            for name, sets in sums.items()
        }
        table = scoring.table({n: sets for n, sets in own.items() if "model" in sets}, seed)
        for name, (length, values, halves) in distinct.items():
            if not {system.name, "ceiling"} <= values.keys():
                continue
            table[name] = scoring.distinct_entry(
                name, length, (values[system.name], halves[system.name]),
                (values["ceiling"], halves["ceiling"]),
            )  # fmt: skip
        found[system.name] = {name: table[name] for name in MEASURES if name in table}
    return found


def _add_sides(table: dict[str, dict[str, Any]], system: System) -> None:
    """Gives what a model has judged the floor and the ceiling of the system's own evaluation.

    That is of the same questions; texts alone were not judged again.
    """
    for name, entry in table.items():
        before = system.scores["measures"].get(name)
        if before is not None and entry["floor"] is entry["ceiling"] is None:
            entry |= {key: before[key] for key in before if key.startswith(_SIDES)}


def differences(
    names: Sequence[str],
    sums: Mapping[str, Mapping[str, Sums]],
    distinct: Mapping[str, Any],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """For each measure and pair of systems `resampling.compare`, with `first`, `second`, `p_holm`."""
    found = {}
    for name in MEASURES:
        pairs = []
        for first, second in itertools.combinations(names, 2):
            entry = None
            if name in distinct and {first, second} <= distinct[name][1].keys():
                entry = _distinct_difference(distinct[name], first, second)
            elif {first, second} <= sums.get(name, {}).keys():
                entry = resampling.compare(sums[name][first], sums[name][second], seed)
            if entry is not None:
                pairs.append({"first": first, "second": second, **entry})
        corrected = resampling.holm([entry["p"] for entry in pairs])
        if pairs:
            found[name] = [e | {"p_holm": p} for e, p in zip(pairs, corrected, strict=True)]
    return found


def _distinct_difference(entry: tuple, first: str, second: str) -> dict[str, Any]:
    """Of Distinct-n at equal length, from the same halves of questions for both; without a test."""
    _, values, halves = entry
    side = scoring.half_sample_interval(
        values[first] - values[second], halves[first] - halves[second]
    )
    ends = {"low": side["low"], "high": side["high"]}
    return {"difference": side["value"], **ends, "p": None, "questions": None}


def show(found: Mapping[str, Any]) -> str:
    """The headline measures as a table for a terminal."""
    names = found["systems"]
    width = max(len(MEASURES[name].label) for name in MEASURES if MEASURES[name].headline)
    lines = [f"{found['questions']} questions that every system was asked"]
    for name in MEASURES:
        if not MEASURES[name].headline:
            continue
        entries = {system: found["measures"][system].get(name) for system in names}
        cells = [
            f"{system} {number(name, entry['value'], entry['low'], entry['high'])}"
            for system, entry in entries.items()
            if entry is not None
        ]
        if cells:
            lines.append(f"{MEASURES[name].label:<{width}}  {'  '.join(cells)}")
        for pair in found["differences"].get(name, ()):
            if pair["p_holm"] is not None and pair["p_holm"] < 0.05:
                lines.append(
                    f"{'':<{width}}  {pair['first']} less {pair['second']}: "
                    f"{number(name, pair['difference'], pair['low'], pair['high'])}, "
                    f"p {pair['p_holm']:.2g}"
                )
    return "\n".join(lines)


def _read_questions(systems: Sequence[System], path: str | None, language: str) -> dict[str, dict]:
    if path is not None:
        records, _ = readers.read_questions(path, language)
        return {record["id"]: record for record in records}
    found = next((system.questions for system in systems if system.questions), None)
    if found is None:
        raise ValueError(
            "no system is a folder of the phase evaluate, which has references.jsonl; give the test "
            "questions with their answers as --questions=FILE"
        )
    return found


def _system(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m empathy_jax.evaluation.compare")
    parser.add_argument(
        "--system", type=_system, action="append", required=True, metavar="NAME=PATH"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--questions", metavar="FILE", help="records with answers; default: a folder's"
    )
    parser.add_argument("--language", choices=("zh", "en"), default="zh")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    paths: dict[str, list[Path]] = {}
    for name, path in options.system:
        paths.setdefault(name, []).append(path)
    if len(paths) < 2 or {"floor", "ceiling", "model"} & paths.keys():
        raise ValueError(
            f"--system names {list(paths)}; give two or more different names, none of them floor, "
            "ceiling or model"
        )
    systems = [join([read_system(name, path) for path in own]) for name, own in paths.items()]
    questions = _read_questions(systems, options.questions, options.language)
    found = compare(systems, questions, options.language, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output / "comparison.json", found)
    page = comparison_report.render(found, systems, questions, options.seed)
    files.write_text(options.output / "comparison.html", page)
    print(show(found))
    print(f"the comparison: {options.output / 'comparison.html'}")


if __name__ == "__main__":
    main()
