"""The phase annotate through the command line, against a real server: end, budget, kill, refusals."""

import json
import os
import signal
import subprocess
import sys

import pytest

from configs import annotate as annotate_config
from empathy_jax import files, main
from empathy_jax.corpus import readers
from empathy_jax.corpus.annotate import Settings
from empathy_jax.endpoint.client import Endpoint
from empathy_jax.endpoint.conversations import Terms
from empathy_jax.endpoint.journal import Prices
from empathy_jax.training import annotate as phase
from tests.conftest import ROOT
from tests.corpus import teacher_server
from tests.training import tiny_runs

KEY_VARIABLE = "EMPATHY_TEST_KEY"
LETTERS = [f"第{i:02d}封：他走了以后，家里太安静，我不知道怎么过周末。" for i in range(24)]


@pytest.fixture(scope="module")
def server():
    with teacher_server.serving() as teacher:
        yield teacher


@pytest.fixture
def values(server, tmp_path, monkeypatch):
    """Fields of a run that works, by name."""
    monkeypatch.setenv(KEY_VARIABLE, teacher_server.KEY)
    files.write_jsonl(tmp_path / "questions.jsonl", [{"question": text} for text in LETTERS])
    return {
        "data.questions": str(tmp_path / "questions.jsonl"),
        "annotate.base_url": server.base_url,
        "annotate.model": teacher_server.MODEL,
        "annotate.api_key_env": KEY_VARIABLE,
        "annotate.prompt_price": 1.0,
        "annotate.completion_price": 2.0,
        "annotate.concurrency": 4,
        "annotate.backoff": 0.05,
        "annotate.max_completion_tokens": 500,
    }


def _config(values):
    config = annotate_config.get_config("tiny")
    config.update_from_flattened_dict(values)
    return config


def _command(workdir, values):
    return [
        sys.executable, "-m", "empathy_jax.main", "--config=configs/annotate.py",
        f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items()),
    ]  # fmt: skip


def _asked(server):
    bodies = [request["body"]["messages"][1]["content"] for request in server.requests()]
    return [sum(text in body for body in bodies) for text in LETTERS]


def test_from_questions_to_chains_that_training_reads(server, values, tmp_path, capsys):
    server.plan({"第03封": ["no_layer", "good"], "第05封": ["refusal"]})
    summary = main.run(_config(values), str(tmp_path / "run"))["annotate"]
    folder = tmp_path / "run" / "annotate"
    chains, rejects = readers.read_chains(folder / "chains.jsonl")
    assert len(chains) == 23 and rejects == []
    (reject,) = files.read_jsonl(folder / "rejected.jsonl")
    assert (reject["question"], reject["reason"]) == (LETTERS[5], "refusal")
    by_name = {figure["name"]: figure for figure in summary["figures"]}
    share = by_name["share of replies that are chains, first and repaired"]
    assert (share["before"], share["after"]) == (round(22 / 24, 4), round(23 / 24, 4))
    assert by_name["chains"]["after"] == 23
    out = capsys.readouterr().out
    assert "23 chains, 1 rejected, 0 left of 24 questions" in out and "refusal 1" in out
    # Finished: nothing is asked again, and no key is needed.
    os.environ.pop(KEY_VARIABLE)
    assert main.run(_config(values), str(tmp_path / "run"))["annotate"] == summary
    assert sum(_asked(server)) == 25
    written = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    assert teacher_server.KEY not in written + out


def test_a_pilot_is_gone_on_with(server, values, tmp_path):
    server.plan()
    root = str(tmp_path / "run")
    main.run(_config({**values, "annotate.questions": 4}), root)
    assert sum(_asked(server)) == 4
    main.run(_config(values), root)
    assert _asked(server) == [1] * 24


def test_after_a_pilot_of_more_the_report_is_of_the_questions_at_hand(server, values, tmp_path):
    server.plan({"第03封": ["no_layer", "good"]})
    root = str(tmp_path / "run")
    main.run(_config({**values, "annotate.questions": 6}), root)
    report = main.run(_config({**values, "annotate.questions": 2}), root)["annotate"]["report"]
    assert report["questions"] == {"all": 2, "chains": 2, "rejected": 0, "left": 0}
    assert report["validity"] == {
        "with_reply": 2, "valid_first": 2, "repairs": 0, "valid_repaired": 0,
        "first": 1.0, "final": 1.0,
    }  # fmt: skip
    assert report["requests"]["sent"] == 7


def test_questions_without_any_reply_are_asked_again_after_the_end(
    server, values, tmp_path, monkeypatch
):
    server.plan({"第03封": ["400", "400"]})
    root = str(tmp_path / "run")
    for sent, rejects in ((24, {"model_error": 1}), (25, {"model_error": 1}), (26, {}), (26, {})):
        if sent == 26 and sum(_asked(server)) == 26:
            monkeypatch.delenv(KEY_VARIABLE)
        summary = main.run(_config(values), root)["annotate"]
        assert (sum(_asked(server)), summary["report"]["rejects"]) == (sent, rejects)
    assert _asked(server)[3] == 3


def test_out_of_budget_it_says_how_to_go_on(server, values, tmp_path):
    server.plan()
    root = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.annotate\.max_money.*raise it, and the same"):
        main.run(_config({**values, "annotate.max_money": 0.03}), root)
    assert not (tmp_path / "run" / "annotate" / "summary.json").exists()
    done = sum(_asked(server))
    assert 0 < done < 24
    summary = main.run(_config({**values, "annotate.max_money": 5.0}), root)["annotate"]
    assert summary["report"]["questions"]["chains"] == 24 and _asked(server) == [1] * 24


def test_another_teacher_needs_another_folder_once_one_has_answered(server, values, tmp_path):
    server.plan()
    root = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"404.*config\.annotate\.model \('absent'\)"):
        main.run(_config({**values, "annotate.model": "absent"}), root)
    main.run(_config({**values, "annotate.questions": 2}), root)
    with pytest.raises(ValueError, match=r"config\.annotate\.model was 'teacher-1'"):
        main.run(_config({**values, "annotate.model": "absent"}), root)


def test_too_many_unreadable_questions_are_listed_all_the_same(values, tmp_path):
    files.append_jsonl(tmp_path / "questions.jsonl", [{"question": 7}] * 3)
    config = _config({**values, "data.max_rejected": 0.01})
    with pytest.raises(ValueError, match=r"3 of 27 records.*listed in .*unreadable\.jsonl"):
        main.run(config, str(tmp_path / "run"))
    rows = list(files.read_jsonl(tmp_path / "run" / "annotate" / "unreadable.jsonl"))
    assert [row["line"] for row in rows] == [25, 26, 27]


def test_the_splits_of_the_corpus_without_test(server, values, tmp_path):
    server.plan()
    splits = tmp_path / "run" / "corpus" / "splits"
    config = _config({**values, "data.questions": ""})
    with pytest.raises(ValueError, match=r"config\.data\.questions is empty and there is no"):
        main.run(config, str(tmp_path / "run"))
    splits.mkdir(parents=True)
    records, _ = readers.read_questions(tmp_path / "questions.jsonl")
    for name, part in (("train", records[:3]), ("validation", records[3:5]), ("test", records[5:])):
        files.write_jsonl(splits / f"{name}.jsonl", part)
    main.run(config, str(tmp_path / "run"))
    assert _asked(server) == [1] * 5 + [0] * 19
    server.plan()
    main.run(_config({**values, "data.questions": str(splits)}), str(tmp_path / "named"))
    assert _asked(server) == [1] * 5 + [0] * 19
    # A file that is named is meant.
    server.plan()
    files.write_jsonl(splits / "validation.jsonl", [])
    named = {**values, "data.questions": str(splits / "train.jsonl")}
    main.run(_config(named), str(tmp_path / "train"))
    main.run(_config({**values, "data.questions": str(splits)}), str(tmp_path / "empty"))
    assert _asked(server) == [2] * 3 + [0] * 21


def test_the_command_line_killed_and_started_again(server, values, tmp_path):
    server.plan(default="slow:0.1")
    folder = tmp_path / "run" / "annotate"
    command = _command(tmp_path / "run", values)

    def ready():
        path = folder / "requests.jsonl"
        return path.exists() and path.read_bytes().count(b'"answered"') >= 8

    killed = tiny_runs.stop_when(command, ROOT, ready, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    done = tiny_runs.run_cli(command, ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["questions"]["chains"] == 24
    lost = report["requests"]["failed"].get("killed", 0)
    asked = _asked(server)
    assert min(asked) == 1 and sum(asked) - 24 <= lost <= 4


def test_sigterm_ends_after_what_is_in_flight(server, values, tmp_path):
    server.plan(default="slow:0.1")
    command = _command(tmp_path / "run", values)
    stopped = tiny_runs.stop_when(
        command, ROOT, lambda: len(server.requests()) >= 5, signal.SIGTERM
    )
    assert stopped.returncode == 0, stopped.stderr
    assert "[annotate] SIGTERM at step" in stopped.stdout and "goes on from here" in stopped.stdout
    asked = sum(_asked(server))
    answered = len(list(files.read_jsonl(tmp_path / "run" / "annotate" / "chains.jsonl")))
    assert asked == answered < 24


def test_a_wrong_key_is_one_line(server, values, tmp_path, monkeypatch):
    server.plan()
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-key-987")
    done: subprocess.CompletedProcess = tiny_runs.run_cli(_command(tmp_path / "run", values), ROOT)
    assert done.returncode == 1 and len(server.requests()) == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "401" in line and KEY_VARIABLE in line
    assert "Traceback" not in done.stderr and "sk-wrong" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["sk-pasted-0123", "gsk_pasted0123", "gsk_pasted0123456789abcdef"])
def test_a_key_given_for_its_variable_is_written_nowhere(server, values, tmp_path, name):
    server.plan()
    command = _command(tmp_path / "run", {**values, "annotate.api_key_env": name})
    done: subprocess.CompletedProcess = tiny_runs.run_cli(command, ROOT)
    assert done.returncode == 1 and "config.annotate.api_key_env" in done.stderr
    assert "pasted" not in done.stderr + done.stdout and server.requests() == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotate.base_url": ""}, r"config\.annotate\.base_url is ''"),
        ({"annotate.prompt_price": -1.0}, r"config\.annotate\.prompt_price is -1"),
        ({"annotate.questions": -1}, r"config\.annotate\.questions is -1"),
        ({"data.language": "fr"}, r"config\.data\.language"),
    ],
)
def test_bad_fields_are_refused(values, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        main.run(_config({**values, **changes}), str(tmp_path / "run"))


def test_the_config_has_the_defaults_of_a_run():
    required = {
        "annotate.base_url": "http://host/v1",
        "annotate.model": "m",
        "annotate.prompt_price": 1.0,
        "annotate.completion_price": 2.0,
    }
    made = phase.make_settings(_config(required))
    budget = made.terms.max_tokens, made.terms.max_money
    terms = Terms(Endpoint("http://host/v1", "m"), Prices(1.0, 2.0), *budget)
    assert made == Settings(terms, "zh")
