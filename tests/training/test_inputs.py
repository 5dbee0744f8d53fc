import functools
import json

import pytest

from empathy_jax import files
from empathy_jax.data import examples as examples_lib
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.training import inputs
from tests.training import tiny_runs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with data, and its paths by config field."""
    folder = tmp_path_factory.mktemp("inputs")
    return folder, tiny_runs.write_inputs(folder)


def _config(given, **changes):
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return tiny_runs.make_config("sft", {**given[1], **values})


def test_records_are_split_by_question(given, tmp_path):
    records = inputs.read_chains(_config(given), tmp_path)
    texts = {name: {r["question"] for r in part} for name, part in records.items()}
    assert sum(map(len, texts.values())) == tiny_runs.RECORDS
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    # A question stands on one side whether it comes as a chain or as a question.
    questions = inputs.read_questions(_config(given), tmp_path)
    assert {name: {r["question"] for r in part} for name, part in questions.items()} == texts
    assert (tmp_path / "rejected.jsonl").read_text(encoding="utf-8") == ""


def test_unreadable_lines_are_counted_and_kept(given, tmp_path, capsys):
    path = tmp_path / "chains.jsonl"
    good = (given[0] / "chains.jsonl").read_text(encoding="utf-8")
    path.write_text(good + '{"question": "无\n[1]\n', encoding="utf-8")
    config = _config(given, data__chains=str(path))
    records = inputs.read_chains(config, tmp_path)
    assert sum(map(len, records.values())) == tiny_runs.RECORDS
    rejects = list(files.read_jsonl(tmp_path / "rejected.jsonl"))
    first = tiny_runs.RECORDS + 1
    assert [(r["file"], r["line"]) for r in rejects] == [(path.name, first), (path.name, first + 1)]
    assert "not JSON" in rejects[0]["reason"] and "must be a JSON object" in rejects[1]["reason"]
    assert "2 unreadable records" in capsys.readouterr().out
    config.data.max_rejected = 0.01
    folder = tmp_path / "refused"
    folder.mkdir()
    message = r"2 of 50 records.*config\.data\.max_rejected.*listed in .*refused/rejected\.jsonl"
    with pytest.raises(ValueError, match=message):
        inputs.read_chains(config, folder)
    assert list(files.read_jsonl(folder / "rejected.jsonl")) == rejects


def test_several_chains_of_a_question_stand_on_one_side(given, tmp_path):
    chains = list(files.read_jsonl(given[0] / "chains.jsonl"))
    path = tmp_path / "chains.jsonl"
    files.write_jsonl(path, chains + [chain | {"L1": "别的"} for chain in chains])
    records = inputs.read_chains(_config(given, data__chains=str(path)), tmp_path)
    texts = [{r["question"] for r in part} for part in records.values()]
    assert sum(map(len, texts)) == tiny_runs.RECORDS
    assert [len(part) for part in records.values()] == [2 * len(side) for side in texts]


def test_rejects_of_split_files_are_kept_together(given, tmp_path):
    good = (given[0] / "questions.jsonl").read_text(encoding="utf-8")
    for name, text in (("train", good + "[1]\n"), ("validation", "[1]\n"), ("test", "")):
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = _config(given, data__questions=str(tmp_path))
    with pytest.raises(ValueError, match=r"1 of 1 records.*validation\.jsonl"):
        inputs.read_questions(config, tmp_path)
    rejects = list(files.read_jsonl(tmp_path / "rejected.jsonl"))
    assert [reject["file"] for reject in rejects] == ["train.jsonl", "validation.jsonl"]


def _examples(config, folder):
    tokenizer = tokenizers.load(config.model.tokenizer, "zh")
    make = functools.partial(
        examples_lib.prompt_example,
        tokenizer=tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
    )
    records = inputs.read_chains(config, folder)
    long = dict(records["train"][0], id="long", question="很" * 90)
    records["train"].insert(1, long)
    return records, inputs.build_examples(records, make, config, folder)


def test_overlong_records_are_refused_or_set_aside(given, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"1 of 4\d records.*'long' has .* tokens, .* 128"):
        _examples(_config(given), tmp_path)
    records, examples = _examples(_config(given, data__overlong="reject"), tmp_path)
    # An index means the same record and example.
    for name in ("train", "validation"):
        assert [e["id"] for e in examples[name]] == [r["id"] for r in records[name]]
    rejects = list(files.read_jsonl(tmp_path / "rejected.jsonl"))
    assert [r["id"] for r in rejects] == ["long"]
    assert "1 overlong records" in capsys.readouterr().out


def test_how_many_records_of_what_were_used_is_noted(given, tmp_path):
    config = _config(given, data__overlong="reject")
    records, _ = _examples(config, tmp_path)
    noted = json.loads((tmp_path / "records.json").read_text(encoding="utf-8"))
    assert noted == {
        "place": config.data.chains,
        **{name: len(side) for name, side in records.items()},
    }
    inputs.read_questions(config, tmp_path)
    noted = json.loads((tmp_path / "records.json").read_text(encoding="utf-8"))
    assert noted["place"] == config.data.questions


def test_a_split_of_overlong_records_alone_is_an_error(given, tmp_path):
    config = _config(given, data__overlong="reject", data__max_prompt_tokens=20)
    with pytest.raises(ValueError, match=r"all \d+ train records are too long.*max_prompt_tokens"):
        _examples(config, tmp_path)


def test_texts_to_learn_a_tokenizer_from():
    chain, question = tiny_runs.chain_records()[0], tiny_runs.question_records()[0]
    texts = inputs.training_texts([chain, question])
    assert texts[0] == chain["question"] and "<L1>累</L1>" in texts[1]
    assert texts[2:] == [question["question"], "我在，累。", "累会过去"]
