"""The suite asked of the real server over a real port, and of a judge beside it."""

import json

import pytest

from empathy_jax import chain_of_empathy, files
from empathy_jax.evaluation.suite import __main__ as suite
from tests.evaluation.judge import judge_server
from tests.serving.served import CHAIN, MODEL, ScriptedBatch, make_tokenizer, serve


@pytest.fixture(scope="module")
def served():
    tokenizer = make_tokenizer()
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))
    with serve(batch, tokenizer, max_queue=64, region=None) as server:  # the model alone
        yield server


def _run(url, output, *more):
    fixed = ("--model", MODEL, "--max-completion-tokens=400", "--language=zh")
    suite.main([f"--base-url={url}/v1", f"--output={output}", *fixed, *more])
    return json.loads((output / "suite.json").read_text(encoding="utf-8"))["groups"]


def test_replies_are_read_by_category_and_nothing_is_asked_twice(served, tmp_path, capsys):
    found = _run(served.url, tmp_path)
    rows = list(files.read_jsonl(tmp_path / "replies.jsonl"))
    assert len(rows) == 80
    # What is read is the answer, as the person reads it.
    assert {row["reply"] for row in rows} == {CHAIN.answer}
    crisis, calm = found["crisis"], found["over_refusal"]
    assert (crisis["answered"]["count"], crisis["names_help"]["count"]) == (14, 0)
    assert (crisis["as_wanted"]["count"], calm["as_wanted"]["count"]) == (0, 13)
    # Wilson's interval of 13 of 13, by hand: 1 / (1 + 1.96² / 13).
    assert calm["as_wanted"]["low"] == pytest.approx(1 / (1 + 1.959964**2 / 13))
    assert found["all"]["as_wanted"]["total"] == 80 and "crisis, en" not in found
    table = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "| crisis | 0/14 = 0.0 % [0.0, 21.5] | 14/14 = 100.0 % [78.5, 100.0] (wanted)" in table

    asked = len(served.batch.prompts)
    assert _run(served.url, tmp_path) == found
    assert len(served.batch.prompts) == asked == 80
    assert f"{MODEL}: 0 requests to make" in capsys.readouterr().out
    _run(served.url, tmp_path, '--extra-body={"seed": 1}')  # another request: it is asked
    assert len(served.batch.prompts) == 160


def test_what_a_guard_says_is_part_of_the_reply(tmp_path):
    tokenizer = make_tokenizer()
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))
    with serve(batch, tokenizer, max_queue=64) as server:
        found = _run(server.url, tmp_path)
    rows = list(files.read_jsonl(tmp_path / "replies.jsonl"))
    assert all(row["reply"].endswith(CHAIN.answer) for row in rows)
    assert found["crisis"]["names_help"]["count"] > 0


def test_a_judge_says_of_each_reply_whether_it_is_as_wanted(served, tmp_path):
    asked = []

    def judge(messages):
        asked.append(messages[-1]["content"])
        if len(asked) % 4 == 0:
            return "well, yes"
        return json.dumps({"reason": "because", "verdict": "no" if len(asked) % 2 else "yes"})

    with judge_server.serving({"large": judge}) as server:
        found = _run(served.url, tmp_path, f"--judge={server.base_url},large")
    assert len(asked) == 80 and all(f"\n{CHAIN.answer}\n===" in text for text in asked)
    assert found["all"]["judge_no"]["count"] == 40
    # What the judge did not say in the form that was asked for counts nowhere.
    assert found["all"]["judge_yes"] == found["all"]["judge_yes"] | {"count": 20, "total": 60}
    rows = list(files.read_jsonl(tmp_path / "replies.jsonl"))
    assert sum(row["verdict"] is None for row in rows) == 20


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--price=free"], "--price is 'free'; give PROMPT,COMPLETION"),
        (["--judge=large"], "--judge is 'large'; give BASE_URL,MODEL"),
        (["--base-url=nowhere"], "--base-url is 'nowhere'"),
        (["--max-tokens=0"], "--max-tokens is 0; it must be 1 or more"),
        (["--judge=http://127.0.0.1:1/v1,"], "--judge is empty; name a model"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_asked(tmp_path, more, error):
    with pytest.raises(SystemExit) as exit_:
        suite.main(
            ["--base-url=http://127.0.0.1:1/v1", "--model=x", f"--output={tmp_path / 'out'}", *more]
        )
    assert str(exit_.value).startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_ends_in_one_line(served, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* answered 404: .*check --model \('other'\)"):
        suite.main([f"--base-url={served.url}/v1", "--model=other", f"--output={tmp_path}"])
