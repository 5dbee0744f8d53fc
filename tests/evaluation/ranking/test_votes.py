import concurrent.futures
import json
import os
import subprocess
import sys

import pytest

from empathy_jax import files
from empathy_jax.evaluation.ranking import votes
from tests.conftest import ROOT
from tests.evaluation.ranking.small_study import make_study, make_vote

PUBLIC, _ = make_study()
RATER = "r001"


@pytest.fixture
def log(tmp_path):
    opened = votes.VoteLog(tmp_path / "votes.jsonl", PUBLIC)
    yield opened
    opened.close()


def _spoilt(**changes):
    return make_vote(PUBLIC, RATER) | changes


CARDS = [card for card, _ in PUBLIC["raters"][RATER]["trials"][0]["cards"]]
SAME = dict.fromkeys(PUBLIC["dimensions"], CARDS)


@pytest.mark.parametrize(
    "vote",
    [
        None,
        [],
        _spoilt(trial=make_vote(PUBLIC, "r002")["trial"]),
        _spoilt(trial=["x"]),
        _spoilt(revision=0),
        _spoilt(revision=True),
        _spoilt(revision=1.0),
        _spoilt(seconds=float("nan")),
        _spoilt(seconds=-1),
        _spoilt(rankings={**SAME, "fluency": CARDS[:2]}),
        _spoilt(rankings={**SAME, "fluency": [CARDS[0], *CARDS[:2]]}),
        _spoilt(rankings={**SAME, "fluency": [*CARDS[:2], 3]}),
        _spoilt(rankings={**SAME, "fluency": "abc"}),
        _spoilt(rankings={**SAME, "extra": CARDS}),
        _spoilt(rankings={"overall": CARDS}),
    ],
)
def test_what_is_no_vote_is_refused_and_leaves_no_trace(log, tmp_path, vote):
    with pytest.raises(ValueError):
        log.add(RATER, vote)
    assert (tmp_path / "votes.jsonl").read_bytes() == b""


def test_a_vote_sent_twice_counts_once(log, tmp_path):
    assert log.add(RATER, make_vote(PUBLIC, RATER)) is True
    assert log.add(RATER, make_vote(PUBLIC, RATER)) is False
    assert len(list(files.read_jsonl(tmp_path / "votes.jsonl"))) == 1


def test_a_later_revision_counts_and_an_older_one_is_a_conflict(log, tmp_path):
    first, second = make_vote(PUBLIC, RATER), make_vote(PUBLIC, RATER, revision=2)
    second["rankings"]["overall"].reverse()
    log.add(RATER, first)
    log.add(RATER, second)
    with pytest.raises(votes.Conflict):
        log.add(RATER, first)
    assert log.of(RATER) == {first["trial"]: second}
    assert votes.read([tmp_path / "votes.jsonl"], PUBLIC)[RATER, first["trial"]] == second


def test_unknown_fields_are_not_stored(log, tmp_path):
    log.add(RATER, make_vote(PUBLIC, RATER) | {"note": "x" * 1000})
    (line,) = files.read_jsonl(tmp_path / "votes.jsonl")
    assert set(line) == {"study", "rater", "received", *votes.FIELDS}


def test_each_vote_is_on_disk_before_it_is_acknowledged(log, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    log.add(RATER, make_vote(PUBLIC, RATER))
    assert len(synced) == 1 and synced[0] > 0


def test_a_vote_that_the_disk_refuses_leaves_the_file_as_it_was(log, tmp_path, monkeypatch):
    log.add(RATER, make_vote(PUBLIC, RATER))
    before = (tmp_path / "votes.jsonl").read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "fsync", full)
        log.add(RATER, make_vote(PUBLIC, RATER, place=1))
    assert (tmp_path / "votes.jsonl").read_bytes() == before
    assert log.add(RATER, make_vote(PUBLIC, RATER, place=1)) is True


def test_a_torn_line_is_cut_before_the_next_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    log = votes.VoteLog(path, PUBLIC)
    log.add(RATER, make_vote(PUBLIC, RATER))
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    log = votes.VoteLog(path, PUBLIC)
    log.add(RATER, make_vote(PUBLIC, RATER, place=1))
    log.close()
    assert [len(json.loads(line)["trial"]) for line in path.read_text().splitlines()] == [16, 16]


def test_votes_of_a_killed_process_are_there(tmp_path):
    """A process that is killed right after `add` returns has lost nothing it said it stored."""
    program = f"""
import os, pathlib, signal
from empathy_jax.evaluation.ranking import votes
from tests.evaluation.ranking.small_study import make_study, make_vote
public, _ = make_study()
log = votes.VoteLog(pathlib.Path({str(tmp_path)!r}, "votes.jsonl"), public)
log.add("r001", make_vote(public, "r001"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(votes.read([tmp_path / "votes.jsonl"], PUBLIC)) == 1


def test_two_servers_do_not_share_a_file(log, tmp_path):
    with pytest.raises(ValueError, match="in use"):
        votes.VoteLog(tmp_path / "votes.jsonl", PUBLIC)


def test_votes_at_the_same_time_are_whole_lines(log, tmp_path):
    jobs = [
        (rater, make_vote(PUBLIC, rater, place))
        for rater in PUBLIC["raters"]
        for place in range(len(PUBLIC["raters"][rater]["trials"]))
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda job: log.add(*job), jobs * 3))
    assert sum(stored) == len(jobs)
    assert len(list(files.read_jsonl(tmp_path / "votes.jsonl"))) == len(jobs)


def test_saved_pages_are_read_beside_logs(log, tmp_path):
    log.add(RATER, make_vote(PUBLIC, RATER))
    newer = make_vote(PUBLIC, RATER, revision=3)
    saved = {"study": PUBLIC["study"], "rater": RATER, "votes": [newer]}
    files.write_json(tmp_path / "saved.json", saved)
    found = votes.read([tmp_path / "saved.json", tmp_path / "votes.jsonl"], PUBLIC)
    assert found == {(RATER, newer["trial"]): newer}


def test_all_that_cannot_be_read_is_named_at_once(tmp_path):
    good = {"study": PUBLIC["study"], "rater": RATER, **make_vote(PUBLIC, RATER)}
    lines = [good, {**good, "study": "x"}, {**good, "rater": "r9"}, {**good, "revision": 0}]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    (tmp_path / "saved.json").write_text("[]")
    with pytest.raises(ValueError) as error:
        votes.read([path, tmp_path / "saved.json"], PUBLIC)
    assert str(error.value).count("\n") == 5
    for part in ("line 2: of another", "line 3: no rater", "line 4: revision", "line 5: not JSON"):
        assert part in str(error.value)
