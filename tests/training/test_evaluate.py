import json
import shutil
from types import SimpleNamespace

import markupsafe
import numpy as np
import pytest

from empathy_jax import chain_of_empathy, files, sharding
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.corpus import sample
from empathy_jax.evaluation import plots
from empathy_jax.models import decoder, encoder
from empathy_jax.training import (
    common,
    completions,
    evaluate,
    measures,
    overview,
    scorer,
    workdir,
)
from tests.training import run_folders


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """They have tests of their own."""
    monkeypatch.setattr(plots, "_svg", lambda *_: markupsafe.Markup("<svg></svg>"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished phase sft, and its config for evaluation."""
    root = tmp_path_factory.mktemp("run")
    config = run_folders.tiny_config("evaluate")
    config.evaluate.questions, config.evaluate.samples = 5, 2
    config.sampling.rows = 2
    config.data.max_completion_tokens = 8
    texts = [record["question"] for record in sample.sample_questions("zh")[:20]]
    run_folders.make_policy_run(root, config, texts)
    return root, config


@pytest.fixture
def run_copy(trained, tmp_path):
    root, config = trained
    (tmp_path / "sft").symlink_to(root / "sft")
    return tmp_path, config.copy_and_resolve_references()


@pytest.fixture
def scripted(monkeypatch):
    """Completions without the engine: even samples answer with the question, odd break off.

    Returns the (first id, number of questions) of each call.
    """
    calls = []

    def complete(key, variables, model, questions, config, samples_per_prompt, first):
        calls.append((questions[0]["id"], len(questions)))
        rows = []
        for record in questions:
            for index in range(samples_per_prompt):
                chain = Chain("情绪", "成因", "意图", "策略", record["question"])
                text = chain_of_empathy.render(chain)
                text = text if index % 2 == 0 else text[: text.index("策略")]
                judged = completions.judge(model, model.tokenizer.encode(text))
                rows.append(
                    {"id": record["id"], "question": record["question"], **judged}
                    | {"tokens": 10 + index, "finished": index % 2 == 0}
                )
        return rows

    monkeypatch.setattr(completions, "complete", complete)
    return calls


def test_scores_by_hand_beside_their_floor(run_copy, scripted):
    root, config = run_copy
    summary = evaluate.run(config, root)
    scores = json.loads((root / "evaluate" / "scores.json").read_text(encoding="utf-8"))
    assert (scores["questions"], scores["completions"]) == (5, 10)
    assert scores["chain"]["valid"] == 5
    assert scores["chain"]["rules"] == {"unclosed_L4": 5}
    assert scores["chain"]["layers"] == {"L1": 10, "L2": 10, "L3": 10, "L4": 5}
    found = scores["measures"]
    assert found["validity"]["value"] == 0.5 and found["validity"]["error"] == 0
    assert found["validity"]["floor"] is None
    assert found["tokens"]["value"] == 10.5
    # The answers copy their question; what people wrote to another question does not.
    assert found["echo_overlap"]["value"] == 1
    assert 0 <= found["echo_overlap"]["floor"] < 0.1
    assert 0.05 < found["rouge_l_char_max"]["floor"] < 0.5
    assert 0.05 < found["rouge_l_char_max"]["ceiling"] < 0.5
    assert found["layer_L4"]["value"] == found["rule_unclosed_L4"]["value"] == 0.5
    assert "rule_missing_L1" not in found and scores["tokenizations"].keys() == {"char", "jieba"}
    assert "similarity" not in found and scores["probes"] == {} and scores["judges"] == {}
    assert sum(band["completions"] for band in scores["safety"].values()) == 10
    assert summary["model"] == str(root / "sft")
    figure = next(f for f in summary["figures"] if f["name"] == "echo of the question")
    assert figure["after"] == 1 and figure["before"] == found["echo_overlap"]["floor"]

    rows = list(files.read_jsonl(root / "evaluate" / "generations.jsonl"))
    assert [row["sample"] for row in rows] == [0, 1] * 5
    assert rows[0]["L2"] == "成因" and rows[0]["answer"] == rows[0]["question"]
    assert rows[1]["rule"] == "unclosed_L4" and rows[1]["L1"] is rows[1]["answer"] is None
    assert "10 cases" in (root / "evaluate" / "report.html").read_text(encoding="utf-8")
    values = list(files.read_jsonl(root / "evaluate" / "values.jsonl"))
    assert [(v["id"], v["sample"]) for v in values] == [(r["id"], r["sample"]) for r in rows]
    assert values[0]["values"]["echo_overlap"] == 1 and values[1]["values"]["echo_overlap"] is None
    records = list(files.read_jsonl(root / "evaluate" / "references.jsonl"))
    assert [record["id"] for record in records] == [row["id"] for row in rows[::2]]


def test_a_finished_evaluation_is_returned_and_not_made_again(run_copy, scripted):
    root, config = run_copy
    summary = evaluate.run(config, root)
    made = len(scripted)
    assert evaluate.run(config, root) == summary and len(scripted) == made


def test_a_killed_evaluation_goes_on_and_writes_the_same(run_copy, scripted):
    root, config = run_copy
    evaluate.run(config, root)
    path = root / "evaluate" / "generations.jsonl"
    whole, calls = path.read_bytes(), list(scripted)
    assert [count for _, count in calls] == [2, 2, 1]
    # Killed in the second write: its first question is there, a row of the next and a part of another.
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:7]) + b'{"id": "x')
    (root / "evaluate" / "summary.json").unlink()
    scripted.clear()
    evaluate.run(config, root)
    assert path.read_bytes() == whole and [count for _, count in scripted] == [2]


def _score(root):
    return json.loads((root / "evaluate" / "scores.json").read_text(encoding="utf-8"))


def test_an_evaluation_is_made_anew_when_the_newest_model_is_another(
    run_copy, scripted, trained, capsys
):
    root, config = run_copy
    first = evaluate.run(config, root)
    shutil.copytree(trained[0] / "sft", root / "rl")
    scripted.clear()
    capsys.readouterr()
    second = evaluate.run(config, root)
    out = capsys.readouterr().out
    assert "[evaluate] done anew: model was sft at step 1" in out
    assert "and is now rl at step 1" in out
    assert (first["model"], second["model"]) == (str(root / "sft"), str(root / "rl"))
    assert _score(root)["model"] == str(root / "rl") and len(scripted) == 3
    assert len(list(files.read_jsonl(root / "evaluate" / "generations.jsonl"))) == 10
    assert evaluate.run(config, root) == second and len(scripted) == 3
    # What is gone since makes no result stale.
    (root / "sft").unlink()
    shutil.rmtree(root / "rl")
    assert evaluate.run(config, root) == second and len(scripted) == 3


def test_rows_of_another_model_are_not_gone_on_with(run_copy, scripted, trained):
    root, config = run_copy
    evaluate.run(config, root)
    (root / "evaluate" / "summary.json").unlink()  # killed at its end
    shutil.copytree(trained[0] / "sft", root / "rl")
    scripted.clear()
    evaluate.run(config, root)
    assert [count for _, count in scripted] == [2, 2, 1]


def test_a_phase_killed_before_its_first_checkpoint_is_no_model(run_copy, scripted):
    root, config = run_copy
    for phase in ("rl", "reward_model"):
        (root / phase).mkdir()
        (root / phase / "model.json").write_bytes((root / "sft" / "model.json").read_bytes())
    (root / "reward_model" / "calibration.json").write_text("{}", encoding="utf-8")
    assert evaluate.run(config, root)["model"] == str(root / "sft")


def test_sigterm_ends_after_the_batches_at_hand(run_copy, scripted, trained):
    root, config = run_copy
    folder = workdir.open_phase(root, "evaluate", config)
    layout = evaluate.sharding.make_layout(config.mesh)
    model = common.load_policy(config, root, layout)
    questions = evaluate.read_test_questions(config, folder, model)
    with pytest.raises(workdir.Preempted):
        evaluate.generate(config, folder, model, questions, sigterm=[15])
    assert len(list(files.read_jsonl(folder / "generations.jsonl"))) == 4


def test_samples_do_not_depend_on_how_many_are_written_at_a_time(run_copy):
    root, config = run_copy
    written = []
    for rows in (1, 8):
        config.sampling.rows = rows
        evaluate.run(config, root)
        written.append(list(files.read_jsonl(root / "evaluate" / "generations.jsonl")))
        shutil.rmtree(root / "evaluate")
    assert len({row["completion"] for row in written[0]}) > 5
    assert written[0] == written[1]


def test_the_engine_and_an_untrained_model(run_copy):
    root, config = run_copy
    config.evaluate.questions, config.evaluate.samples = 3, 1
    summary = evaluate.run(config, root)
    scores = json.loads((root / "evaluate" / "scores.json").read_text(encoding="utf-8"))
    assert scores["chain"]["valid"] == 0 and sum(scores["chain"]["rules"].values()) == 3
    assert scores["measures"]["rouge_l_char_max"]["value"] is None
    assert scores["measures"]["rouge_l_char_max"]["floor"] > 0.05
    assert all(f["after"] is None for f in summary["figures"] if "ROUGE" in f["name"])
    rows = list(files.read_jsonl(root / "evaluate" / "generations.jsonl"))
    assert all(row["tokens"] <= 8 for row in rows)


class _Echo(scorer.Scorer):
    """Similarity 1 for an answer that is the question, else 0.25."""

    has_head = False

    def __init__(self):
        self.calibration = {"threshold": 0.5, "quantiles": [0.0, 1.0], "max_characters": 200}

    def embed_questions(self, texts):
        """Each two in a row are each other's nearest."""
        return np.eye(len(texts))[np.arange(len(texts)) // 2]

    def similarity(self, questions, answers):
        return np.array(
            [1 if q == a else 0.25 for q, a in zip(questions, answers, strict=True)], np.float32
        )


def test_reward_model_scores_answers_and_floor():
    layers = dict.fromkeys(chain_of_empathy.LAYERS, "x")
    whole = dict.fromkeys(chain_of_empathy.LAYERS, True)
    questions = [
        {"id": str(i), "question": f"问题{i}", "answers": [{"text": f"回答{i}"}] * (i < 3)}
        for i in range(4)
    ]
    rows = [
        {"id": record["id"], "rule": None, "answer": record["question"], "finished": True}
        | {"tokens": 1, "whole_layers": whole, **layers}
        for record in questions
    ]
    judges = measures.Judges(scorer=_Echo())
    table, per_row, wins = measures.score(
        rows, questions, judges, run_folders.tiny_config("evaluate")
    )
    entry = table["similarity"]
    assert (entry["value"], entry["error"], entry["questions"]) == (1, 0, 4)
    assert (entry["floor"], entry["floor_error"]) == (0.25, 0)
    assert table["similarity_passes"]["value"] == 1
    assert table["similarity_passes"]["floor"] == 0
    # The last question has no reference: nothing to overlap with, and no floor.
    assert table["rouge_l_char_max"]["questions"] == 3 and per_row[3]["rouge_l_char_max"] is None
    assert wins["similarity"]["matrix"][0][1]["value"] == 1


def test_a_policy_without_a_valid_answer_has_no_similarity_and_a_floor():
    whole = dict.fromkeys(chain_of_empathy.LAYERS, False)
    questions = [
        {"id": str(i), "question": f"问题{i}", "answers": [{"text": f"回答{i}"}]} for i in range(3)
    ]
    rows = [
        {"id": record["id"], "rule": "missing_think", "answer": None, "finished": False}
        | {"tokens": 8, "whole_layers": whole}
        for record in questions
    ]
    config = run_folders.tiny_config("evaluate")
    table, per_row, _ = measures.score(rows, questions, measures.Judges(scorer=_Echo()), config)
    assert table["similarity"]["value"] is None and table["similarity"]["floor"] == 0.25
    assert per_row[0]["similarity"] is None and table["validity"]["value"] == 0


def test_the_reward_is_probed_alone_and_as_rl_composes_it():
    questions = [
        {"id": str(i), "question": record["question"], "answers": record["answers"]}
        for i, record in enumerate(sample.sample_questions("zh")[:6])
    ]
    config = run_folders.tiny_config("evaluate")
    config.rl.echo_weight, config.rl.template_weight = 2.0, 0.5
    probed = evaluate.probe(questions, _Echo(), config)
    assert list(probed) == ["cosine", "reward"]
    assert probed["cosine"]["echo"]["beats"] == 1
    assert probed["cosine"]["echo"]["mean_gain"] == pytest.approx(0.75)
    # The echo is charged with 2, and then is worth 1 - 2 against 0.25.
    assert probed["reward"]["echo"]["beats"] == 0
    assert probed["reward"]["echo"]["mean_gain"] == pytest.approx(-1.25)
    # All questions get one of three letters: two of them each, so each is seen to be a template.
    assert probed["cosine"]["kind_template"]["ties"] == 1
    assert probed["reward"]["kind_template"]["mean_gain"] == pytest.approx(-0.5)
    # What people wrote is charged for nothing, though each text is another's probe.
    assert probed["reward"]["same_topic_answer"]["mean_gain"] == pytest.approx(0)
    assert evaluate.probe(questions[:1], _Echo(), config) == {}


def test_the_probes_reach_scores_report_and_terminal(run_copy, scripted, monkeypatch, capsys):
    root, config = run_copy
    config.reward_model.init = "given"
    monkeypatch.setattr(measures, "find_scorer", lambda *_: _Echo())
    overview.show_phase(root / "evaluate", {"evaluate": evaluate.run(config, root)})
    found = json.loads((root / "evaluate" / "scores.json").read_text(encoding="utf-8"))["probes"]
    assert found["cosine"]["echo"] | {"mean_gain": 0} == {
        "beats": 1, "error": 0, "ties": 0, "mean_gain": 0, "questions": 5,
    }  # fmt: skip
    sentence = "This reward prefers an echo of the question to a real answer in 100.0 % of 5"
    assert sentence in (root / "evaluate" / "report.html").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert sentence in out and "under the cosine" in out and "under the reward" in out


@pytest.mark.parametrize(
    ("field", "message"),
    [("bertscore_model", "a decoder; name an encoder"), ("perplexity_model", "an encoder; name")],
)
def test_a_judge_of_the_wrong_kind_is_refused(run_copy, monkeypatch, field, message):
    root, config = run_copy
    config.evaluate[field] = "given"
    kind = {"bertscore_model": decoder, "perplexity_model": encoder}[field]
    monkeypatch.setattr(common, "load_model", lambda *_: SimpleNamespace(module=kind))
    with pytest.raises(ValueError, match=rf"config\.evaluate\.{field} is 'given', {message}"):
        measures.load_judges(config, root, sharding.make_layout(config.mesh))


def test_the_judges_that_are_given_add_their_measures(run_copy, scripted):
    """Perplexity under the policy itself; BERTScore under an encoder with fresh weights."""
    root, config = run_copy
    tokenizer = common.load_policy(config, root, sharding.make_layout(config.mesh)).tokenizer
    run_folders.make_reward_run(root / "encoder", config, tokenizer)
    config.evaluate.perplexity_model = str(root / "sft")
    config.evaluate.bertscore_model = str(root / "encoder" / "reward_model")
    config.evaluate.bertscore_layer, config.evaluate.samples = 1, 1
    evaluate.run(config, root)
    scores = json.loads((root / "evaluate" / "scores.json").read_text(encoding="utf-8"))
    found = scores["measures"]
    # Fresh weights find every token of the vocabulary about as likely.
    assert found["perplexity"]["value"] == pytest.approx(352, rel=0.3)
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert 0 < found["bertscore_f1_max"]["floor"] < 1
    assert found["bertscore_f1_mean"]["value"] < found["bertscore_f1_max"]["value"]
    assert scores["judges"]["bertscore"] | {"model": ""} == {
        "model": "", "layer": 1, "most_tokens": 64,
    }  # fmt: skip


def test_no_test_question_and_no_model_are_refused_with_what_to_change(run_copy, tmp_path_factory):
    root, config = run_copy
    config.data.test_fraction = 0.0
    with pytest.raises(
        ValueError, match=r"is empty, with config\.data\.test_fraction 0\.0; name other"
    ):
        evaluate.run(config, root)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=r"config\.model\.init is empty"):
        evaluate.run(run_folders.tiny_config("evaluate"), empty)
