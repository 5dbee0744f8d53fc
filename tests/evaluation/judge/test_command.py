"""The command line against real servers: two judges, resume, budget, faults, people."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from empathy_jax import files
from empathy_jax.evaluation.judge import __main__ as command
from empathy_jax.evaluation.ranking import DIMENSIONS, study
from tests.conftest import ROOT
from tests.evaluation.judge import judge_server
from tests.evaluation.judge.test_people import vote_all

GRADES = {"ours": "好", "base": "中", "last": "差"}
QUESTIONS = 6
PAIR_REQUESTS = QUESTIONS * 3 * 2


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def systems(tmp_path):
    """Three systems' answers, one of them good throughout, one bad; ids as the phase writes them."""
    for name, grade in GRADES.items():
        rows = [
            {"id": f"q{n}", "question": f"信{n}", "answer": f"第{n}封：{grade}", "sample": 0}
            for n in range(QUESTIONS)
        ]
        files.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def arguments(folder, judges, *further, systems=GRADES, mode="pairwise", output="judged"):
    """Of the command; `judges` maps a judge's name to its server."""
    found = [f"--system={name}={folder / name}.jsonl" for name in systems]
    for name, server in judges.items():
        found += [f"--judge={name}={server.base_url},{name}-model"]
        found += [f"--price={name}=1,2", f"--api-key-env={name}=none"]
    found += [f"--mode={mode}", f"--output={folder / output}"]
    return [
        *found,
        "--max-tokens=1000000",
        "--max-money=1",
        "--max-completion-tokens=500",
        *further,
    ]


def result(folder, output="judged"):
    return json.loads((folder / output / "analysis.json").read_text(encoding="utf-8"))


def test_pairs_by_two_judges_that_agree(systems, capsys):
    honest, other = judge_server.by_words("好中差"), judge_server.by_words("好差中")
    with judge_server.serving({"one-model": honest, "two-model": other}) as server:
        command.main(arguments(systems, {"one": server, "two": server}))
        assert len(server.asked) == 2 * PAIR_REQUESTS
        found = result(systems)
        overall = found["judges"]["one"]["dimensions"]["overall"]
        assert overall["outcomes"]["decided"] == 18 and overall["consistency"]["value"] == 1
        assert overall["wins"] == [[None, 1, 1], [0, None, 1], [0, 0, None]]
        assert overall["systems"]["ours"]["win_at_1"]["value"] == 1
        assert overall["systems"]["last"]["mean_rank"]["value"] == 3
        assert overall["first_shown"] == {"value": 0.5, "low": 0.5, "high": 0.5}
        between = found["agreement"]["overall"]
        # They differ on one pair of three.
        assert between["pairs"] == between["decided"] == 18
        assert (
            between["kappa"]["value"] == between["kappa_decided"]["value"] == pytest.approx(1 / 3)
        )
        assert between["tau"]["value"] == pytest.approx(1 / 3)
        assert found["stopped"] is None and found["people"] is None
        tokens = judge_server.PROMPT_TOKENS + judge_server.COMPLETION_TOKENS
        assert found["spent"]["tokens"] == 2 * PAIR_REQUESTS * tokens
        lines = list(files.read_jsonl(systems / "judged" / "judgements.jsonl"))
        assert len(lines) == 2 * PAIR_REQUESTS and set(lines[0]["orders"]) == set(DIMENSIONS)
        for line in lines[:PAIR_REQUESTS]:
            better, worse = line["orders"]["overall"]
            assert [better, worse] == sorted(
                [better, worse], key=lambda own: "好中差".index(GRADES[own[0]])
            )
            assert sorted(line["shown"]) == sorted([better, worse]) and line["judge"] == "one"
        assert "ours" in (systems / "judged" / "tables.md").read_text(encoding="utf-8")
        # Nothing names a system to a judge, and nothing is asked again.
        assert not any(name in json.dumps(asked) for asked in server.asked for name in GRADES)
        command.main(arguments(systems, {"one": server, "two": server}))
        assert len(server.asked) == 2 * PAIR_REQUESTS and result(systems) == found
    assert "0 of 36 requests are left" in capsys.readouterr().out


def test_a_further_system_costs_its_own_comparisons_only(systems):
    with judge_server.serving({"one-model": judge_server.by_words("好中差")}) as server:
        two = ("ours", "last")
        command.main(arguments(systems, {"one": server}, systems=two))
        assert len(server.asked) == QUESTIONS * 2
        command.main(arguments(systems, {"one": server}))
        assert len(server.asked) == PAIR_REQUESTS
        # Another temperature makes other requests.
        warm = '--extra-body={"temperature": 1}'
        command.main(arguments(systems, {"one": server}, warm, "--items=2", systems=two))
        assert len(server.asked) == PAIR_REQUESTS + 4


def test_a_judge_that_always_takes_the_first_place_decides_nothing(systems):
    judges = {"one-model": lambda messages: judge_server.prefer([0, 1])}
    with judge_server.serving(judges) as server:
        command.main(arguments(systems, {"one": server}))
    overall = result(systems)["judges"]["one"]["dimensions"]["overall"]
    assert overall["outcomes"]["flipped"] == 18 and overall["outcomes"]["decided"] == 0
    assert overall["first_shown"]["value"] == 1 and overall["consistency"]["value"] == 0
    assert overall["systems"]["ours"]["wins"]["value"] == 0
    assert overall["systems"]["ours"]["log_strength"]["value"] is None
    assert overall["systems"]["ours"]["win_at_1"]["value"] == pytest.approx(1 / 3)


def test_lists_and_people_who_ranked_the_same_answers(systems):
    paths = {name: systems / f"{name}.jsonl" for name in GRADES}
    questions, _ = study.read_questions(paths)
    settings = study.Settings(raters=3, raters_per_item=3, checks=1, repeats=1)
    public, key = study.build(list(GRADES), questions, settings)
    study.write(systems / "study", public, key)
    votes = vote_all(public, key, lambda rater: "中好差" if rater == "r001" else "好中差")
    lines = [
        {"study": public["study"], "rater": rater, **vote} for (rater, _), vote in votes.items()
    ]
    files.write_jsonl(systems / "study" / "votes.jsonl", lines)
    human = [f"--{name}={systems / 'study' / name}.json" for name in ("study", "key")]
    human += ["--votes", str(systems / "study" / "votes.jsonl")]
    with judge_server.serving({"one-model": judge_server.by_words("好中差")}) as server:
        command.main(arguments(systems, {"one": server}, *human, mode="listwise"))
        assert len(server.asked) == QUESTIONS * 2
        for (_, first), (_, second) in zip(server.asked[::2], server.asked[1::2], strict=True):
            assert len(judge_server.shown(first)) == len(judge_server.shown(second)) == 3
    found = result(systems)
    assert (
        found["judges"]["one"]["dimensions"]["overall"]["systems"]["ours"]["win_at_1"]["value"] == 1
    )
    people = found["people"]["judges"]["one"]["overall"]
    assert found["people"]["votes"] == 15 and people["kappa"]["value"] == 1
    assert people["systems_tau"] == people["tau"]["value"] == 1
    assert people["votes"]["value"] == pytest.approx(8 / 9)
    assert people["people_votes"]["value"] == pytest.approx((2 + 1 / 3) / 3)
    text = (systems / "judged" / "tables.md").read_text(encoding="utf-8")
    assert "## Agreement with people" in text
    with pytest.raises(SystemExit, match="belong together"):
        command.main(arguments(systems, {"one": server}, human[0]))


def test_one_repair_is_tried_and_failures_are_counted(systems):
    honest = judge_server.by_words("好中差")

    def clumsy(messages):
        """Broken at first on question 0, always on question 1; refuses 2; has nothing for 3."""
        text = messages[-1]["content"]
        again = "上一次的输出不合要求" in text
        if "第0封" in text and not again:
            return "```json\n" + honest(messages) + "\n```"
        if "第1封" in text:
            return "A"
        return "400" if "第3封" in text else honest(messages)

    with judge_server.serving({"one-model": clumsy}) as server:
        command.main(arguments(systems, {"one": server}, "--retries=0", "--concurrency=2"))
        # Two turns for two questions, one for four.
        assert len(server.asked) == PAIR_REQUESTS + 2 * 6
        found = result(systems)
        requests = found["judges"]["one"]["requests"]
        assert requests == {
            "all": 36, "verdicts": 24, "repaired": 6, "faults": {"no_reply": 6, "not_json": 6}
        }  # fmt: skip
        overall = found["judges"]["one"]["dimensions"]["overall"]
        assert overall["outcomes"]["missing"] == 6 and overall["outcomes"]["decided"] == 12
        # What had no reply is asked again; what had a bad one twice is not.
        command.main(arguments(systems, {"one": server}, "--retries=0"))
        assert len(server.asked) == PAIR_REQUESTS + 3 * 6


def test_a_judge_that_cannot_be_asked_does_not_keep_the_other_from_its_work(systems):
    judges = {"one-model": judge_server.by_words("好中差"), "two-model": lambda messages: "404"}
    with judge_server.serving(judges) as server:
        with pytest.raises(SystemExit, match=r"two: .* answered 404: as planned; check --judge"):
            command.main(arguments(systems, {"one": server, "two": server}))
        assert len(server.asked) == PAIR_REQUESTS + 1
    found = result(systems)
    assert found["judges"]["one"]["requests"]["verdicts"] == PAIR_REQUESTS
    assert found["judges"]["two"]["requests"]["all"] == 0
    assert found["agreement"]["overall"]["pairs"] == 0
    assert found["agreement"]["overall"]["kappa"]["value"] is None


def test_the_budget_holds_and_the_command_goes_on(systems):
    with judge_server.serving({"one-model": judge_server.by_words("好中差")}) as server:
        small = arguments(systems, {"one": server}, "--max-tokens=20000")
        with pytest.raises(SystemExit, match=r"one: the budget of 20000 tokens .*--max-tokens"):
            command.main(small)
        found = result(systems)
        assert "budget" in found["stopped"] and 0 < len(server.asked) < PAIR_REQUESTS
        assert found["spent"]["tokens"] <= 20000
        assert found["judges"]["one"]["requests"]["all"] == len(server.asked)
        command.main(arguments(systems, {"one": server}))
        assert len(server.asked) == PAIR_REQUESTS and result(systems)["stopped"] is None


def test_killed_it_goes_on_and_no_reply_is_paid_for_twice(systems):
    honest = judge_server.by_words("好中差")

    def slow(messages):
        time.sleep(0.05)
        return honest(messages)

    with judge_server.serving({"one-model": slow}) as server:
        flags = arguments(systems, {"one": server}, "--concurrency=2")
        program = [sys.executable, "-m", "empathy_jax.evaluation.judge", *flags]
        process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while len(server.asked) < 8:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        journal = systems / "judged" / "requests.jsonl"
        answered = [e["id"] for e in files.read_jsonl(journal) if e["event"] == "answered"]
        command.main(flags)
        asked = [e["id"] for e in files.read_jsonl(journal) if e["event"] == "asked"]
        again = {id_ for id_ in asked if asked.count(id_) > 1}
        assert not again & set(answered) and len(again) <= 2
        assert len(set(asked)) == PAIR_REQUESTS
        assert result(systems)["judges"]["one"]["requests"]["verdicts"] == PAIR_REQUESTS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--judge=one=http://127.0.0.1:1/v1"], "give NAME=BASE_URL,MODEL"),
        (["--judge=one=ftp://x,m"], "--judge is 'ftp://x'"),
        (["--judge=two=http://127.0.0.1:1/v1,m"], "--price is missing for .'two'."),
        (["--price=one=1"], "two numbers"),
        (["--price=one=-1,1"], "--price is -1.0"),
        (["--api-key-env=x=NAME"], r"--api-key-env names \['x'\]"),
        (["--api-key-env=one=EMPATHY_ABSENT"], "EMPATHY_ABSENT is not set"),
        (["--concurrency=0"], "--concurrency is 0"),
        (["--timeout=0"], "--timeout must be above 0"),
        (["--extra-body={"], "--extra-body is not JSON"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(systems, changes, words):
    base = {
        "--judge": "one=http://127.0.0.1:1/v1,m",
        "--price": "one=0,0",
        "--api-key-env": "one=none",
    }
    base |= dict(change.split("=", 1) for change in changes)
    flags = [f"--system={name}={systems / name}.jsonl" for name in GRADES]
    flags += [
        "--mode=pairwise",
        f"--output={systems / 'judged'}",
        "--max-tokens=9",
        "--max-money=0",
    ]
    with pytest.raises(SystemExit, match=words):
        command.main([*flags, *(f"{name}={value}" for name, value in base.items())])
    assert not (systems / "judged").exists() or not os.listdir(systems / "judged")
