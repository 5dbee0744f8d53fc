"""Votes: what a valid one is, how it is kept, how it is read again.

A vote ranks the cards of one trial on every dimension. Its `revision` counts how often the rater
has sent that trial anew; the highest one counts, so a vote that arrives twice counts once.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from empathy_jax import files

FIELDS = ("trial", "revision", "rankings", "seconds")


class Conflict(ValueError):
    """Another vote on the trial was stored first, from another tab or device."""


def check(vote: Any, trials: Mapping[str, set[str]], dimensions: Iterable[str]) -> dict[str, Any]:
    """The vote with its known fields only.

    Args:
      vote: `trial`, `revision` (1 and up), `rankings` (dimension to card ids, the best first) and
        `seconds` that the rater spent.
      trials: the rater's trials, each with the ids of its cards.

    Raises:
      ValueError: what is wrong, without any text of the vote.
    """
    if not isinstance(vote, dict) or not isinstance(vote.get("trial"), str):
        raise ValueError("a vote is an object with trial, revision, rankings and seconds")
    if vote["trial"] not in trials:
        raise ValueError("the trial is none of this rater's")
    revision, seconds = vote.get("revision"), vote.get("seconds")
    if type(revision) is not int or not 1 <= revision <= 10**6:
        raise ValueError("revision must be an integer from 1 to 1000000")
    if type(seconds) not in (int, float) or not 0 <= seconds <= 10**7:
        raise ValueError("seconds must be a number from 0 to 10000000")
    cards, rankings = trials[vote["trial"]], vote.get("rankings")
    dimensions = tuple(dimensions)
    if not isinstance(rankings, dict) or set(rankings) != set(dimensions):
        raise ValueError(f"rankings must have exactly the dimensions {dimensions}")
    for dimension in dimensions:
        ranked = rankings[dimension]
        if (
            not isinstance(ranked, list)
            or not all(isinstance(card, str) for card in ranked)
            or sorted(ranked) != sorted(cards)
        ):
            raise ValueError(f"{dimension} must hold each card of the trial once")
    return {field: vote[field] for field in FIELDS}


def cards_by_rater(study: Mapping[str, Any]) -> dict[str, dict[str, set[str]]]:
    """Rater to trial to the ids of its cards."""
    return {
        rater: {trial["trial"]: {card for card, _ in trial["cards"]} for trial in entry["trials"]}
        for rater, entry in study["raters"].items()
    }


class VoteLog:
    """The votes of a running study: an append-only JSONL file, each line on disk when `add` returns.

    One process at a time: the file is locked.
    """

    def __init__(self, path: Path, study: Mapping[str, Any]):
        self._study, self._cards = study, cards_by_rater(study)
        self._lock = threading.Lock()
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115, it is open as long as the server
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{path} is in use by another server; stop it first") from None
        self._path = path
        self._cut_torn_line()
        _sync_folder(path.parent)
        self._last = read([path], study)

    def close(self) -> None:
        self._file.close()

    def of(self, rater: str) -> dict[str, dict[str, Any]]:
        """The rater's votes that count, by trial."""
        with self._lock:
            return {trial: vote for (who, trial), vote in self._last.items() if who == rater}

    def add(self, rater: str, vote: Any) -> bool:
        """Stores a vote durably; False where it is stored already.

        Raises:
          ValueError: it is not valid.
          Conflict: another vote with this revision or a later one is stored.
          OSError: the disk refused it; the file is as it was.
        """
        vote = check(vote, self._cards[rater], self._study["dimensions"])
        with self._lock:
            before = self._last.get((rater, vote["trial"]))
            if before is not None and vote["revision"] <= before["revision"]:
                if vote["rankings"] == before["rankings"]:
                    return False
                raise Conflict("another vote on this trial was stored first")
            line = {"study": self._study["study"], "rater": rater, **vote, "received": time.time()}
            self._append((files.dumps(line) + "\n").encode("utf-8"))
            self._last[rater, vote["trial"]] = vote
            return True

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError("short write")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise files.explain(error, self._path) from error

    def _cut_torn_line(self) -> None:
        """A process that was killed may have left half a line: no rater was told it is stored."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file.fileno(), whole)


def read(paths: Iterable[Path], study: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The votes that count, by (rater, trial), of server logs (.jsonl) and saved pages (.json).

    Raises:
      ValueError: all lines that are no votes of this study, each with file and place.
    """
    cards, found, wrong = cards_by_rater(study), {}, []
    for path in paths:
        for place, line in _lines(path, wrong):
            if not isinstance(line, dict) or line.get("study") != study["study"]:
                wrong.append(f"{path}, {place}: of another study")
                continue
            try:
                rater = line.get("rater")
                if rater not in cards:
                    raise ValueError("no rater of this study")
                vote = check(line, cards[rater], study["dimensions"])
            except ValueError as error:
                wrong.append(f"{path}, {place}: {error}")
                continue
            before = found.get((rater, vote["trial"]))
            if before is None or vote["revision"] > before["revision"]:
                found[rater, vote["trial"]] = vote
    if wrong:
        raise ValueError("these votes cannot be read:\n" + "\n".join(wrong))
    return found


def _lines(path: Path, wrong: list[str]) -> Iterable[tuple[str, Any]]:
    """Records of a file with their places; a cut last line of a log is left out."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                yield f"line {number}", json.loads(line)
            except ValueError:
                wrong.append(f"{path}, line {number}: not JSON")
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        for number, vote in enumerate(saved["votes"], 1):
            yield f"vote {number}", {**vote, "study": saved["study"], "rater": saved["rater"]}
    except (ValueError, KeyError, TypeError):
        wrong.append(f"{path}: not the file of votes that the page saves")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
