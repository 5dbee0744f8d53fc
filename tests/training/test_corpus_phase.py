"""The phase corpus through the command line, and what the later phases read of it."""

import json

import pytest

from configs import corpus as corpus_config
from empathy_jax import files, main
from empathy_jax.corpus import build, cleaning, splits
from empathy_jax.training import corpus as phase
from empathy_jax.training import inputs
from tests.conftest import ROOT
from tests.corpus import dumps
from tests.training import tiny_runs


def _config(values):
    config = corpus_config.get_config("tiny")
    config.update_from_flattened_dict({"corpus.workers": 1, **values})
    return config


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A folder of dialogues and a table beside it."""
    folder = tmp_path_factory.mktemp("dump")
    (folder / "dialogues").mkdir()
    for i in range(60):
        messages = dumps.dialogue(dumps.letter(i), dumps.answer(i))["messages"]
        path = folder / "dialogues" / f"{i}.json"
        path.write_text(json.dumps(messages, ensure_ascii=False), encoding="utf-8")
    rows = [f"{dumps.letter(100 + i)},{dumps.answer(100 + i)}" for i in range(20)]
    text = "\r\n".join(["question,answer", *rows, "问,短"]) + "\r\n"
    (folder / "table.csv").write_text(text, encoding="utf-8-sig")
    return folder


@pytest.fixture(scope="module")
def built(dump):
    """WORKDIR and the summary of a build by the command line."""
    command = [
        *tiny_runs.command("corpus", dump / "run", {"corpus.workers": 2}),
        f"--config.corpus.sources=('{dump / 'dialogues'}','{dump / 'table.csv'}')",
        "--config.corpus.licences=('CC0-1.0','MIT')",
    ]
    done = tiny_runs.run_cli(command, ROOT)
    assert done.returncode == 0, done.stderr
    assert "81 pairs read = 80 kept + 1 rejected" in done.stdout
    path = dump / "run" / "corpus" / "summary.json"
    return dump / "run", json.loads(path.read_text(encoding="utf-8"))


def test_a_folder_and_a_table_become_a_corpus(built):
    root, summary = built
    written = {
        path.relative_to(root / "corpus").as_posix()
        for path in (root / "corpus").rglob("*")
        if path.is_file() and path.suffix != ".png"
    }
    assert written == {
        "questions.jsonl", "rejected.jsonl", "stats.json", "card.md", "config.json",
        "inputs.json", "environment.json", "resources.json", "summary.json",
        *(f"splits/{name}.jsonl" for name in splits.SPLITS),
    }  # fmt: skip
    assert summary["figures"][0] == {"name": "pairs read and kept", "before": 81, "after": 80}
    assert "| MIT |" in (root / "corpus" / "card.md").read_text(encoding="utf-8")


def test_a_finished_corpus_is_not_built_again_and_another_is_refused(built, dump):
    root, summary = built
    values = {
        **tiny_runs.VALUES,
        "corpus.sources": (str(dump / "dialogues"), str(dump / "table.csv")),
        "corpus.licences": ("CC0-1.0", "MIT"),
    }
    assert main.run(_config(values), str(root))["corpus"] == summary
    # What the phase does not read may differ.
    assert main.run(_config({**values, "steps": 7, "rl.group_size": 6}), str(root))
    with pytest.raises(ValueError, match=r"config\.corpus\.clean\.phone was True and is now False"):
        main.run(_config({**values, "corpus.clean.phone": False}), str(root))


@pytest.mark.parametrize("place", ["corpus/splits", "corpus/splits/train.jsonl", ""])
def test_training_reads_the_splits_as_they_are(built, place):
    root, _ = built
    path = str(root / place) if place else ""
    # Other fractions, which would split the questions in another way.
    values = {"data.questions": path, "data.validation_fraction": 0.4}
    (root / "rl").mkdir(exist_ok=True)
    records = inputs.read_questions(tiny_runs.make_config("reward_model", values), root / "rl")
    for name in splits.SPLITS:
        stored = files.read_jsonl(root / "corpus" / "splits" / f"{name}.jsonl")
        assert [r["id"] for r in records[name]] == [r["id"] for r in stored]
    assert sum(map(len, records.values())) == 80


def test_the_whole_corpus_is_split_in_the_same_way(built, tmp_path):
    root, _ = built
    values = {"data.questions": str(root / "corpus" / "questions.jsonl")}
    records = inputs.read_questions(tiny_runs.make_config("reward_model", values), tmp_path)
    for name in splits.SPLITS:
        stored = files.read_jsonl(root / "corpus" / "splits" / f"{name}.jsonl")
        assert {r["id"] for r in records[name]} == {r["id"] for r in stored}


def test_a_reward_model_trains_on_the_splits(built, tmp_path):
    values = {
        "data.questions": str(built[0] / "corpus" / "splits" / "train.jsonl"),
        "steps": 2,
        "log.validate_every": 2,
        "reward_model.max_tokens": 32,
    }
    done = tiny_runs.run_cli(tiny_runs.command("reward_model", tmp_path, values), ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reward_model" / "summary.json").exists()


def test_a_chain_of_phases_hands_the_records_on():
    config = corpus_config.get_config("tiny")
    config.phases = ("corpus", "annotate", "sft", "reward_model")
    assert main.phase_config(config, "corpus").data.questions == "sample"
    assert main.phase_config(config, "annotate").data.questions == ""
    assert main.phase_config(config, "sft").data.chains == ""
    assert main.phase_config(config, "reward_model").data.questions == ""


def test_without_an_earlier_phase_it_says_what_to_run(tmp_path):
    config = tiny_runs.make_config("sft", {"data.questions": "", "data.chains": ""})
    with pytest.raises(ValueError, match=r"config\.data\.questions is empty.*run the phase corpus"):
        inputs.read_questions(config, tmp_path / "sft")
    with pytest.raises(ValueError, match=r"config\.data\.chains is empty.*run the phase annotate"):
        inputs.read_chains(config, tmp_path / "sft")


def test_the_config_has_every_rule_with_its_default():
    assert cleaning.Rules(**_config({}).corpus.clean) == cleaning.Rules()
    assert set(_config({}).corpus.clean) == set(cleaning.Rules.__dataclass_fields__)


def test_the_config_has_the_defaults_of_a_build():
    assert phase.make_settings(corpus_config.get_config("tiny")) == build.Settings()


def test_the_settings_are_those_of_the_config():
    values = {
        "corpus.require_answer": False,
        "corpus.near_duplicates": False,
        "corpus.near_duplicate_threshold": 0.7,
        "corpus.topic_threshold": 0.3,
        "corpus.clean.min_answer_characters": 7,
        "data.test_fraction": 0.3,
    }
    settings = phase.make_settings(_config(values))
    for name, value in values.items():
        owner = settings.clean if ".clean." in name else settings
        assert getattr(owner, name.rpartition(".")[2]) == value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corpus.sources": ()}, r"config\.corpus\.sources is empty"),
        ({"corpus.sources": ("x", 1)}, r"config\.corpus\.sources\[1\] is 1; .*text"),
        ({"corpus.licences": (1,)}, r"config\.corpus\.licences\[0\] is 1; .*text"),
        (
            {"corpus.near_duplicate_threshold": float("nan")},
            r"^config\.corpus\.near_duplicate_threshold is nan; it must be a finite number$",
        ),
        ({"corpus.sources": ("absent",)}, r"'absent'.*config\.corpus\.sources"),
        ({"corpus.licences": ("a", "b")}, r"config\.corpus\.licences names 2 licences for 1"),
        ({"corpus.workers": -1}, r"config\.corpus\.workers is -1"),
        ({"corpus.clean.language": "fr"}, r"^config\.corpus\.clean\.language must be one of"),
        (
            {"corpus.clean.min_answer_characters": -1},
            r"^lengths of answers must .* -1 and .*config\.corpus\.clean\.min_answer_characters or",
        ),
        (
            {"corpus.topic_encoder": "x", "corpus.topic_pooling": "max"},
            r"config\.corpus\.topic_pooling",
        ),
        ({"corpus.topic_max_tokens": 0}, r"config\.corpus\.topic_max_tokens is 0"),
    ],
)
def test_bad_fields_are_refused(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        main.run(_config(values), str(tmp_path))
    assert not (tmp_path / "corpus" / "questions.jsonl").exists()


def test_an_unknown_switch_is_one_line(tmp_path):
    command = tiny_runs.command("corpus", tmp_path, {"corpus.clean.emial": False})
    done = tiny_runs.run_cli(command, ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert 'Did you mean "email"' in done.stderr


def test_a_real_encoder_finds_topics(shared_dir, tmp_path):
    encoder = shared_dir / "models" / "bge_small_zh"
    if not encoder.is_dir():
        pytest.skip("the real encoder is absent")
    answer = dumps.answer(0)
    questions = {
        "我和男朋友分手三个月了，还是每天想他，看到以前的照片就哭，怎么才能放下？": "失恋与分手",
        "每天晚上躺在床上两三个小时都睡不着，越想睡越清醒，白天没精神，失眠怎么办？": "睡眠",
    }
    values = [{"question": text, "answer": dumps.answer(i)} for i, text in enumerate(questions)] + [
        {"question": dumps.letter(5), "topic": "depression", "answer": answer[::-1]}
    ]
    values = {
        "corpus.sources": dumps.write(tmp_path / "dump.jsonl", values),
        "corpus.workers": 1,
        "corpus.topic_encoder": str(encoder),
    }
    # On one device: the tests' eight would each embed everything.
    done = tiny_runs.run_cli(tiny_runs.command("corpus", tmp_path, values), ROOT)
    assert done.returncode == 0, done.stderr
    records = list(files.read_jsonl(tmp_path / "corpus" / "questions.jsonl"))
    assert [record["topic_by"] for record in records] == ["nearest", "nearest", "label"]
    for record, topic in zip(records, questions.values(), strict=False):
        assert topic in record["topic"] and record["topic_similarity"] > 0.5
