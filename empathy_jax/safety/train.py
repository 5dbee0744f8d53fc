"""Makes the learned part of the grading of risk: `python -m empathy_jax.safety.train`.

Logistic regression with an L2 penalty, one for each of `learned.TARGETS`, on the texts of `training_texts/`
and on the written cases of `PARTS`. The highest window of a text counts as the text: of a text that meets
the target only that window is learned from, chosen by a first model of texts of one window; of any other
text all windows are (multiple-instance learning, Andrews et al. 2002, https://papers.nips.cc/paper/2232).
Thresholds and the printed figures come from cross-validation by file: a file is never on both sides.

Nothing is drawn at random: the same texts give the same `weights.json`.
"""

import hashlib
import importlib.resources
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from empathy_jax.files import write_text
from empathy_jax.safety import learned, measure, risk
from empathy_jax.safety.learned import TARGETS, Weights, Window
from empathy_jax.safety.measure import URGENT, Share

PARTS = ("dev", "held_out_1", "held_out_2", "held_out_3")  # read long ago; later parts are not
FOLDS = 6
FALSE_ALARMS = {"noticed": 0.10, "urgent": 0.05}  # of texts of grade 0, by rules and model together
PENALTY = 0.03
FEWEST_TEXTS = 2  # in which a feature must occur
DECIMALS = 3
_SMALLEST = 0.02  # weights below it are left out


class Text(NamedTuple):
    """A text to learn from.

    Attributes:
      text: what a person writes.
      language: "zh" or "en".
      grade: 0 to 6.
      group: the file or part that it was written in.
      difficulty: of a case; "" otherwise.
    """

    text: str
    language: str
    grade: int
    group: str
    difficulty: str = ""


def texts() -> list[Text]:
    """All texts to learn from: the training texts by file, then the cases that have a grade."""
    folder = importlib.resources.files("empathy_jax.safety") / "training_texts"
    files = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
    written = [
        Text(**json.loads(line), group=Path(file.name).stem)
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    cases = [case for part in PARTS for case in measure.load(part) if case.grade is not None]
    return written + [
        Text(case.text, case.language, case.grade, case.part, case.difficulty) for case in cases
    ]


def fingerprint(chosen: Sequence[Text]) -> str:
    """SHA-256 of the texts and their grades, by which weights tell what they were made from."""
    content = json.dumps([[one.text, one.grade] for one in chosen], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def fit(read: Sequence[Sequence[Window]], grades: np.ndarray) -> Weights:
    """A model of texts, given as their windows, and their grades; its thresholds are 0."""
    counts = Counter(name for some in read for name in {n for one in some for n in one.values})
    names = sorted(name for name, count in counts.items() if count >= FEWEST_TEXTS)
    owners = np.repeat(np.arange(len(read)), [len(some) for some in read])
    matrix = _matrix([one for some in read for one in some], names)
    columns = [_fit_target(matrix, owners, grades >= least) for least in TARGETS.values()]
    rounded = np.round(np.stack(columns, axis=1), DECIMALS)
    kept = {
        name: tuple(row.tolist())
        for name, row in zip(names, rounded[:-1], strict=True)
        if np.abs(row).max() >= _SMALLEST
    }
    return Weights(kept, tuple(rounded[-1].tolist()), (0.0,) * len(TARGETS))


def _matrix(read: Sequence[Window], names: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Values of features, a row for each window; the last column is 1 for the bias."""
    number = {name: index for index, name in enumerate(names)}
    rows, columns, values = [], [], []
    for row, window in enumerate(read):
        for name, value in window.values.items():
            if name in number:
                rows.append(row)
                columns.append(number[name])
                values.append(value)
    shape = len(read), len(names)
    table = scipy.sparse.csr_matrix((values, (rows, columns)), shape=shape)
    return scipy.sparse.hstack([table, np.ones((len(read), 1))], format="csr")


def _fit_target(matrix: scipy.sparse.csr_matrix, owners: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Weights and bias of one target.

    Args:
      matrix: windows [W, F + 1].
      owners: the text of each window [W].
      met: whether the text meets the target [N].
    """
    alone = np.bincount(owners)[owners] == 1
    chosen = alone | ~met[owners]
    first = _logistic(matrix[chosen], met[owners[chosen]], np.zeros(matrix.shape[1]))
    scores, highest = matrix @ first, np.full(len(met), -np.inf)
    np.maximum.at(highest, owners, scores)
    chosen = ~met[owners] | (scores == highest[owners])
    return _logistic(matrix[chosen], met[owners[chosen]], first)


def _logistic(matrix: scipy.sparse.csr_matrix, met: np.ndarray, start: np.ndarray) -> np.ndarray:
    """argmin Σ log(1 + exp(−y w·x)) + PENALTY/2 ‖w‖², the bias not penalised, y = ±1."""
    sign, transposed = np.where(met, 1.0, -1.0), matrix.T.tocsr()
    penalty = np.append(np.full(matrix.shape[1] - 1, PENALTY), 0.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (matrix @ weights)
        slope = -sign * scipy.special.expit(-margins)
        value = np.logaddexp(0, -margins).sum() + 0.5 * (penalty * weights) @ weights
        return value, transposed @ slope + penalty * weights

    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-10, "gtol": 1e-4}
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.x


def cross_validate(chosen: Sequence[Text], read: Sequence[Sequence[Window]]) -> np.ndarray:
    """Scores of texts [N, targets] by models that saw none of their group."""
    groups = sorted({one.group for one in chosen})
    fold = np.array([groups.index(one.group) % FOLDS for one in chosen])
    grades = np.array([one.grade for one in chosen])
    found = np.zeros((len(chosen), len(TARGETS)))
    for held in range(FOLDS):
        inside, outside = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        model = fit([read[index] for index in inside], grades[inside])
        for index in outside:
            found[index] = np.max([learned.scores(model, one) for one in read[index]], axis=0)
    return found


def thresholds(scores: np.ndarray, grades: np.ndarray, rules: np.ndarray) -> tuple[float, ...]:
    """For each target the lowest threshold at which `FALSE_ALARMS` holds of the rules and the model.

    Args:
      scores: of texts, in cross-validation [N, targets].
      grades, rules: what the texts are graded by hand and by the rules alone [N].
    """
    innocent = grades == 0
    found = []
    for target, (name, least) in enumerate(TARGETS.items()):
        left = innocent & (rules < least)
        falling = np.sort(scores[left, target])[::-1]
        allowed = int(FALSE_ALARMS[name] * innocent.sum()) - (innocent.sum() - left.sum())
        found.append(round(float(falling[max(allowed, 0)]) + 10.0**-DECIMALS, DECIMALS))
    return tuple(found)


def report(
    chosen: Sequence[Text], scores: np.ndarray, limits: Sequence[float], rules: np.ndarray
) -> str:
    """Recall and false alarms in cross-validation, with and without the rules.

    Args:
      chosen, scores: as in `cross_validate`.
      limits: `thresholds`.
      rules: what the rules alone grade each text.
    """
    urgent, noticed = scores[:, 1] >= limits[1], scores[:, 0] >= limits[0]
    graded = {
        "rules": rules >= URGENT,
        "learned": urgent,
        "both": urgent | (rules >= URGENT),
    }
    groups: dict[str, list[int]] = {"all": list(range(len(chosen)))}
    for field in ("language", "difficulty", "group"):
        for index, one in enumerate(chosen):
            if name := getattr(one, field):
                groups.setdefault(f"{field} {name}", []).append(index)
    lines = []
    for name, indices in groups.items():
        grades = np.array([chosen[index].grade for index in indices])
        parts = {
            "recall": grades >= URGENT,
            "false": grades == 0,
            "raised": (grades > 0) & (grades < URGENT),
        }
        for way, flags in graded.items():
            shares = {
                kind: Share(int(flags[indices][mask].sum()), int(mask.sum()))
                for kind, mask in parts.items()
            }
            lines.append(f"{name:26} {way:8}" + "".join(f"  {k} {v}" for k, v in shares.items()))
        some = (noticed | urgent | (rules >= 1))[indices]
        lines.append(
            f"{name:26} not 0   "
            + "".join(f"  {k} {Share(int(some[m].sum()), int(m.sum()))}" for k, m in parts.items())
        )
    return "\n".join(lines)


def write(path: Path, model: Weights, made_from: str) -> None:
    """Writes weights, a line for each feature, so that a change can be read."""
    document: Mapping[str, object] = {
        "made_from": made_from,
        "targets": list(TARGETS),
        "biases": model.biases,
        "thresholds": model.thresholds,
    }
    head = json.dumps(document, indent=0)[:-2]
    rows = [
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(values)}"
        for name, values in model.features.items()
    ]
    write_text(path, head + ',\n"features": {\n' + ",\n".join(rows) + "\n}\n}\n")


def main(arguments: Sequence[str]) -> None:
    """Trains on all texts, prints the cross-validation, writes the weights to a path or in place."""
    default = Path(__file__).with_name("weights.json")
    path = Path(arguments[0]) if arguments else default
    chosen = texts()
    read = [risk.windows(one.text) for one in chosen]
    grades = np.array([one.grade for one in chosen])
    scores = cross_validate(chosen, read)
    rules = np.array([risk.grade(one.text, learned=False).grade for one in chosen])
    limits = thresholds(scores, grades, rules)
    print(report(chosen, scores, limits, rules))
    model = fit(read, grades)._replace(thresholds=limits)
    write(path, model, fingerprint(chosen))
    print(f"{len(model.features)} features, thresholds {limits}: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
