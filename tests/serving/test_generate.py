"""The phase generate: rows and scores, resuming, standard input, and one question in the terminal."""

import dataclasses
import io
import json

import numpy as np
import pytest

from empathy_jax import chain_of_empathy, files, main
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.serving import generate, server, terminal
from empathy_jax.serving.sample_text import Delta
from empathy_jax.training import completions
from empathy_jax.training import workdir as workdirs
from tests.serving.served import CHAIN, ScriptedBatch
from tests.training import run_folders

QUESTIONS = [f"第{n}封信：我最近睡不好，心里很乱" for n in range(5)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    config = run_folders.tiny_config("generate")
    texts = [chain_of_empathy.system_prompt("zh"), chain_of_empathy.render(CHAIN), *QUESTIONS]
    run_folders.make_policy_run(root, config, texts * 5)
    files.write_jsonl(root / "questions.jsonl", [{"question": q} for q in QUESTIONS])
    config.data.questions = str(root / "questions.jsonl")
    config.sampling.rows = 2  # 4 completions a write
    return root, config


@pytest.fixture
def run_copy(run_folder, tmp_path):
    root, config = run_folder
    (tmp_path / "sft").symlink_to(root / "sft")
    return tmp_path, config.copy_and_resolve_references()


class _Scorer:
    calibration = {"quantiles": [0.0, 1.0]}  # noqa: RUF012
    has_head = False

    def similarity(self, questions, answers):
        return np.array([0.5 * bool(answer) for answer in answers], np.float32)


@pytest.fixture
def scripted(monkeypatch):
    """Completions without the engine: even streams are whole chains, odd ones break off.

    Returns the streams of each call.
    """
    calls = []

    def complete(key, variables, model, questions, config, samples_per_prompt, row_ids):
        calls.append(list(row_ids))
        rows, streams = [], iter(row_ids)
        for record in questions:
            for _ in range(samples_per_prompt):
                stream = next(streams)
                text = chain_of_empathy.render(Chain("情绪", "成因", "意图", "策略", f"答{stream}"))
                text = text if stream % 2 == 0 else text[: text.index("策略")]
                judged = completions.judge(model, model.tokenizer.encode(text))
                own = {"id": record["id"], "question": record["question"]}
                rows.append(own | judged | {"tokens": 10, "finished": stream % 2 == 0})
        return rows

    monkeypatch.setattr(completions, "complete", complete)
    monkeypatch.setattr(generate, "find_scorer", lambda *_: _Scorer())
    return calls


def without_times(path):
    rows = files.read_jsonl(path)
    return [{k: v for k, v in row.items() if k != "batch_seconds"} for row in rows]


def test_rows_hold_chain_answer_scores_and_times(run_copy, scripted):
    root, config = run_copy
    config.generate.samples = 2
    summary = main.run(config, str(root))["generate"]
    rows = list(files.read_jsonl(root / "generate" / "generations.jsonl"))
    assert [row["question"] for row in rows] == [q for q in QUESTIONS for _ in range(2)]
    assert [row["sample"] for row in rows] == [0, 1] * 5
    streams = [stream for call in scripted for stream in call]
    assert len(set(streams)) == 10 and 0 < sum(s % 2 for s in streams) < 10
    for row, stream in zip(rows, streams, strict=True):
        assert row["batch_seconds"] >= 0 and row["batch_tokens"] in (40, 20)
        if stream % 2:
            assert row["rule"] == "unclosed_L4" and row["answer"] is row["L1"] is None
            assert row["reward"] == 0
        else:
            assert (row["L1"], row["L4"], row["answer"]) == ("情绪", "策略", f"答{stream}")
            assert row["terms"]["similarity"] == 0.5
            charge = 1 - len(row["answer"]) / 100
            assert row["reward"] == pytest.approx(1.5 - charge, abs=1e-6)
    figures = {figure["name"]: figure["after"] for figure in summary["figures"]}
    assert figures["valid chains"] == sum(s % 2 == 0 for s in streams) / 10
    made = len(scripted)
    assert main.run(config, str(root))["generate"] == summary and len(scripted) == made


def test_a_killed_run_goes_on_and_a_row_depends_on_its_question_alone(
    run_copy, scripted, monkeypatch
):
    root, config = run_copy
    with pytest.MonkeyPatch.context() as patch, pytest.raises(workdirs.Preempted):
        patch.setattr(workdirs, "watch_sigterm", _received)
        generate.run(config, root)
    path = root / "generate" / "generations.jsonl"
    assert len(without_times(path)) == 4
    with path.open("ab") as file:
        file.write(b'{"id": "cut')
    generate.run(config, root)
    assert [len(call) for call in scripted] == [4, 1]
    assert [row["question"] for row in without_times(path)] == QUESTIONS
    streams = [stream for call in scripted for stream in call]

    other = root / "other"
    other.mkdir()
    (other / "sft").symlink_to(root / "sft")
    config.data.questions = generate.STDIN
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(QUESTIONS[::-1])))
    generate.run(config, other)
    assert [s for call in scripted[2:] for s in call] == streams[::-1]


class _received(list):
    """As if SIGTERM had come already."""

    def __enter__(self):
        return [15]

    def __exit__(self, *_):
        return None


def test_standard_input_is_read_line_by_line():
    lines = ["  我很累 \n", "\n", '{"question": "想哭", "x": 1}\n', "我很累\n", '{"q": 1}\n', "{\n"]
    found, rejects = generate.read_lines(lines)
    assert [record["question"] for record in found] == ["我很累", "想哭"]
    assert [reject["line"] for reject in rejects] == [5, 6]


def test_no_question_is_refused(run_copy, scripted, monkeypatch):
    root, config = run_copy
    config.data.questions = generate.STDIN
    monkeypatch.setattr("sys.stdin", io.StringIO("\n{\n"))
    with pytest.raises(ValueError, match="holds no question to answer: 1 could not be read"):
        generate.run(config, root)


def test_one_question_is_answered_on_the_screen(run_copy, monkeypatch, capsys):
    root, config = run_copy
    asked = []

    def make_batch(config, model, rows):
        batch = ScriptedBatch(model.tokenizer, chain_of_empathy.render(CHAIN), rows)
        prefill = batch.prefill
        batch.prefill = lambda ids: asked.append(model.tokenizer.decode(ids)) or prefill(ids)
        return batch

    monkeypatch.setattr(server, "make_batch", make_batch)
    config.generate.question = generate.STDIN
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTIONS[0] + "\n"))
    main.run(config, str(root))
    out = capsys.readouterr().out
    elements = [(name, getattr(CHAIN, name)) for name in (*chain_of_empathy.LAYERS, "answer")]
    assert out.startswith("\n\n".join(f"{name}\n{text}" for name, text in elements) + "\n")
    assert QUESTIONS[0] in asked[0] and "tokens/s" in out
    assert not (root / "generate").exists()


def test_the_guard_is_on_the_screen(run_copy, monkeypatch, capsys):
    root, config = run_copy
    text = chain_of_empathy.render(dataclasses.replace(CHAIN, answer="我在。你得了抑郁症。"))
    monkeypatch.setattr(
        server, "make_batch", lambda _, model, rows: ScriptedBatch(model.tokenizer, text, rows)
    )
    config.generate.question = "我今晚就去跳楼"
    main.run(config, str(root))
    out, noted = capsys.readouterr()
    assert "guard: urgent, grade 5, held back: diagnosis\n" in noted and "跳楼" not in noted
    assert out.index("12356") < out.index("L1\n") and out.startswith("你说的这些很要紧")
    assert "这里不下诊断" in out and "你得了抑郁症" not in out
    config.guard.on = False
    main.run(config, str(root))
    out = capsys.readouterr().out
    assert "the guard is OFF" in out and "12356" not in out and "你得了抑郁症" in out


def test_the_screen_takes_no_orders_from_a_text():
    written = []
    screen = terminal.Screen(written.append, colours=True)
    screen.write(Delta(True, "L1", "a\x1b[31m\u202eb"))
    screen.write(Delta(True, "L1", "c"))
    screen.write(Delta(False, None, "d"))
    text = "".join(written)
    assert "[31m" in text and "\x1b[31m" not in text and "\u202e" not in text
    assert text.count("\x1b[1mL1\x1b[0m\n") == 1 and text.endswith("\n\n\x1b[1manswer\x1b[0m\nd")
    assert json.dumps(text).count("\\u001b[2m") == 2


def test_an_empty_question_is_refused(run_copy):
    root, config = run_copy
    config.generate.question = "  "
    with pytest.raises(ValueError, match="holds no text"):
        terminal.run(config, root)
