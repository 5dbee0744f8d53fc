"""A blind study from the answers of several systems to the same questions.

Two files come out. `study.json` is all that the server and the page need: texts under random ids,
the trials of each rater, and hashes of the raters' codes; no system's name and nothing that depends
on one. `key.json` says which system wrote what, which trials are checks or repeats, and the codes
of the raters; it stays with the researcher until the analysis.

Equal answers of two systems are one card that belongs to both, so they tie by construction.
"""

import dataclasses
import hashlib
import json
import os
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from empathy_jax import files
from empathy_jax.evaluation.ranking import DIMENSIONS, design

FORMAT = "empathy_jax ranking study 1"
LANGUAGES = ("zh", "en")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a study: how many raters see how much of what.

    Attributes:
      items: questions to rank; 0 takes all that are left.
      raters: people.
      raters_per_item: people who rank the same item.
      checks: questions of attention checks; every rater sees each of them once.
      repeats: items that a rater sees twice.
      language: of the page at first, "zh" or "en".
      seed: of all that is random but the raters' codes.
    """

    items: int = 0
    raters: int = 20
    raters_per_item: int = 20
    checks: int = 3
    repeats: int = 3
    language: str = "zh"
    title: str = ""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and each system's answer to it, in the order of the systems."""

    id: str
    text: str
    answers: tuple[str, ...]

    def cards(self) -> dict[str, list[int]]:
        """Different answers, each with the systems that gave it."""
        found: dict[str, list[int]] = {}
        for system, answer in enumerate(self.answers):
            found.setdefault(canonical(answer), []).append(system)
        return found


def canonical(text: str) -> str:
    """The text as the page shows it: equal where two texts look the same, and always UTF-8."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate becomes "?"
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").strip().split("\n")
    return "\n".join(line.rstrip() for line in lines)


def read_questions(paths: Mapping[str, Path]) -> tuple[list[Question], dict[str, int]]:
    """Questions that every system answered, and the reasons why others are left out.

    Args:
      paths: name of a system to its `generations.jsonl`: lines with `id`, `question`, `answer`
        (None where the completion had none) and perhaps `sample`; the first sample is taken.

    Returns:
      Questions in the order of the first file, and reason to number of questions.

    Raises:
      ValueError: when fewer than two systems are given, a line lacks a field, or one id stands for
        two questions.
    """
    if len(paths) < 2:
        raise ValueError(f"a ranking needs two systems or more, but got {list(paths)}")
    tables = {name: _read_answers(name, path) for name, path in paths.items()}
    kept, left_out = [], {}
    for key in dict.fromkeys(key for table in tables.values() for key in table):
        rows = {name: table.get(key) for name, table in tables.items()}
        if missing := [name for name, row in rows.items() if row is None or not row[1]]:
            for name in missing:
                reason = f"no answer of {name}"
                left_out[reason] = left_out.get(reason, 0) + 1
            continue
        asked = {canonical(row[0]) for row in rows.values()}
        if len(asked) > 1:
            raise ValueError(
                f"the id {key!r} stands for different questions in the files of {list(paths)}; "
                "give each system the same questions"
            )
        question = Question(key, asked.pop(), tuple(row[1] for row in rows.values()))
        if len(question.cards()) < 2:
            left_out["all answers equal"] = left_out.get("all answers equal", 0) + 1
            continue
        kept.append(question)
    return kept, left_out


def _read_answers(name: str, path: Path) -> dict[str, tuple[str, str]]:
    """Question id to (question, answer); an answer of white space counts as none ("")."""
    found: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(files.read_jsonl(path), 1):
        if missing := [field for field in ("id", "question", "answer") if field not in row]:
            raise ValueError(f"{path}, line {number}: no {missing} for the system {name!r}")
        if row.get("sample", 0) == 0:
            found[str(row["id"])] = (row["question"], canonical(row["answer"] or ""))
    return found


def build(
    systems: Sequence[str],
    questions: Sequence[Question],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The public study and its key.

    Raises:
      ValueError: names the setting that cannot be met.
    """
    rng = np.random.default_rng(settings.seed)
    shuffled = [questions[index] for index in rng.permutation(len(questions))]
    checked, items = _split(shuffled, settings)
    given = design.assign(rng, len(items), settings.raters, settings.raters_per_item)
    if settings.repeats * 3 > min(map(len, given)):
        raise ValueError(
            f"repeats is {settings.repeats}, and a rater has only {min(map(len, given))} items; "
            f"at most a third may come twice: lower repeats to {min(map(len, given)) // 3}"
        )
    maker = _Maker(rng, shuffled, len(systems))
    foils = [maker.foil(question) for question in checked]
    # One stream of orders: what each rater sees is balanced, and so is the whole.
    orders = iter(design.display_orders(rng, sum(map(len, given)), len(systems)))
    shown = []
    raters, trials, codes = {}, {}, {}
    for index, own in enumerate(given):
        rater = f"r{index + 1:03d}"
        codes[rater] = secrets.token_hex(16)
        public = []
        for kind, place in design.session(rng, own, len(checked), settings.repeats):
            if kind == "item":
                shown.append(next(orders))
            order = shown[-1] if kind == "item" else rng.permutation(len(systems))
            question = (checked if kind == "check" else items)[place]
            foil = foils[place] if kind == "check" else None
            trial, secret = maker.trial(question, order, foil)
            public.append(trial)
            trials[trial["trial"]] = {"rater": rater, "kind": kind, **secret}
        raters[rater] = {"code_sha256": hash_code(codes[rater]), "trials": public}
    name = maker.new_id()
    study = {
        "format": FORMAT,
        "study": name,
        "title": settings.title,
        "language": settings.language,
        "dimensions": list(DIMENSIONS),
        "texts": dict(sorted(maker.texts.items())),
        "raters": raters,
    }
    key = {
        "study": name,
        "systems": list(systems),
        "settings": dataclasses.asdict(settings),
        "codes": codes,
        "trials": trials,
        "positions": design.position_counts(np.array(shown)).tolist(),
    }
    return study, key


def _split(
    questions: Sequence[Question], settings: Settings
) -> tuple[list[Question], list[Question]]:
    """Questions of the checks, and the items."""
    if settings.language not in LANGUAGES:
        raise ValueError(f"language is {settings.language!r}; allowed are {LANGUAGES}")
    for name in ("items", "checks", "repeats"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be 0 or more")
    if not 1 <= settings.raters_per_item <= settings.raters:
        raise ValueError(
            f"raters_per_item is {settings.raters_per_item}; it must be between 1 and raters "
            f"({settings.raters})"
        )
    wanted = settings.items or len(questions) - settings.checks
    if wanted < 1 or wanted + settings.checks > len(questions):
        raise ValueError(
            f"{settings.items or 'some'} items and {settings.checks} checks need as many different "
            f"questions, and {len(questions)} are usable; lower items or checks"
        )
    if settings.checks and len(questions) < 2:
        raise ValueError("a check needs the answer to another question; set checks to 0")
    checked = list(questions[: settings.checks])
    return checked, list(questions[settings.checks : settings.checks + wanted])


class _Maker:
    """Hands out random ids and collects the texts under them."""

    def __init__(self, rng: np.random.Generator, questions: Sequence[Question], systems: int):
        self._rng, self._questions, self._systems = rng, questions, systems
        self._ids: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def new_id(self) -> str:
        return self._rng.bytes(8).hex()

    def text(self, text: str) -> str:
        if text not in self._ids:
            self._ids[text] = self.new_id()
            self.texts[self._ids[text]] = text
        return self._ids[text]

    def foil(self, question: Question) -> tuple[int, str]:
        """The system whose answer is replaced, and an answer to another question in its place."""
        for index in self._rng.permutation(len(self._questions)):
            other = self._questions[index]
            strange = [text for text in other.cards() if text not in question.cards()]
            if other.text != question.text and strange:
                chosen = strange[self._rng.integers(len(strange))]
                return int(self._rng.integers(self._systems)), chosen
        raise ValueError(
            "every answer to another question is an answer to this one too, so an attention check "
            "cannot be made; set checks to 0"
        )

    def trial(
        self, question: Question, order: Sequence[int], foil: tuple[int, str] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the rater gets, and what the key says of it."""
        if foil is not None:
            answers = list(question.answers)
            answers[foil[0]] = foil[1]
            question = dataclasses.replace(question, answers=tuple(answers))
        cards = question.cards()
        ids = {text: self.new_id() for text in cards}
        # A card of several systems stands where the first of them would.
        placed = dict.fromkeys(canonical(question.answers[system]) for system in order)
        public = {
            "trial": self.new_id(),
            "question": self.text(question.text),
            "cards": [[ids[text], self.text(text)] for text in placed],
        }
        secret = {
            "question": question.id,
            "cards": {ids[text]: owners for text, owners in cards.items()},
            "foil": ids[foil[1]] if foil is not None else None,
        }
        return public, secret


def hash_code(code: str) -> str:
    """What `study.json` holds of a rater's code, which has 128 random bits."""
    return hashlib.sha256(code.encode("utf-8")).hexdigest()


def trials_of(study: Mapping[str, Any], rater: str) -> list[dict[str, Any]]:
    """The rater's trials with their texts: `trial`, `question`, and `cards` of `id` and `text`."""
    texts = study["texts"]
    return [
        {
            "trial": trial["trial"],
            "question": texts[trial["question"]],
            "cards": [{"id": card, "text": texts[text]} for card, text in trial["cards"]],
        }
        for trial in study["raters"][rater]["trials"]
    ]


def write(folder: Path, study: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """`study.json` and `key.json`, the latter for its owner's eyes alone.

    Raises:
      FileExistsError: a study is there already; its key and codes are not to be lost.
    """
    for name in ("study.json", "key.json"):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists; choose another --output or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "key.json.partial", os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(descriptor)  # files.whole opens it again and keeps the mode
    files.write_json(folder / "key.json", dict(key))
    files.write_json(folder / "study.json", dict(study))


def read(path: Path) -> dict[str, Any]:
    """A `study.json`.

    Raises:
      ValueError: it is none, or one of another version.
    """
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(study, dict) or study.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no study of this version; give a study.json that `build` wrote"
        )
    return study
